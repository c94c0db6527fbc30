"""`greedy_l1`: norms that ignore what earlier layers lose (Li et al. 2017, the greedy strategy).

    conv1 loses filter 2      conv2's norms leave out column 2, conv2 loses filter 0, conv3's leave out column 0 ...

What is lost is decided here, group by group in the order of the graph, by the share that the plan is going to remove;
or it is the fact `selection`, where an earlier pass has chosen already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Group, Member, analyse
from prunec.compiler.groups.axis_rows import axis_rows
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.patterns import matching
from prunec.compiler.ir.program import Axis, BoolArray, FloatArray, Program
from prunec.compiler.plan.options import Fraction01
from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Criterion, Found, Setting, is_weight, numbers
from prunec.passes.selection.per_group import gone_now
from prunec.passes.selection.traced import whole_sizes


class GreedyL1(Criterion):
    """The sum of absolute weights, without the columns that read what earlier layers lose."""

    name: ClassVar[str] = "greedy_l1"

    ratio: Fraction01 | dict[str, Fraction01] | None = Field(
        default=None, description="the share of units that will go: of every group, or by pattern; else `selection`"
    )

    def required(self) -> frozenset[str]:
        """A selection, where no ratio says what goes."""
        return frozenset({"selection"}) if self.ratio is None else frozenset()

    def check(self, program: Program) -> None:
        """Raise `PassError` for a pattern that names no group."""
        if isinstance(self.ratio, dict):
            matching(self.ratio, analyse(program).groups, option="criterion")

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence of each writer. Raises `PassError` where neither a ratio nor a selection says what goes."""
        analysis, chosen = setting.analysis, setting.program.facts.get("selection", {})
        if self.ratio is None and not chosen:
            hint = "give it the ratio of the select that follows: criterion: {greedy_l1: {ratio: 50%}}"
            raise PassError("greedy_l1 needs to know what earlier layers lose", keys=("criterion",), hint=hint)
        ratios, wholes = self._ratios(setting), whole_sizes(analysis, setting.context.traced)
        lost = np.zeros(analysis.size, dtype=bool)
        for group in setting.groups:
            found = [e for member in setting.members(group) if (e := self._evidence(setting, member, lost))]
            yield from ((group.name, evidence) for evidence in found)
            if group.name in chosen:
                lost[group.start + np.asarray(chosen[group.name], dtype=np.int64)] = True
            elif found:
                count = gone_now(group.size, wholes[group.name], ratios.get(group.name, 0.0))
                lost[group.where] = _least(group, setting.join(group.size, found), count)

    def _ratios(self, setting: Setting) -> dict[str, float]:
        """The share of each group that goes; the first pattern that names a group counts."""
        if not isinstance(self.ratio, dict):
            return {group.name: self.ratio or 0.0 for group in setting.groups}
        ratios: dict[str, float] = {}
        named = matching(self.ratio, setting.analysis.groups, option="criterion")
        for pattern, names in named.items():
            for name in names:
                ratios.setdefault(name, self.ratio[pattern])
        return ratios

    def _evidence(self, setting: Setting, member: Member, lost: BoolArray) -> Evidence | None:
        program = setting.program
        if not is_weight(program, member):
            return None
        weight = program.tensors[member.axis.tensor].detach().abs()
        for axis in (Axis(member.axis.tensor, d) for d in range(weight.ndim) if d != member.axis.dim):
            weight = _without(setting, axis, weight, lost)
        figures = numbers(axis_rows(program, member.axis, weight).sum(1))
        return Evidence(str(member.axis), member.units, figures[member.positions])


def _without(setting: Setting, axis: Axis, weight: torch.Tensor, lost: BoolArray) -> torch.Tensor:
    """The weight with zeros where the units of another of its axes are lost."""
    binding = setting.analysis.flow.bindings.get(axis)
    if binding is None:
        return weight
    units = setting.analysis.units(binding.labels)
    gone = torch.from_numpy((units != NO_UNIT) & np.append(lost, False)[units]).to(weight.device)
    size = weight.shape[axis.dim]
    if gone.numel() == size:
        shape = [size if d == axis.dim else 1 for d in range(weight.ndim)]
        return weight.masked_fill(gone.reshape(shape), 0)
    blocks = gone.reshape(-1, 1, size, *[1] * (weight.ndim - 2))  # grouped: one row of positions a group
    grouped = weight.reshape(len(blocks), -1, *weight.shape[1:])
    return grouped.masked_fill(blocks, 0).reshape(weight.shape)


def _least(group: Group, scores: FloatArray, count: int) -> BoolArray:
    """The `count` free units with the smallest scores; one always stays."""
    count = min(count, group.size - 1, int(group.free.sum()))
    order = np.argsort(np.where(group.free, scores, np.inf), kind="stable")[:count]
    lost = np.zeros(group.size, dtype=bool)
    lost[order] = True
    return lost
