"""`select`: which units go, kept as the fact `selection`.

    - select: {ratio: 50%}                                    every group loses half of its units
    - select: {ratio: {"layer3.5.*": 0%, "layer[34].*": 30%}} by stage; groups without a pattern stay
    - select: {ratio: 70%, scope: global}                     one threshold for all groups, at 70% of all scores
    - select: {widths: {"features.conv1": 32}}                explicit widths
    - select: {threshold: 0.005}                              units whose score is under it go
    - select: {budget: {macs: 50%}}                           the least important units of all groups, until it is met
    - select: {budget: {params: 1.2M, memory: 60%}, method: knapsack}
    - select: {budget: {latency: 5ms}, method: greedy, cost_weight: {macs: 0.001}}
    - select: {budget: {latency: {ncnn: 50%}}}                in the runtime of that target, measured on this machine
    - select: {budget: {file_size: 2MB}, multiple_of: ncnn, equal_widths: ["layer1.*"], heads_at_least: 2}
    - select: {from: sensitivity.csv, floor: -1pt}            as far as each group alone loses no more than that
    - select: {budget: {macs: 50%}, at_most: 16}              of these no more than 16, in this round
    - select: {units: {conv1: [0, 3]}}                        spelled out, as a lock does

Patterns name groups by their own name, by the modules that write them, and by kinds (`kind:depthwise`, see
`prunec.compiler.groups.patterns`); the first pattern that means a group counts, and `protect` wins over all of them.

With `scope: global` a ratio is a percentile, as in network slimming: the score at position int(units * ratio) is the
threshold, and what isn't above it goes, ties too. Scores should be comparable as they are (`normalize: none`).

Every share is one of the traced model, also in a later round: `ratio: 50%` behind `ratio: 25%` leaves half of the
original units, and 15, 30, 45, 60, 75% are five rounds to a quarter. What `ratio` leaves is rounded down: of 10 units,
`25%` leaves 7. `take_at_most` alone is a share of what a group has now: what one round may take of it (the guard of
network slimming in several passes is 50%). A share of a budget is a share of what the traced model uses. All budgets
are met from below, and filled up: no step that was taken back would still fit. `multiple_of`, `keep_at_least` and
`equal_widths` count channels; a group that loses nothing keeps its width, whatever that is.

With a budget, a cut group keeps a multiple of the channels that the runtime of the plan's export prefers (PyTorch,
where there is none), or the one that a latency names, so that what comes out is as much faster as it is smaller
(`selection/paying.py`).
`multiple_of: 1` turns that off, and `at_most` does. Ratios, widths, thresholds and units are taken at their word.

Inside `repeat`, a `select` that says none of these leaves the amount to the round; its other options count.

`knapsack`, and `greedy` with `per_cost`, add scores up or divide them by costs. That is for losses: `fisher_gate`,
`gate`, `oracle`, and those that `taylor` comes of. With norms, and with what a plan normalises, they empty the layers
whose units cost most, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from prunec.compiler.cost.resource import LATENCY, runtime_of
from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.patterns import matching
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Allowance, Context, Pass, PassResult
from prunec.compiler.plan.entries import INSIDE
from prunec.compiler.plan.options import Fraction01, wrong
from prunec.compiler.plan.schema import AnyPath
from prunec.passes.selection.amounts import (
    Budgets,
    Channels,
    Multiple,
    Prices,
    amount,
    each_value,
    fits,
    multiple,
)
from prunec.passes.selection.budgets import Lifted, check_reach, meet, problem_of
from prunec.passes.selection.curves import Floor, kept_within
from prunec.passes.selection.limits import Limits, by_group, least_heads, tied_groups, units_of_a_row
from prunec.passes.selection.paying import Multiples, met_by_paying_widths
from prunec.passes.selection.per_group import Way, by_counts, by_ratio, by_threshold, by_widths
from prunec.passes.selection.percentile import by_percentile
from prunec.passes.selection.ranking import Ranking
from prunec.passes.selection.selectors import SELECTORS, Wishes, structures
from prunec.passes.selection.traced import whole_sizes
from prunec.passes.shrink import kept_units

WAYS: Final = {
    "ratio": "ratio",
    "widths": "widths",
    "threshold": "threshold",
    "budget": "budget",
    "from": "from_",
    "units": "units",
}
"""What a plan says exactly one of -> the field that holds it."""
_PATTERNED: Final = ("ratio", "widths", "threshold")
"""Ways whose amounts may be given by pattern."""
LIMITS: Final = (
    "protect",
    "only",
    "keep_at_least",
    "remove_at_most",
    "take_at_most",
    "multiple_of",
    "equal_widths",
    "heads_at_least",
)
"""Options that keep units from being removed."""
_SERVES: Final = {
    "scope": ("budget", "ratio"),
    **dict.fromkeys(("method", "cost_weight", "per_cost", "at_most", "may_fall_short"), ("budget",)),
    "floor": ("from",),
}
"""Option -> the ways that it belongs to; with another way it is refused."""


def _method(value: object) -> object:
    if not isinstance(value, str) or value not in SELECTORS.names():
        raise wrong(f"must be one of {', '.join(SELECTORS.names())}", hint=nearest(str(value), SELECTORS.names()))
    return value


Method = Annotated[str, BeforeValidator(_method)]


class Select(Pass):
    """Choose the units that are removed."""

    name: ClassVar[str] = "select"
    gives: ClassVar[frozenset[str]] = frozenset({"selection"})
    shorthand: ClassVar[str | None] = "ratio"

    ratio: Fraction01 | dict[str, Fraction01] | None = Field(
        default=None,
        description="the share of the traced model's units that is gone then: of every group, or by pattern; "
        "what stays is rounded down",
        examples=[{"layer1.*": 0.1}],
    )
    widths: dict[str, Channels] | None = Field(
        default=None, description="the channels that stay, by pattern", examples=[{"features.conv1": 32}]
    )
    threshold: float | dict[str, float] | None = Field(
        default=None, description="units whose score is under it go: of every group, or by pattern", examples=[0.005]
    )
    budget: Budgets | None = Field(
        default=None,
        min_length=1,
        description="what may be left: a share of the traced model's, or an amount, by resource",
        examples=[{"macs": 0.5, "file_size": "2MB"}],
    )
    from_: AnyPath | None = Field(
        default=None, alias="from", description="a file of `prunec sensitivity`, by which each group is cut"
    )
    floor: Floor = Field(default="-1pt", description="`from`: what each group alone may lose, -1pt or -2%")
    units: dict[str, list[int]] | None = Field(default=None, description="the units that go, spelled out by group")
    method: Method = Field(default="ranking", description="`budget`: how it is met: by ranking, greedy or knapsack")
    scope: Literal["global", "local", "isomorphic"] = Field(
        default="global",
        description="`ranking`: rank all units together; or take the same share of every group (local), "
        "or of all groups of one structure, whose units compete with each other alone (isomorphic). "
        "`ratio`: one threshold for all units, or for those of one structure; local where nothing is said",
    )
    cost_weight: Prices = Field(
        default={},
        description="`greedy`: score given up for a million of what a unit costs now (a ms for latency)",
        examples=[{"macs": 0.001}],
    )
    per_cost: bool = Field(default=False, description="`greedy`: go by the score per share of the budget")
    at_most: int | None = Field(
        default=None,
        ge=1,
        description="`ranking`, `greedy`: so many units go and no more, whatever the budget asks; one step in any case",
    )
    may_fall_short: bool = Field(
        default=False, description="`budget`: where it is out of reach, take all that may go and warn, don't fail"
    )
    keep_at_least: Channels | dict[str, Channels] = Field(
        default=1, description="channels that a group keeps: every group, or by pattern"
    )
    remove_at_most: Fraction01 | dict[str, Fraction01] | None = Field(
        default=None,
        description="the share of the traced model's units that may be gone: of every group, or by pattern; "
        "rounded down",
    )
    take_at_most: Fraction01 | dict[str, Fraction01] | None = Field(
        default=None,
        description="the share of the units that a group has now that may go: of every group, or by pattern; "
        "rounded down",
    )
    multiple_of: Multiple | dict[str, Multiple] | None = Field(
        default=None,
        description="a cut group keeps a multiple of so many channels, or of what a target runtime prefers; with a "
        "budget, by default of what the plan's export prefers, where that pays; 1 turns it off",
    )
    equal_widths: list[str] = Field(
        default=[], description="glob patterns: the groups that one of them means keep equally many channels"
    )
    heads_at_least: Channels | None = Field(
        default=None, description="heads that every attention keeps, where its units are heads"
    )
    protect: list[str] = Field(
        default=[], description="glob patterns of groups that stay whole, whatever else names them"
    )
    only: list[str] = Field(
        default=[], description="glob patterns of the groups that may be cut; all where none is named"
    )

    @model_validator(mode="after")
    def _one_way(self, info: ValidationInfo) -> Select:
        given = [name for name, option in WAYS.items() if getattr(self, option) is not None]
        is_open = not given and bool((info.context or {}).get(INSIDE))
        if len(given) != 1 and not is_open:
            said = "none of them" if not given else " and ".join(given)
            raise ValueError(f"must say exactly one of {', '.join(WAYS)}; got {said}")
        way = "budget" if is_open else given[0]
        for option, ways in _SERVES.items():
            if option in self.model_fields_set and way not in ways:
                raise wrong(f"must not name '{option}' without {' or '.join(repr(way) for way in ways)}")
        if isinstance(self.ratio, Mapping) and "scope" in self.model_fields_set:
            raise wrong("must not name 'scope' with ratios by pattern, which are shares of every group")
        for name, text in (self.budget or {}).items():
            fits(name, text)
        if (self.cost_weight or self.per_cost) and self.method != "greedy":
            raise wrong("must not name 'cost_weight' or 'per_cost' for a method other than greedy")
        if self.scope != "global" and self.method in ("greedy", "knapsack"):
            raise wrong(f"must not name 'scope: {self.scope}' for the method {self.method}: only ranking has scopes")
        return self._checked_steps()

    def _checked_steps(self) -> Select:
        if self.at_most is not None and not SELECTORS.named(self.method).in_steps:
            raise wrong(f"must not name 'at_most' for the method {self.method}, which doesn't go step by step")
        return self

    @property
    def is_open(self) -> bool:
        """Whether the amount is left to the round of the pass that holds this one."""
        return all(getattr(self, option) is None for option in WAYS.values())

    def in_round(self, allowance: Allowance) -> Pass:
        """The pass with the round's budget, unless it says itself how much goes."""
        if not self.is_open:
            return self
        at_most = self.at_most if allowance.at_most is None else allowance.at_most
        given = {"budget": dict(allowance.left), "at_most": at_most, "may_fall_short": True}
        return self.model_copy(update=given)._checked_steps()

    def resources(self) -> frozenset[str]:
        """The resources that have a budget or a price (`cost_weight`)."""
        return frozenset({*(self.budget or {}), *self.cost_weight})

    def required(self) -> frozenset[str]:
        """Scores, unless the units are spelled out."""
        return frozenset() if self.units is not None else frozenset({"scores"})

    def check(self, program: Program) -> None:
        """Raise PassError for what no scores could give: unknown patterns and units, widths that a group can't have,
        budgets out of reach."""
        groups = analyse(program).groups
        for option in (*_PATTERNED, *LIMITS):
            patterns = getattr(self, option)
            if isinstance(patterns, dict | list):
                matching(patterns, groups, option=option)
        tied_groups(analyse(program), self.equal_widths)
        if self.from_ is not None:
            kept_within(self.from_, self.floor, groups, groups)
        if self.units is not None:
            self._check_units(program, self.units)
            return
        scored = _unscored(program)
        if self.budget is None:
            self._way(scored, Context())
            return
        ranking = self.ranking(scored)
        if self.may_fall_short:
            return
        if known := self._known_budget():
            check_reach(problem_of(ranking, known, Wishes(), Context()), self._lifted(scored))
        for name in self.budget.keys() - known.keys():
            latency = amount(self.budget[name])
            if not ranking.unit.size and latency.unit == "share" and latency.value < 1:
                message = f"the budget can't be met: {name} {latency.value:.1%}, but no unit may go"
                raise PassError(message, keys=("budget", LATENCY), hint="`prunec explain` says why each is pinned")

    def expected(self, program: Program) -> Mapping[str, Any]:
        """`expected_selection`, [units]: which stay even where all go that may."""
        if self.units is not None:  # in a later round their numbers are those of a program that isn't known
            return {"expected_selection": None}
        ranking = self.ranking(_unscored(program))
        return {"expected_selection": ranking.keep(ranking.steps.levels)}

    def check_later(self, program: Program) -> None:
        """Raise PassError for a budget that isn't met even where this and all earlier selections take what they may."""
        known = self._known_budget()
        left = program.facts.get("expected_left")
        if known and left is not None and not self.may_fall_short:
            scored = _unscored(program)
            problem = problem_of(self.ranking(scored), known, Wishes(), Context())
            check_reach(problem, self._lifted(scored), gone=~left)

    def remarks(self, program: Program) -> Iterator[Note]:
        """That a budget is out of reach which may be missed."""
        if self.may_fall_short and (known := self._known_budget()):
            scored = _unscored(program)
            try:
                check_reach(problem_of(self.ranking(scored), known, Wishes(), Context()), self._lifted(scored))
            except PassError as error:
                yield Note("budget", f"{error.message}; {error.hint}")

    def _known_budget(self) -> dict[str, float | str]:
        """The budgets but latency's, which has to be measured."""
        return {name: amount for name, amount in (self.budget or {}).items() if runtime_of(name) is None}

    def _check_units(self, program: Program, units: Mapping[str, Sequence[int]]) -> None:
        try:
            kept_units(analyse(program), units)
        except PassError as error:
            raise PassError(error.message, keys=("units",), hint=error.hint) from error

    def _lifted(self, program: Program, traced: Program | None = None) -> Lifted:
        """The queues without each of the limits."""
        set_ones = [limit for limit in LIMITS if getattr(self, limit) != getattr(self.without(limit), limit)]
        return {limit: partial(self.without(limit).ranking, program, traced) for limit in set_ones}

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the fact `selection`: group -> removed units, sorted. Groups that lose nothing are left out."""
        if self.units is not None:
            selection = {name: np.unique(np.array(units, dtype=np.int64)) for name, units in self.units.items()}
            return PassResult(program.with_facts(selection=selection))
        way = self._way(self._weighed(program, context), context)
        analysis, keep = way.ranking.analysis, way.ranking.keep(way.levels)
        gone = np.bincount(analysis.group_of[~keep], minlength=len(analysis.groups)).tolist()
        cut = [group for group, count in zip(analysis.groups.values(), gone, strict=True) if count]
        selection = {group.name: np.flatnonzero(~keep[group.where]) for group in cut}
        widths = {g.name: [g.size, g.size - count] for g, count in zip(analysis.groups.values(), gone, strict=True)}
        details = {"widths": widths, **way.details}
        warnings = self._warnings(program, context)
        if way.falls_short is not None:
            details["falls_short"] = way.falls_short.hint
            if context.round is None:  # else the rounds tell what they were meant to reach
                warnings = (f"select: {way.falls_short.message}; {way.falls_short.hint}", *warnings)
        return PassResult(program.with_facts(selection=selection), way.notes, details, warnings)

    def _adds(self, context: Context) -> bool:
        return self.budget is not None and SELECTORS.named(self.method)().adds(self._wishes(context))

    def _weighed(self, program: Program, context: Context) -> Program:
        """The program with what the method works on: scores, or the losses that they come of if it adds up."""
        losses = getattr(program.facts["scores"], "losses", None)
        return program.with_facts(scores=losses) if losses and self._adds(context) else program

    def _wishes(self, context: Context) -> Wishes:
        return Wishes(self.scope, self.cost_weight, self.per_cost, self.at_most, context.progress)

    def _warnings(self, program: Program, context: Context) -> tuple[str, ...]:
        """What is wrong with scores that a method adds up; scores of unknown kind are taken for losses."""
        doubt = getattr(program.facts["scores"], "doubt", "")
        if not doubt or not self._adds(context):
            return ()
        does = "'per_cost' divides scores by costs" if self.per_cost else f"'method: {self.method}' adds scores up"
        return (
            f"select: {does}, and these don't add up to a loss ({doubt}): it empties the layers whose units cost most; "
            "score by fisher_gate, taylor or another loss, without 'normalize', or take 'method: ranking'",
        )

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The pass with its units spelled out."""
        units = {name: [int(u) for u in found] for name, found in result.program.facts["selection"].items()}
        return (Select(units=units),)

    def limits(self, program: Program, traced: Program | None = None, paying: Multiples | None = None) -> Limits:
        """The constraints, worked out for every group; shares are of the `traced` model, or of the program itself.

        `paying` are multiples by group that hold where the plan says none. Raises `PassError` for patterns that name no
        group.
        """
        analysis = analyse(program)
        groups = analysis.groups
        named = {n for names in matching(self.only, groups, option="only").values() for n in names}
        only = named if self.only else set(groups)
        protected = {n for names in matching(self.protect, groups, option="protect").values() for n in names}
        said = each_value(self.multiple_of, multiple)
        wanted = paying if said is None else by_group(said, groups, "multiple_of")
        return Limits(
            frozenset(groups) - (only - protected),
            by_group(self.keep_at_least, groups, "keep_at_least"),
            by_group(self.remove_at_most, groups, "remove_at_most"),
            by_group(self.take_at_most, groups, "take_at_most"),
            wanted or {},
            least_heads(analysis, self.heads_at_least),
            tied_groups(analysis, self.equal_widths),
            units_of_a_row(analysis) if wanted else {},
            whole_sizes(analysis, traced),
        )

    def without(self, limit: str) -> Select:
        """The pass without one of its LIMITS."""
        return self.model_copy(update={limit: type(self).model_fields[limit].default})

    def ranking(self, program: Program, traced: Program | None = None, paying: Multiples | None = None) -> Ranking:
        """The queues of the units that may go; shares are of the `traced` model, or of the program itself. `paying` as
        for `limits`."""
        scores = program.facts["scores"]
        _check_scores(analyse(program), scores)
        return Ranking.of(analyse(program), scores, self.limits(program, traced, paying))

    def _met(self, program: Program, context: Context, budget: Mapping[str, float | str]) -> Way:
        """The budget is met, by widths that pay where the plan says nothing of them."""
        method, others = SELECTORS.named(self.method)(), self._lifted(program, context.traced)

        def met(paying: Multiples | None) -> Way:
            ranking = self.ranking(program, context.traced, paying)
            short = self.may_fall_short and paying is None
            return meet(ranking, budget, method, self._wishes(context), context, others, may_fall_short=short)

        named = (runtime_of(name) for name in budget if name != LATENCY)
        runtime = next(filter(None, named), context.runtime)
        if self.multiple_of is not None or self.at_most is not None or runtime is None:
            return met(None)
        errors = bool(getattr(program.facts["scores"], "remaining", {}))
        return met_by_paying_widths(analyse(program), runtime, met, errors=errors)

    def _way(self, program: Program, context: Context) -> Way:
        if self.budget is not None:
            return self._met(program, context, self.budget)
        ranking = self.ranking(program, context.traced)
        if self.widths is not None:
            return by_widths(ranking, self.widths)
        if self.threshold is not None:
            return by_threshold(ranking, self.threshold)
        if self.from_ is not None:
            return by_counts(ranking, kept_within(self.from_, self.floor, ranking.analysis.groups, ranking.groups))
        assert self.ratio is not None, "exactly one way is given"
        if isinstance(self.ratio, Mapping) or "scope" not in self.model_fields_set or self.scope == "local":
            return by_ratio(ranking, self.ratio)
        together = np.zeros(ranking.count, dtype=np.int64) if self.scope == "global" else structures(ranking)
        return by_percentile(ranking, program.facts["scores"], self.ratio, together)


def _unscored(program: Program) -> Program:
    """The program with scores that say nothing, for what holds whatever the scores are."""
    groups = analyse(program).groups.values()
    return program.with_facts(scores={group.name: np.zeros(group.size) for group in groups})


def _check_scores(analysis: Analysis, scores: object) -> None:
    """Raise PassError where the scores that a pass, or a program's text, gives aren't a number for each unit."""
    if not isinstance(scores, Mapping):
        raise PassError("the scores must be lists of numbers by group")
    for name, found in scores.items():
        group, numbers = analysis.groups.get(name), np.asarray(found)
        if group is not None and (numbers.shape != (group.size,) or numbers.dtype.kind not in "iuf"):
            raise PassError(f"the scores of '{name}' must be {group.size} numbers, one a unit")
