"""In which order units go, and how many: the arithmetic behind `select`, on plain arrays.

Each group is a queue of units, the least important first. What may never go (pinned units, the `keep_at_least` best,
the best of every piece of a split) isn't in the queue. A selection is a number for each queue: how many have left it.

Where rows of a block must stay equally long, units leave in packs: the least important of every row go first, together,
then the next of every row. A pack's score is the mean of its units'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prunec.compiler.balance import Balance
from prunec.compiler.cost import Cost, CostModel, cost_model
from prunec.compiler.errors import PassError
from prunec.compiler.ir import IntArray
from prunec.compiler.units import Analysis, BoolArray, FloatArray, Group, distinct

CLOSE = 0.002
"""A budget that is met within this share isn't filled up any further."""


@dataclass(frozen=True)
class Limits:
    """What a plan doesn't want removed."""

    barred: frozenset[str] = frozenset()
    keep_at_least: int = 1
    multiple_of: int = 1


@dataclass(frozen=True)
class Ranking:
    """The queues of all groups that may be cut; queue q's units are those with `queue == q`, by `place`."""

    analysis: Analysis
    groups: Mapping[str, int]
    """group name -> queue"""
    sizes: IntArray
    """[queues]: units of the whole group"""
    landings: IntArray
    """For every queue, one after the other: the number that leaves where 0, 1, ... units are to. A cut group keeps a
    multiple of what the limits ask for, and a pack leaves whole."""
    unit: IntArray
    queue: IntArray
    place: IntArray
    score: FloatArray

    @staticmethod
    def of(analysis: Analysis, scores: Mapping[str, FloatArray], limits: Limits) -> Ranking:
        """Queue up the units of every group that has scores and isn't barred."""
        chosen = [g for g in analysis.groups.values() if g.name in scores and g.name not in limits.barred]
        queues = [_queue(analysis, group, np.asarray(scores[group.name], dtype=float), limits) for group in chosen]
        lengths = [queue.units.size for queue in queues]
        empty = np.zeros(0, dtype=np.int64)
        return Ranking(
            analysis,
            {group.name: number for number, group in enumerate(chosen)},
            np.array([group.size for group in chosen], dtype=np.int64),
            np.concatenate([empty, *(queue.landings for queue in queues)]),
            np.concatenate([empty, *(q.units + g.start for q, g in zip(queues, chosen, strict=True))]),
            np.repeat(np.arange(len(chosen)), lengths),
            np.concatenate([empty, *(np.arange(n) for n in lengths)]),
            np.concatenate([empty.astype(float), *(queue.scores for queue in queues)]),
        )

    @property
    def lengths(self) -> IntArray:
        """How many units of each queue may go."""
        return np.bincount(self.queue, minlength=self.sizes.size)

    def keep(self, gone: IntArray) -> BoolArray:
        """The units that stay when `gone` [queues] units have left."""
        keep = np.ones(self.analysis.size, dtype=bool)
        keep[self.unit[self.place < gone[self.queue]]] = False
        return keep

    def cut(self, counts: Mapping[str, int]) -> BoolArray:
        """Keep so many units of each named group, rounded up to its step. Raises `PassError` where that can't be."""
        gone = np.zeros(self.sizes.size, dtype=np.int64)
        for name, count in counts.items():
            queue = self.groups[name]
            gone[queue] = self.at_most(queue, max(int(self.sizes[queue]) - count, 0))
        return self.keep(gone)

    @cached_property
    def _starts(self) -> IntArray:
        """Where each queue's landings start."""
        return np.asarray(np.cumsum(self.lengths + 1) - (self.lengths + 1), dtype=np.int64)

    def rounded(self, gone: IntArray) -> IntArray:
        """At least as many gone, as far as limits and packs allow; fewer where the queue ends."""
        return np.asarray(self.landings[self._starts + gone], dtype=np.int64)

    def at_most(self, queue: int, gone: int) -> int:
        """The largest number of units, up to `gone`, that may leave a queue."""
        start, length = int(self._starts[queue]), int(self.lengths[queue])
        reached = np.unique(self.landings[start : start + length + 1])
        return int(reached[np.searchsorted(reached, gone, side="right") - 1])


@dataclass(frozen=True)
class _Queue:
    """One group's units in the order in which they go, the scores they go by, and where a number of them lands."""

    units: IntArray
    scores: FloatArray
    landings: IntArray


