"""Channels that zeros have cut off: all rows that write them are zero, or all columns that read them.

conv1 [4, ...]  row 2 masked      unwritten: bias and norm of channel 2 are masked, too, and it is zero
conv2 [..., 4]  column 1 zero     unread: whatever channel 1 is, nobody sees it
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunec.compiler.groups.analysis import Analysis, Member
from prunec.compiler.groups.axis_rows import axis_rows, zero_rows
from prunec.compiler.ir.program import Axis, BoolArray, IntArray


def may_go(analysis: Analysis, axis: Axis) -> bool:
    """Whether some channel of an axis may be removed."""
    binding = analysis.flow.bindings.get(axis)
    return binding is not None and bool(np.append(_loose(analysis), False)[analysis.units(binding.labels)].any())


def _loose(analysis: Analysis) -> BoolArray:
    """[units]: which may go without changing what is computed of others: those that nothing counts."""
    found = analysis.free.copy()
    found[list(analysis.counted)] = False
    return found


def unwritten(analysis: Analysis, masks: Mapping[str, Tensor]) -> BoolArray:
    """[units]: which may go, since every row that writes them is masked."""
    found = np.zeros(analysis.size, dtype=bool)
    for group in analysis.groups.values():
        writers = [member for member in group.writers if _is_matrix(analysis, member)]
        if writers and all(member.axis.tensor in masks for member in writers):
            written = np.zeros(group.size, dtype=bool)
            for member in writers:
                left = axis_rows(analysis.program, member.axis, masks[member.axis.tensor]).any(1).numpy()
                written[member.units[left[member.positions]]] = True
            found[group.where] = ~written
    return found & _loose(analysis)


def _is_matrix(analysis: Analysis, member: Member) -> bool:
    """Whether a member writes by more than a vector, which goes with what a matrix writes."""
    return member.role == "writer" and analysis.program.tensors[member.axis.tensor].ndim > 1


def masks_of_units(analysis: Analysis, gone: BoolArray) -> dict[str, Tensor]:
    """Masks of the vectors of units that nothing writes: biases, scales, shifts. Statistics stay."""
    found: dict[str, Tensor] = {}
    tensors = analysis.program.tensors
    for group in analysis.groups.values():
        for member in group.members if gone[group.where].any() else ():
            tensor = tensors[member.axis.tensor]
            places = member.positions[gone[group.where][member.units]]
            if tensor.ndim == 1 and member.role in ("writer", "carrier") and isinstance(tensor, nn.Parameter):
                stays = found.setdefault(member.axis.tensor, torch.ones(tensor.shape, dtype=torch.bool))
                stays[torch.from_numpy(places)] = False
    return found


def removable(analysis: Analysis, unwritten: BoolArray) -> dict[str, IntArray]:
    """Group -> the units that may go, since nothing writes or nothing reads them. What is counted stays, and of every
    group at least one."""
    gone = unwritten | (_unread(analysis) & _loose(analysis))
    for part in analysis.least:
        if int((~gone[part.units]).sum()) < part.count:
            gone[part.units] = False
    for units in analysis.covers:
        if gone[units].all():
            gone[units] = False
    found = {}
    for group in analysis.groups.values():
        units = np.flatnonzero(gone[group.where])
        units = units[1:] if units.size == group.size else units
        if units.size:
            found[group.name] = units
    return found


def _unread(analysis: Analysis) -> BoolArray:
    """[units]: of which all columns that read them are zero."""
    found = np.zeros(analysis.size, dtype=bool)
    for group in analysis.groups.values():
        read, known = np.zeros(group.size, dtype=bool), np.zeros(group.size, dtype=bool)
        for member in group.readers:
            if member.axis not in analysis.flow.by_group:
                known[member.units] = True
                read[member.units[~zero_rows(analysis.program, member.axis)[member.positions]]] = True
        found[group.where] = known & ~read
    return found
