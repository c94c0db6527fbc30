"""The contract of a criterion: a small frozen object that says how important each unit of each group is.

    class Heaviest(AxisCriterion):
        \"\"\"The largest weight.\"\"\"
        name = "heaviest"
        power: float = 1.0                            # an option: criterion: {heaviest: {power: 2}}

        def figures(self, setting, member):           # a number for each position of the axis
            return numbers(axis_rows(setting.program, member.axis).abs().amax(1) ** self.power)

A package adds one by an entry point of the group `prunec.criteria`. A criterion that has no axis to go by, or looks at
data, implements `weigh` instead and gives evidence of any kind; joining and normalising it isn't its business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from prunec.compiler.groups.analysis import Analysis, FloatArray, Group, Member, analyse
from prunec.compiler.groups.interchangeable import pacesetter
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.criteria.aggregates import AGGREGATES, Evidence

Found = tuple[str, Evidence]
"""A group's name, and evidence about its units."""

ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "writers": ("writer",),
    "readers": ("reader",),
    "all": ("writer", "reader"),
}
"""The roles of the axes that an option `axes` means."""


@dataclass(frozen=True)
class Setting:
    """What a criterion is asked: about which groups of which program, with which data."""

    program: Program
    groups: tuple[Group, ...]
    context: Context = field(default_factory=Context)
    calibration: Calibration = field(default_factory=Calibration)
    axes: str = "writers"
    aggregate: str = "mean"
    memo: dict[str, Any] = field(default_factory=dict)
    """What a criterion keeps from one axis to the next."""

    @property
    def analysis(self) -> Analysis:
        """The program's units and groups."""
        return analyse(self.program)

    def members(self, group: Group, roles: Sequence[str] | None = None) -> Iterator[Member]:
        """The group's axes of these roles, by default those asked about, once each; the pacesetter comes first where
        the first one's word is what counts."""
        wanted = ROLES[self.axes] if roles is None else roles
        found = group.writers if tuple(wanted) == ("writer",) else group.members
        asked: dict[Axis, list[Member]] = {}
        for member in (member for member in found if member.role in wanted):
            asked.setdefault(member.axis, []).append(member)
        ordered = [members[0] for members in asked.values()]
        if self.aggregate == "first" and len(ordered) > 1:
            first = pacesetter(self.analysis, group.writers).axis
            ordered.sort(key=lambda member: member.axis != first)
        yield from ordered

    def split(self, source: str, figures: FloatArray) -> Iterator[Found]:
        """Figures about all units of the program, [units], as evidence about each group; NaN says nothing."""
        for group in self.groups:
            mine = figures[group.where]
            known = np.flatnonzero(~np.isnan(mine))
            if known.size:
                yield group.name, Evidence(source, known, mine[known])

    def join(self, size: int, evidence: Sequence[Evidence]) -> FloatArray:
        """A group's evidence as one score a unit."""
        return AGGREGATES[self.aggregate](size, evidence)


class Criterion(BaseModel, ABC):
    """The base of every criterion; see the module's text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    data: ClassVar[bool] = False
    """Whether it looks at the plan's data."""
    axes: ClassVar[str] = "writers"
    """The axes that it looks at where the plan doesn't say."""
    normalize: ClassVar[str] = "mean"
    """What makes its scores comparable between groups where the plan doesn't say. `none` is for figures in one unit for
    the whole network (of the loss, a share, bits); a norm of weights or a mean of activations has its layer's scale."""

    @abstractmethod
    def weigh(self, setting: Setting) -> Iterable[Found]:
        """Evidence about units, of the larger figures for the more important ones. Groups may be left out."""


class AxisCriterion(Criterion):
    """A criterion that looks at one axis at a time."""

    roles: ClassVar[tuple[str, ...] | None] = None
    """The roles of the axes it looks at, where that isn't the plan's to say."""

    @abstractmethod
    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """A number for each position of the member's axis, [positions]; None where there is nothing to go by."""

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Each axis's figures, found once however many groups it reads."""
        known: dict[tuple[Axis, str], FloatArray | None] = {}
        for group in setting.groups:
            for member in setting.members(group, self.roles):
                key = member.axis, member.role
                if key not in known:
                    known[key] = self.figures(setting, member)
                if (figures := known[key]) is not None:
                    yield group.name, Evidence(str(member.axis), member.units, figures[member.positions])


def numbers(values: torch.Tensor) -> FloatArray:
    """A tensor as an array of doubles."""
    return np.asarray(values.detach().double().cpu().numpy(), dtype=np.float64)


def is_weight(program: Program, member: Member) -> bool:
    """Vectors (biases, batch norm's four) say nothing about a filter's norm."""
    return program.tensors[member.axis.tensor].ndim > 1
