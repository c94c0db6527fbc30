"""The contract of a criterion: a small frozen object that says how important each unit of each group is.

    class Heaviest(AxisCriterion):
        \"\"\"The largest weight.\"\"\"
        name = "heaviest"
        power: float = 1.0                            # an option: criterion: {heaviest: {power: 2}}

        def figures(self, setting, member):           # a number for each position of the axis
            return numbers(axis_rows(setting.program, member.axis).abs().amax(1) ** self.power)

A package adds one by an entry point of the group `prunec.criteria`. A criterion that has no axis to go by, or looks at
data, implements `weigh` instead and gives evidence of any kind. The pass `score` joins and normalises it
(`criteria/aggregates.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from prunec.compiler.data import Batch
from prunec.compiler.groups.analysis import Analysis, Group, Member, analyse
from prunec.compiler.groups.interchangeable import pacesetter
from prunec.compiler.ir.program import Axis, FloatArray, Program
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
"""A plan's option `axes` -> the roles of the axes that it means."""


@dataclass(frozen=True)
class Setting:
    """What a criterion is given: the groups of a program, the data, and the plan's options."""

    program: Program
    groups: tuple[Group, ...]
    context: Context = field(default_factory=Context)
    calibration: Calibration = field(default_factory=Calibration)
    axes: str = "writers"
    aggregate: str = "mean"
    memo: dict[str, Any] = field(default_factory=dict)
    """What a criterion remembers from one axis to the next; under `notes`, what it has to say besides."""

    @property
    def analysis(self) -> Analysis:
        """The program's units and groups."""
        return analyse(self.program)

    def members(self, group: Group, roles: Sequence[str] | None = None) -> Iterator[Member]:
        """The group's axes of these roles (by default of `axes`), each once; for `first`, the pacesetter's first.

        Of a group with units that no weight reads (queries and keys, which read each other), `readers` means writers;
        of what a reader selects, which nothing writes for it alone, `writers` means readers.
        """
        axes = "readers" if group.incoming else self.axes
        axes = "writers" if axes == "readers" and not group.incoming and not self._is_read(group) else axes
        wanted = ROLES[axes] if roles is None else roles
        found = group.writers if tuple(wanted) == ("writer",) else group.members
        asked: dict[Axis, list[Member]] = {}
        for member in (member for member in found if member.role in wanted):
            asked.setdefault(member.axis, []).append(member)
        ordered = [members[0] for members in asked.values()]
        if self.aggregate == "first" and len(ordered) > 1:
            first = pacesetter(self.analysis, group.writers).axis
            ordered.sort(key=lambda member: member.axis != first)
        yield from ordered

    def _is_read(self, group: Group) -> bool:
        """Whether weights read every unit that may go."""
        read = np.zeros(group.size, dtype=bool)
        for member in group.readers:
            if is_weight(self.program, member):
                read[member.units] = True
        return bool(read[group.free].all())

    def split(self, source: str, figures: FloatArray, losses: FloatArray | None = None) -> Iterator[Found]:
        """Figures about all units of the program, [units], as evidence about each group; NaN is left out."""
        for group in self.groups:
            mine = figures[group.where]
            known = np.flatnonzero(~np.isnan(mine))
            if known.size:
                beside = None if losses is None else losses[group.where][known]
                yield group.name, Evidence(source, known, mine[known], beside)

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
    """The axes that it looks at by default."""
    normalize: ClassVar[str] = "mean"
    """What makes its scores comparable between groups by default. `none` is for figures in one unit for the whole
    network (of the loss, a share, bits); a norm of weights or a mean of activations has its layer's scale."""
    aggregate: ClassVar[str] = "mean"
    """What joins a unit's figures by default. Losses are summed: each place where a unit is seen adds its own."""
    losses: ClassVar[bool] = False
    """Whether its figures are what the loss changes by when a unit goes, estimated or measured: only such scores may be
    added up over units of all groups, or compared with what units cost."""

    def required(self) -> frozenset[str]:
        """The facts that it needs, given its options."""
        return frozenset()

    def check(self, program: Program) -> None:
        """Raise `PassError` for options that name what the program doesn't have."""
        return

    def ready(self, setting: Setting) -> None:
        """Raise what `weigh` would raise for want of data, labels or a package; it is asked before any pass runs.

        Where the criterion looks at data, the first samples are run through the model, and held against `fits`.
        """
        if self.data:
            piece, outputs = setting.calibration.first(setting.program, setting.context)
            self.fits(setting, piece, outputs)

    def fits(self, setting: Setting, piece: Batch, outputs: Any) -> None:
        """Raise `DataError` where the labels of samples, or the model's outputs for them, aren't what it needs."""
        return

    @abstractmethod
    def weigh(self, setting: Setting) -> Iterable[Found]:
        """Evidence about units, of the larger figures for the more important ones. Groups may be left out."""


class LossCriterion(Criterion):
    """A criterion that looks at the loss of samples."""

    data: ClassVar[bool] = True
    single: ClassVar[bool] = False
    """Whether it needs the loss of each sample of a batch: then a loss that gives one number for all won't do."""

    def fits(self, setting: Setting, piece: Batch, outputs: Any) -> None:
        """Raise `DataError` where the loss can't be taken."""
        self.loss(setting, outputs, piece)

    def loss(self, setting: Setting, outputs: Any, piece: Batch) -> torch.Tensor:
        """The summed loss of a piece. Of single samples, it is one whose gradient at a sample is that of its own loss.

        Raises `DataError` where the loss can't be taken.
        """
        loss = setting.calibration.loss
        return (
            loss.each(outputs, piece, f"the criterion {self.name}").sum() if self.single else loss.total(outputs, piece)
        )


class AxisCriterion(Criterion):
    """A criterion that looks at one axis at a time."""

    roles: ClassVar[tuple[str, ...] | None] = None
    """The roles of the axes that it looks at, where these aren't the plan's choice."""

    @abstractmethod
    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """A number for each position of the member's axis, [positions]; None where the axis tells nothing."""

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence from each axis. An axis that several groups share is looked at once."""
        known: dict[tuple[Axis, str], FloatArray | None] = {}
        for group in setting.groups:
            for member in setting.members(group, self.roles):
                key = member.axis, member.role
                if key not in known:
                    known[key] = self.figures(setting, member)
                if (figures := known[key]) is not None:
                    yield group.name, Evidence(str(member.axis), member.units, figures[member.positions])


def numbers(values: torch.Tensor) -> FloatArray:
    """A tensor as a numpy array in float64."""
    if values.dtype is torch.float32:
        return values.numpy(force=True).astype(np.float64)
    return np.asarray(values.detach().double().cpu().numpy(), dtype=np.float64)


def is_weight(program: Program, member: Member) -> bool:
    """Whether the member is an axis of a weight: vectors (biases, batch norm's four) have no filter norms."""
    return program.tensors[member.axis.tensor].ndim > 1
