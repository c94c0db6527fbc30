"""`select`: which units go, kept as the fact `selection`.

    - select: {ratio: 50%}                                    every group loses half of its units
    - select: {ratio: {"layer1.*": 10%, "layer2.*": 30%}}     by pattern; groups without one stay
    - select: {widths: {"features.conv1": 32}}                explicit widths
    - select: {budget: {macs: 50%}, scope: global}            the least important units of all groups, until it is met
    - select: {units: {conv1: [0, 3]}}                        spelled out, as a lock does
    - select: {from: sensitivity.csv, floor: -1pt}            as far as each group alone loses no more than that

Patterns name groups by their own name and by the modules that write them; the first pattern that means a group counts,
and `protect` wins over all of them.

A share of a budget is a share of what the traced model costs. A budget is met from below. `multiple_of` and
`keep_at_least` count channels; a group that loses nothing keeps its width, whatever that is.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from prunec.compiler.base import Context, Pass, PassResult
from prunec.compiler.errors import PassError
from prunec.compiler.ir import Program
from prunec.compiler.options import Fraction01
from prunec.compiler.parts import AnyPath
from prunec.compiler.patterns import chosen, matching
from prunec.compiler.units import Analysis, BoolArray, Group, analyse
from prunec.passes.ranking import Limits, Ranking, channels_of_a_unit, meet_budget, pack_size
from prunec.passes.sensitivity import Floor, kept_within

Resource = Literal["macs", "params"]


def _amount(value: object) -> object:
    """A share (`50%`, 0.5) or, above 1, an absolute number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 1 else value


Budget = Annotated[Fraction01 | Annotated[float, Field(gt=1)], BeforeValidator(_amount)]


WAYS: Final = {"ratio": "ratio", "widths": "widths", "budget": "budget", "units": "units", "from": "from_"}
"""What a plan says exactly one of -> the field that holds it."""


class Select(Pass):
    """Choose the units that are removed."""

    name: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"selection"})
    shorthand: ClassVar[str | None] = "ratio"

    ratio: Fraction01 | dict[str, Fraction01] | None = Field(
        default=None,
        description="the share of units that goes: of every group, or by pattern",
        examples=[{"layer1.*": 0.1}],
    )
    widths: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="the channels that stay, by pattern", examples=[{"features.conv1": 32}]
    )
    budget: dict[Resource, Budget] | None = Field(
        default=None,
        description="what may be left: a share of the traced model's, or an absolute number",
        examples=[{"macs": 0.5}],
    )
    units: dict[str, list[int]] | None = Field(default=None, description="the units that go, spelled out by group")
    from_: AnyPath | None = Field(
        default=None, alias="from", description="a file of `prunec sensitivity`, by which each group is cut"
    )
    floor: Floor = Field(default="-1pt", description="`from`: what each group alone may lose, -1pt or -2%")
    scope: Literal["global", "local"] = Field(
        default="global", description="`budget`: rank all groups' units together, or take the same share of every group"
    )
    keep_at_least: Annotated[int, Field(ge=1)] = Field(default=1, description="channels that every group keeps")
    multiple_of: Annotated[int, Field(ge=1)] = Field(
        default=1, description="a cut group keeps a multiple of so many channels"
    )
    protect: list[str] = Field(
        default=[], description="glob patterns of groups that stay whole, whatever else names them"
    )
    only: list[str] = Field(
        default=[], description="glob patterns of the groups that may be cut; all where none is named"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Select:
        given = [name for name, option in WAYS.items() if getattr(self, option) is not None]
        if len(given) != 1:
            said = "none of them" if not given else " and ".join(given)
            raise ValueError(f"must say exactly one of {', '.join(WAYS)}; got {said}")
        return self

    def required(self) -> frozenset[str]:
        """Scores, unless the units are spelled out."""
        return frozenset() if self.units is not None else frozenset({"scores"})

    def check(self, program: Program) -> None:
        """Every pattern means a group."""
        groups = analyse(program).groups
        for option in ("ratio", "widths", "protect", "only"):
            patterns = getattr(self, option)
            if isinstance(patterns, dict | list):
                matching(patterns, groups, option=option)
        if self.from_ is not None:
            kept_within(self.from_, self.floor, groups, groups)

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the fact `selection`: group -> removed units, sorted. Groups that lose nothing are left out."""
        analysis = analyse(program)
        if self.units is not None:
            selection = {name: np.unique(np.array(units, dtype=np.int64)) for name, units in self.units.items()}
            return PassResult(program.with_facts(selection=selection))
        keep = self._keep(analysis, program, context)
        selection = {g.name: np.flatnonzero(~keep[g.where]) for g in analysis.groups.values()}
        selection = {name: units for name, units in selection.items() if units.size}
        widths = {g.name: [g.size, int(keep[g.where].sum())] for g in analysis.groups.values()}
        return PassResult(program.with_facts(selection=selection), details={"widths": widths})

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The same units, spelled out."""
        units = {name: [int(u) for u in found] for name, found in result.program.facts["selection"].items()}
        return (Select(units=units),)

    def _keep(self, analysis: Analysis, program: Program, context: Context) -> BoolArray:
        limits = self._limits(analysis)
        ranking = Ranking.of(analysis, program.facts["scores"], limits)
        if self.budget is not None:
            return meet_budget(ranking, dict(self.budget.items()), self.scope, context.baseline)
        return ranking.cut(self._counts(analysis, ranking, limits.barred))

    def _limits(self, analysis: Analysis) -> Limits:
        barred = set(analysis.groups) - set(chosen(analysis.groups, self.only, self.protect))
        return Limits(frozenset(barred), self.keep_at_least, self.multiple_of)

    def _counts(self, analysis: Analysis, ranking: Ranking, barred: frozenset[str]) -> dict[str, int]:
        """How many units each group keeps."""
        if self.from_ is not None:
            return kept_within(self.from_, self.floor, analysis.groups, ranking.groups)
        if isinstance(self.ratio, float):
            return {name: kept_share(analysis.groups[name].size, self.ratio) for name in ranking.groups}
        option, wanted = ("widths", self.widths) if self.widths is not None else ("ratio", self.ratio)
        assert isinstance(wanted, dict)
        counts: dict[str, int] = {}
        for pattern, names in matching(wanted, analysis.groups, option=option).items():
            for name in (n for n in names if n not in barred):
                counts.setdefault(name, self._count(analysis, analysis.groups[name], pattern, wanted[pattern]))
        missing = [name for name in counts if name not in ranking.groups]
        if missing:
            raise PassError(
                f"group '{missing[0]}' can't be cut: {_why_not(analysis.groups[missing[0]])}", keys=(option,)
            )
        return counts

    def _count(self, analysis: Analysis, group: Group, pattern: str, wanted: float) -> int:
        if self.widths is None:
            return kept_share(group.size, wanted)
        each = channels_of_a_unit(group)
        step = each * pack_size(analysis, group)
        if wanted > group.size * each or wanted % step:
            fits = f"a multiple of {step} up to {group.size * each}" if step > 1 else f"at most {group.size}"
            message = f"widths: '{pattern}' asks for {wanted} channels of '{group.name}', which can have {fits}"
            raise PassError(message, keys=("widths", pattern))
        return int(wanted) // each


def _why_not(group: Group) -> str:
    reasons = sorted({reason for reason in group.pinned if reason})
    if not group.free.any():
        return reasons[0]
    return "the criterion gives it no scores"


def kept_share(size: int, ratio: float) -> int:
    """`int(size * (1 - ratio))`, the rounding of Li et al. (2017), unharmed by binary fractions."""
    return int(size * (1 - ratio) + 1e-9)
