"""Groups of the same structure: what writes, carries and reads their channels is alike, whatever the widths.

    layer1.0.conv1     written by a 3x3 Conv2d, carried by a BatchNorm2d, read by a 3x3 Conv2d       one class with
    layer3.1.conv1     the same, four times as wide                                                   each other
    the stream of layer1    written by a Conv2d for each block, ...                                   another class

Two residual streams are alike if they have equally many blocks of the same kind. Scores of units compare within a class
without any normalisation: they are figures of the same kind, about the same layers. (Fang et al. 2024 call it
isomorphic pruning.)
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from torch import nn

from prunec.compiler.groups.analysis import Analysis, Group, Member

Structure: TypeAlias = frozenset[tuple[tuple[object, ...], int]]
"""How many axes of each kind a group has."""


def isomorphic_classes(analysis: Analysis) -> dict[str, int]:
    """Group -> the number of its class; groups of one structure share it."""
    numbers: dict[Structure, int] = {}
    return {g.name: numbers.setdefault(structure(analysis, g), len(numbers)) for g in analysis.groups.values()}


def structure(analysis: Analysis, group: Group) -> Structure:
    """What a group consists of, without names and widths: for each axis its role, its layer's class and form, and its
    kernel."""
    return frozenset(Counter(_kind(analysis, member) for member in group.members).items())


def _kind(analysis: Analysis, member: Member) -> tuple[object, ...]:
    axis, program = member.axis, analysis.program
    module, shape = program.state.get(axis.owner), tuple(program.tensors[axis.tensor].shape)
    if not isinstance(module, nn.Module):
        return member.role, "", axis.dim, len(shape)
    form = "" if not isinstance(module, nn.modules.conv._ConvNd) else _form(module)
    field = axis.tensor.rpartition(".")[2]
    return member.role, type(module).__qualname__, field, axis.dim, form, shape[2:]


def _form(conv: nn.modules.conv._ConvNd) -> str:
    """Whether each channel has a kernel of its own, or blocks of them, or all are mixed."""
    return "dense" if conv.groups == 1 else "depthwise" if conv.groups == conv.in_channels else "grouped"
