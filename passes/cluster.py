"""Find clusters of channels that are to become one: the units that `merge` joins, or that training pulls together.

    - cluster: {ratio: 25%}                                        k-means on the kernels, a quarter of the units less
    - cluster: {method: even, widths: {"layer1.*": 12}}            runs of neighbours, 12 clusters in each group
    - cluster: {method: identical}                                 whatever is equal already
    - cluster: {method: given, clusters: {conv1: [[0, 3], [1, 2]]}}
    - cluster: {budget: {macs: 40%}}                               the same share of every group, until that is met

Inside `repeat`, `ratio` and `widths` may be lists with a value for each round, of which the last holds for all further
rounds; every ratio is one of the traced model. A `cluster` that says none of these takes the budget of its round.

    - repeat: {steps: 3, passes: [{cluster: {ratio: [18.75%, 31.25%, 37.5%]}}, {centripetal: 600}, merge]}
    - repeat: {steps: 3, to: {macs: 40%}, passes: [cluster, {centripetal: 600}, merge]}
    - repeat: {each: 16, to: {macs: 40%}, passes: [cluster, {centripetal: 20}, merge]}        16 units less a round

The fact `clusters` holds, by group, every cluster of two units or more: sorted, by their smallest unit. A unit that
stays alone isn't listed, nor is a group in which all do.

Writers that are coupled (all convolutions that add to one residual stream) share their clusters. These come from the
kernels of the *pacesetter*, the writer that is least deep: the projection, the stem, the first of a chain; or from the
kernels of all writers, one behind the other (`source: concat`). Units that can't stand for each other, since they are
pinned, counted by a norm over channels, not in the same places everywhere, or different in truth values or whole
numbers, which have no mean, never share a cluster.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationInfo, model_validator

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, Group, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.interchangeable import pacesetter, unmergeable
from prunec.compiler.groups.patterns import chosen, matching
from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray, Note, Program
from prunec.compiler.pass_base import Allowance, Context, Pass, PassResult
from prunec.compiler.plan.entries import INSIDE
from prunec.compiler.plan.options import Fraction01, wrong
from prunec.compiler.rewrite.merge import Clusters, Counted, chi, identical, kinds_with_means, tidy, unit_rows
from prunec.passes.selection.amounts import Budgets, fits
from prunec.passes.selection.budgets import budgets
from prunec.passes.selection.per_group import gone_now
from prunec.passes.selection.traced import whole_sizes

Count = Annotated[int, Field(ge=1)]
Unit = Annotated[int, Field(ge=0)]


_AMOUNTS: Final = ("ratio", "widths", "budget")
"""What says how many units are left."""
_CLOSE: Final = 1e-6
"""How near a ratio is found by which a budget is met."""


class Cluster(Pass):
    """Find clusters of channels that `merge` can join."""

    name = "cluster"
    gives = frozenset({"clusters", "clusters_leave"})
    shorthand = "ratio"

    method: Literal["kmeans", "even", "identical", "given"] = Field(
        default="kmeans",
        description="by k-means on kernels; runs of neighbours; what is equal already; or as `clusters` says",
    )
    ratio: Fraction01 | tuple[Fraction01, ...] | None = Field(
        default=None,
        description="the share of each group's units in the traced model that is gone then; in `repeat`, a list of one "
        "for each round",
        examples=["25%"],
    )
    widths: dict[str, Count | tuple[Count, ...]] | None = Field(
        default=None,
        description="glob patterns of groups, and how many units are left of each; in `repeat`, a list for the rounds",
        examples=[{"layer1.*": 12}],
    )
    budget: Budgets | None = Field(
        default=None,
        min_length=1,
        description="what may be left: a share of the traced model's, or an amount, by resource; every group loses the "
        "same share of its units",
        examples=[{"macs": "40%"}],
    )
    at_most: Count | None = Field(
        default=None, description="`budget`: how many units go at most, of the groups that have lost the least share"
    )
    may_fall_short: bool = Field(
        default=False, description="`budget`: where it is out of reach, join all that may be joined"
    )
    clusters: dict[str, tuple[tuple[Unit, ...], ...]] | None = Field(
        default=None,
        description="the clusters of each group, for `method: given`",
        examples=[{"conv1": [[0, 3], [1, 2]]}],
    )
    source: Literal["pacesetter", "concat"] = Field(
        default="pacesetter", description="whose kernels k-means looks at, where several writers are coupled"
    )
    only: tuple[str, ...] = Field(
        default=(), description="glob patterns of the groups to cluster; all where none is named"
    )
    protect: tuple[str, ...] = Field(default=(), description="glob patterns of groups that are left alone")
    multiple_of: Count = Field(default=1, description="round the number of units that are left up to a multiple")
    tolerance: float = Field(
        default=1e-6, ge=0, description="`identical`: largest difference, relative to the tensor's largest value"
    )

    @model_validator(mode="after")
    def _options_fit(self, info: ValidationInfo) -> Cluster:
        """Refuse options that a method has no use for, and a method without a number of units that are left."""
        inside = bool((info.context or {}).get(INSIDE))
        said = [option for option in _AMOUNTS if getattr(self, option) is not None]
        if self.is_sized and (len(said) > 1 or not (said or inside)):
            raise wrong(f"must name one of 'ratio' and 'widths' for method '{self.method}', or a 'budget'")
        if not self.is_sized and said:
            raise wrong(
                f"must not name 'ratio' or 'widths' for method '{self.method}', or a 'budget': it finds its own"
            )
        if self.at_most is not None and self.budget is None:
            raise wrong("must not name 'at_most' without a 'budget', which says how much is to go in the end")
        if (self.method == "given") != (self.clusters is not None):
            raise wrong("must name 'clusters' for method 'given', and for no other")
        if self.method == "given" and (self.only or self.protect):
            raise wrong("must not name 'only' or 'protect' for method 'given', which names its groups")
        lists = [value for value in (self.ratio, *(self.widths or {}).values()) if isinstance(value, tuple)]
        if not all(lists):
            raise wrong("must not have an empty list, which has nothing for the first round")
        if lists and not inside:
            raise wrong("must not have a list, which is one of rounds, outside of 'repeat'")
        for name, text in (self.budget or {}).items():
            fits(name, text)
        return self

    @property
    def is_sized(self) -> bool:
        """Whether the method is told how many units are left."""
        return self.method in ("kmeans", "even")

    def in_round(self, allowance: Allowance) -> Pass:
        """The pass with the round's budget, unless it says itself how much goes."""
        if not self.is_sized or any(getattr(self, option) is not None for option in _AMOUNTS):
            return self
        given = {"budget": dict(allowance.left), "at_most": allowance.at_most, "may_fall_short": True}
        return self.model_copy(update=given)

    def resources(self) -> frozenset[str]:
        """The resources that have a budget."""
        return frozenset(self.budget or {})

    def check(self, program: Program) -> None:
        """Raise PassError for patterns and clusters that name what there isn't, and for widths beyond a group's own."""
        analysis = analyse(program)
        if self.clusters is not None:
            _given(analysis, self.clusters)
        else:
            self._of_round(Context())._targets(analysis)

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the fact `clusters`, and `clusters_leave`: by each budget's resource the share of the traced model's
        that is left when all of them are merged. Raises PassError as `check` does, and where units can't be joined."""
        analysis = analyse(program)
        notes: list[Note] = []
        details: dict[str, Any] = {}
        leave: dict[str, float] = {}
        if self.clusters is not None:
            found = _given(analysis, self.clusters)
        else:
            now = self._of_round(context)
            if self.budget is not None:
                now, short = now._meeting(analysis, context, self.budget)
                ratio = {} if now.ratio is None else {"ratio": now.ratio}
                details = {**ratio, **({"falls_short": short} if short else {})}
                keep, limits = now._kept(analysis, context), budgets(self.budget, program, context)
                leave = {b.name: float(b.resource.of(keep) / b.whole) for b in limits}
            found, notes = now._found(analysis, context)
        groups = analysis.groups
        details = {
            "groups": {n: {"units": groups[n].size, "left": _left(groups[n].size, found[n])} for n in found},
            "chi": chi(program, groups, found),
            **details,
        }
        return PassResult(program.with_facts(clusters=found, clusters_leave=leave), tuple(notes), details)

    def expected(self, program: Program) -> Mapping[str, Any]:
        """`expected_clusters`: those that the weights decide at once; of k-means, how many are left of how many."""
        analysis = analyse(program)
        now = self._of_round(Context())
        if self.is_sized and self.ratio is None and self.widths is None:
            return {"expected_clusters": None}  # the budget is met when it runs
        if self.method == "kmeans":
            return {"expected_clusters": Counted(now._counts(analysis))}
        found = _given(analysis, self.clusters) if self.clusters is not None else now._found(analysis, Context())[0]
        return {"expected_clusters": found}

    def _counts(self, analysis: Analysis) -> Iterator[tuple[str, IntArray, int]]:
        for name, parts, widths in self._divided(analysis):
            yield from ((name, part, left) for part, left in zip(parts, widths, strict=True))

    def _divided(
        self, analysis: Analysis, traced: Program | None = None
    ) -> Iterator[tuple[str, list[IntArray], list[int]]]:
        """(group, its units of each kind, how many are to be left of them), for groups that have any to join."""
        kind = kinds_with_means(analysis)
        for name, (group, width) in self._targets(analysis, traced).items():
            parts = _parts(kind[group.where])
            if parts:
                movable = sum(part.size for part in parts)
                yield name, parts, _shares([part.size for part in parts], width - (group.size - movable))

    def _of_round(self, context: Context) -> Cluster:
        """The pass with the values of its round, where there are lists of them."""
        index = context.round.index if context.round else 0
        widths = None if self.widths is None else {name: _at(value, index) for name, value in self.widths.items()}
        return self.model_copy(update={"ratio": _at(self.ratio, index), "widths": widths})

    def _meeting(self, analysis: Analysis, context: Context, wanted: Mapping[str, float | str]) -> tuple[Cluster, str]:
        """The pass with the smallest ratio by which the budgets are met, or with the widths that `at_most` units less
        leave; and why they can't be met, where the pass may fall short. Raises `PassError` where it may not."""
        limits = budgets(wanted, analysis.program, context)

        def missed(pass_: Cluster) -> str:
            keep = pass_._kept(analysis, context)
            over = (b for b in limits if b.resource.of(keep) > b.bound + b.resource.fixed)
            return next((f"{b.name} {b.resource.of(keep) / b.whole:.1%}" for b in over), "")

        def with_ratio(ratio: float) -> Cluster:
            return self.model_copy(update={"ratio": ratio})

        short = ""
        if least := missed(with_ratio(1.0)):
            short = f"with all units joined that may be, {least} are left"
            if not self.may_fall_short:
                hint = "`prunec explain` says why others can't be merged"
                raise PassError(f"the budget can't be met: {short}", keys=("budget",), hint=hint)
        if self.at_most is not None:
            every = self._steps(analysis, context)
            sizes = np.cumsum([units for _, _, units in every])
            most = min(max(int((sizes <= self.at_most).sum()), 1), len(every))
            widths = {name: group.size for name, group in chosen(analysis.groups, self.only, self.protect).items()}

            def behind(count: int) -> Cluster:
                left = widths | {name: width for name, width, _ in every[:count]}
                return self.model_copy(update={"widths": left})

            count = min(bisect_left(range(most + 1), True, key=lambda n: not missed(behind(n))), most)
            return behind(count), short if count == len(every) else ""
        if short or not missed(with_ratio(0.0)):
            return with_ratio(1.0 if short else 0.0), short
        low, high = 0.0, 1.0
        while high - low > _CLOSE:
            middle = (low + high) / 2
            low, high = (middle, high) if missed(with_ratio(middle)) else (low, middle)
        return with_ratio(high), ""

    def _steps(self, analysis: Analysis, context: Context) -> list[tuple[str, int, int]]:
        """(group, the width behind a step, how many units that is less), for all steps that can be taken: first those
        behind which a group has lost the least share of its units in the traced model."""
        wholes = whole_sizes(analysis, context.traced)
        found = []
        for name, parts, least in self.model_copy(update={"ratio": 1.0})._divided(analysis, context.traced):
            group = analysis.groups[name]
            end = group.size - sum(part.size - width for part, width in zip(parts, least, strict=True))
            widths = [w for w in range(group.size, end - 1, -1) if w in (group.size, end) or not w % self.multiple_of]
            steps = [(name, after, before - after) for before, after in pairwise(widths)]
            found += [(1 - after / wholes[name], name, after, units) for name, after, units in steps]
        return [(name, width, units) for _, name, width, units in sorted(found, key=itemgetter(0))]

    def _kept(self, analysis: Analysis, context: Context) -> BoolArray:
        """[units]: as many as are left of each kind; which of them doesn't matter for what they cost."""
        keep = np.ones(analysis.size, dtype=bool)
        for name, parts, widths in self._divided(analysis, context.traced):
            for part, width in zip(parts, widths, strict=True):
                keep[analysis.groups[name].start + part[width:]] = False
        return keep

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The pass with its clusters spelled out."""
        return (Cluster(method="given", clusters=result.program.facts["clusters"]),)

    def _found(self, analysis: Analysis, context: Context) -> tuple[dict[str, Clusters], list[Note]]:
        found: dict[str, Clusters] = {}
        notes: list[Note] = []
        kind = kinds_with_means(analysis)
        for name, (group, width) in self._targets(analysis, context.traced).items():
            parts = _parts(kind[group.where])
            if not parts:
                notes.append(Note(name, unmergeable(analysis, group)))
                continue
            movable = sum(part.size for part in parts)
            widths = _shares([part.size for part in parts], width - (group.size - movable))
            pieces = (self._split(analysis, group, part, w, context) for part, w in zip(parts, widths, strict=True))
            clusters = tidy(cluster for piece in pieces for cluster in piece)
            if self.method != "identical" and (left := _left(group.size, clusters)) > width:
                notes.append(Note(name, f"{left} units are left instead of {width}: {unmergeable(analysis, group)}"))
            if clusters:
                found[name] = clusters
        return found, notes

    def _targets(self, analysis: Analysis, traced: Program | None = None) -> dict[str, tuple[Group, int]]:
        """The groups to cluster, and how many units are to be left of each; a ratio is one of the `traced` model's."""
        groups = chosen(analysis.groups, self.only, self.protect)
        if self.widths is None:
            wholes, ratio = whole_sizes(analysis, traced), float(_at(self.ratio, 0) or 0)
            left = {n: g.size - gone_now(g.size, wholes[n], ratio) for n, g in groups.items()}
            return {n: (g, self._rounded(g, max(1, left[n]))) for n, g in groups.items()}
        targets: dict[str, tuple[Group, int]] = {}
        for pattern, names in matching(self.widths, analysis.groups, option="widths").items():
            for name in (n for n in names if n in groups):
                group, width = groups[name], int(_at(self.widths[pattern], 0))
                if width > group.size and group.free.any():
                    raise PassError(f"widths: '{pattern}' asks for {width} units, but '{name}' has {group.size}")
                if targets.get(name, (group, width))[1] != width:
                    raise PassError(f"widths: two patterns ask for different widths of '{name}'")
                targets[name] = group, self._rounded(group, min(width, group.size))
        return targets

    def _rounded(self, group: Group, width: int) -> int:
        return min(group.size, -(-width // self.multiple_of) * self.multiple_of)

    def _split(
        self, analysis: Analysis, group: Group, units: IntArray, width: int, context: Context
    ) -> Iterable[Sequence[int]]:
        """Units of one kind, split into `width` clusters."""
        if self.method == "identical":
            return identical(analysis.program, group, units, self.tolerance)
        if width == units.size:
            return ()
        if self.method == "even":
            return (run.tolist() for run in np.array_split(units, width))
        writers = [m for m in group.writers if np.isin(units, m.units).all()]
        if self.source == "pacesetter":
            writers = [pacesetter(analysis, writers)]
        kernels = np.concatenate(
            [unit_rows(analysis.program, m, units).double().numpy(force=True) for m in writers], axis=1
        )
        rng = context.rng("cluster", group.name, str(units[0]))
        return (units[found].tolist() for found in kmeans(kernels, width, rng))


def _at(value: Any, index: int) -> Any:
    """A round's own of a list of values; the last one for all further rounds."""
    return value[min(index, len(value) - 1)] if isinstance(value, tuple) else value


def kmeans(rows: FloatArray, width: int, rng: np.random.Generator) -> list[IntArray]:
    """The rows' indices in exactly `width` clusters, none of them empty, by k-means with seeded starts.

    Where fewer rows than `width` differ, equal rows are spread over clusters.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415  (slow to import, and few plans need it)

    unique, of_row, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    seed = int(rng.integers(2**31))
    if len(unique) > width:
        model = KMeans(width, n_init=4, random_state=seed).fit(unique, sample_weight=counts)
        of_row = model.labels_[of_row]
    found = [np.flatnonzero(of_row == label) for label in np.unique(of_row)]
    while len(found) < width:
        largest = max(range(len(found)), key=lambda index: found[index].size)
        found[largest : largest + 1] = np.array_split(found[largest], 2)
    return found


def _parts(kind: IntArray) -> list[IntArray]:
    """The units of each kind that has two or more of them."""
    parts = [np.flatnonzero(kind == value) for value in np.unique(kind[kind != NO_UNIT])]
    return [part for part in parts if part.size > 1]


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """`total` dealt out in proportion to the sizes: at least 1 to each, at most its size."""
    quota = np.array(sizes) * total / max(sum(sizes), 1)
    shares = np.clip(np.floor(quota + 1e-9), 1, sizes).astype(np.int64)
    while shares.sum() < total:
        shares[np.argmax(np.where(shares < sizes, quota - shares, -np.inf))] += 1
    while shares.sum() > max(total, len(sizes)):
        shares[np.argmax(np.where(shares > 1, shares - quota, -np.inf))] -= 1
    return [int(share) for share in shares]


def _left(size: int, clusters: Clusters) -> int:
    return size - sum(len(cluster) - 1 for cluster in clusters)


def _given(analysis: Analysis, clusters: Mapping[str, Clusters]) -> dict[str, Clusters]:
    """The plan's own clusters. Raises PassError for a group or unit that doesn't exist, or is pinned."""
    for name, found in clusters.items():
        group = analysis.groups.get(name)
        if group is None:
            raise PassError(f"clusters: there is no group '{name}'", hint=nearest(name, analysis.groups))
        units = [unit for cluster in found for unit in cluster]
        if high := [unit for unit in units if unit >= group.size]:
            raise PassError(f"clusters: '{name}' has units 0 to {group.size - 1}, got {high[0]}")
        if twice := [unit for unit in units if units.count(unit) > 1]:
            raise PassError(f"clusters: unit {twice[0]} of '{name}' is named twice")
        for unit in (unit for cluster in found if len(cluster) > 1 for unit in cluster):
            if group.pinned[unit]:
                raise PassError(f"clusters: unit {unit} of '{name}' can't be merged: it {group.pinned[unit]}")
    tidied = {name: tidy(found) for name, found in clusters.items()}
    return {name: found for name, found in tidied.items() if found}