def _queue(analysis: Analysis, group: Group, scores: FloatArray, limits: Limits) -> _Queue:
    """The units that may go, without those that never do."""
    stays = ~group.free
    for units in (u - group.start for u in analysis.covers):
        mine = units[(units >= 0) & (units < group.size)]
        if mine.size:
            stays[mine[np.argmax(scores[mine])]] = True
    least = min(-(-limits.keep_at_least // channels_of_a_unit(group)), group.size)
    packs = [pack for balance in analysis.balances for pack in _packs(balance, group, scores, ~stays)]
    single = ~stays
    for balance in analysis.balances:
        single[_within(balance.units, group)] = False
    units, score, ends = _in_order(np.flatnonzero(single), packs, scores)
    ends = ends[ends <= group.size - least]
    last = int(ends[-1]) if ends.size else 0
    fits = (group.size - ends) % _step(group, limits.multiple_of) == 0
    reached = np.concatenate([np.zeros(1, dtype=np.int64), ends[fits]])
    places = np.minimum(np.searchsorted(reached, np.arange(last + 1)), reached.size - 1)
    return _Queue(units[:last], score[:last], reached[places])


def _in_order(single: IntArray, packs: Sequence[IntArray], scores: FloatArray) -> tuple[IntArray, FloatArray, IntArray]:
    """Units that go alone and packs by rising score: the units, the score that each goes by, and where each ends."""
    means = np.array([scores[pack].mean() for pack in packs], dtype=np.float64)
    sizes = np.array([*[1] * single.size, *(pack.size for pack in packs)], dtype=np.int64)
    order = np.argsort(np.concatenate([scores[single], means]), kind="stable")
    whole = [single, *packs]
    numbers = np.repeat(np.arange(sizes.size), sizes)  # which of them each unit belongs to
    units = np.concatenate(whole)[np.argsort(np.argsort(order)[numbers], kind="stable")]
    each = np.concatenate([scores[single], means])[order]
    return units.astype(np.int64), np.repeat(each, sizes[order]), np.cumsum(sizes[order])


def _within(units: IntArray, group: Group) -> IntArray:
    """Units as they are numbered within a group; none where they are another group's."""
    local = units - group.start
    return np.asarray(local[(local >= 0) & (local < group.size)], dtype=np.int64)


def _packs(balance: Balance, group: Group, scores: FloatArray, may_go: BoolArray) -> list[IntArray]:
    """The units that leave together: of every cell the least important first."""
    cells = [_within(cell, group) for cell in balance.cells]
    if not all(cell.size for cell in cells):
        return []
    ranked = [cell[np.argsort(scores[cell], kind="stable")] for cell in cells]
    leaving = [cell[may_go[cell]] for cell in ranked]
    each = list(zip(leaving, balance.each, strict=True))
    count = min(cells[0].size // balance.each[0] - 1, *(cell.size // some for cell, some in each))
    parts = [cell[: count * some].reshape(count, some) for cell, some in each]
    return list(np.concatenate(parts, axis=1))


def channels_of_a_unit(group: Group) -> int:
    """How many channels of the group's first writer one unit holds."""
    first = group.writers[0]
    return max(1, first.positions.size // max(distinct(first.units, group.size).size, 1))


def pack_size(analysis: Analysis, group: Group) -> int:
    """How many units leave the group at a time; 1 where that isn't the same for all of them."""
    mine = [b for b in analysis.balances if _within(b.units, group).size]
    bound = sum(balance.units.size for balance in mine)
    return mine[0].size if bound == group.size and len({balance.size for balance in mine}) == 1 else 1


def _step(group: Group, multiple: int) -> int:
    each = channels_of_a_unit(group)
    return multiple // int(np.gcd(multiple, each))


# -- budgets -------------------------------------------------------------------------------------------------------


def meet_budget(ranking: Ranking, budget: Mapping[str, float], scope: str, baseline: Cost | None) -> BoolArray:
    """The units that stay when the least important ones go until every cost is within its budget.

    `budget` maps `macs` or `params` to a share (at most 1) of the baseline or to an absolute number. With scope
    `global` the queues are merged by score, with `local` every group loses the same share. What was removed beyond the
    budget by the last steps is put back, the most important first, as far as it fits. Raises `PassError` when it is
    out of reach.
    """
    model = cost_model(ranking.analysis.program)
    whole = baseline or model.cost(model.everything)
    targets = {k: v * getattr(whole, k) if v <= 1 else v for k, v in budget.items()}
    importance = ranking.score if scope == "global" else (ranking.place + 1) / ranking.sizes[ranking.queue]
    order = np.lexsort((ranking.place, importance))
    queues = ranking.queue[order]

    def gone(count: int) -> IntArray:
        return ranking.rounded(np.bincount(queues[:count], minlength=ranking.sizes.size))

    def fits(leaving: IntArray) -> bool:
        keep = ranking.keep(leaving)
        return all(getattr(model, k)(keep) <= target for k, target in targets.items())

    if not fits(gone(order.size)):
        raise _out_of_reach(ranking, model, targets, whole, gone(order.size))
    low, high = 0, order.size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(gone(middle)) else (middle + 1, high)
    return ranking.keep(_filled(ranking, model, targets, gone(low), importance))


def _filled(
    ranking: Ranking, model: CostModel, targets: Mapping[str, float], gone: IntArray, importance: FloatArray
) -> IntArray:
    """Fewer gone, as far as the budget allows: the units that matter most come back first."""
    starts = np.concatenate([[0], np.cumsum(ranking.lengths)])[:-1]
    is_open = gone > 0
    while is_open.any() and _gap(ranking, model, targets, gone) > CLOSE:
        queues = np.flatnonzero(is_open)
        best = queues[np.argmax(importance[starts[queues] + gone[queues] - 1])]
        trial = gone.copy()
        trial[best] = ranking.at_most(int(best), int(gone[best]) - 1)
        if _gap(ranking, model, targets, trial) < 0:
            is_open[best] = False
            continue
        gone = trial
        if not gone[best]:
            is_open[best] = False
    return gone


def _gap(ranking: Ranking, model: CostModel, targets: Mapping[str, float], gone: IntArray) -> float:
    """The share of the tightest budget that isn't used; negative where it is exceeded."""
    keep = ranking.keep(gone)
    return min(float(1 - getattr(model, k)(keep) / target) for k, target in targets.items())


def _out_of_reach(
    ranking: Ranking, model: CostModel, targets: Mapping[str, float], whole: Cost, gone: IntArray
) -> PassError:
    least = model.cost(ranking.keep(gone))
    name, target = next((k, t) for k, t in targets.items() if getattr(least, k) > t)
    reached, base = getattr(least, name), getattr(whole, name)
    enough = np.ceil(1000 * reached / base) / 1000
    return PassError(
        f"the budget can't be met: {name} {target / base:.1%} is {target:,.0f}, but with every unit gone that may go "
        f"{reached:,} are left ({reached / base:.1%})",
        keys=("budget", name),
        hint=f"ask for at least {enough:.1%}, protect fewer groups, or lower keep_at_least or multiple_of",
    )
