"""In which order units go, and how many: the arithmetic behind `select`, on plain arrays.

Each group is a queue of units, the least important first. What may never go (pinned units, the `keep_at_least` best,
the best of every piece of a split) isn't in the queue. A selection is a number for each queue: how many have left it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
    steps: IntArray
    """[queues]: a cut group keeps a multiple of this many units"""
    unit: IntArray
    queue: IntArray
    place: IntArray
    score: FloatArray

    @staticmethod
    def of(analysis: Analysis, scores: Mapping[str, FloatArray], limits: Limits) -> Ranking:
        """Queue up the units of every group that has scores and isn't barred."""
        chosen = [g for g in analysis.groups.values() if g.name in scores and g.name not in limits.barred]
        orders = [_order(analysis, group, np.asarray(scores[group.name]), limits) for group in chosen]
        lengths = [order.size for order in orders]
        empty = np.zeros(0, dtype=np.int64)
        return Ranking(
            analysis,
            {group.name: number for number, group in enumerate(chosen)},
            np.array([group.size for group in chosen], dtype=np.int64),
            np.array([_step(group, limits.multiple_of) for group in chosen], dtype=np.int64),
            np.concatenate([empty, *(o + g.start for o, g in zip(orders, chosen, strict=True))]),
            np.repeat(np.arange(len(chosen)), lengths),
            np.concatenate([empty, *(np.arange(n) for n in lengths)]),
            np.concatenate(
                [empty.astype(float), *(_rising(scores[g.name], o) for o, g in zip(orders, chosen, strict=True))]
            ),
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
        lengths = self.lengths
        for name, count in counts.items():
            queue = self.groups[name]
            size, step = int(self.sizes[queue]), int(self.steps[queue])
            rounded = min(size, -(-count // step) * step)
            gone[queue] = min(size - rounded, lengths[queue])
            if step > 1 and gone[queue] < size - rounded:
                gone[queue] = size - min(size, -(-(size - lengths[queue]) // step) * step)
        return self.keep(gone)

    def rounded(self, gone: IntArray) -> IntArray:
        """At least as many gone, so that every cut group keeps a multiple of its step; fewer where the queue ends."""
        kept = self.sizes - gone
        least = -(-(self.sizes - self.lengths) // self.steps) * self.steps
        stays = np.maximum(kept // self.steps * self.steps, least)
        return np.where((gone == 0) | (stays >= self.sizes), 0, self.sizes - stays)


def _order(analysis: Analysis, group: Group, scores: FloatArray, limits: Limits) -> IntArray:
    """A group's units in the order in which they go, without those that never do."""
    rising = np.argsort(scores, kind="stable")
    stays = ~group.free
    least = min(-(-limits.keep_at_least // channels_of_a_unit(group)), group.size)
    for units in (u - group.start for u in analysis.covers):
        mine = units[(units >= 0) & (units < group.size)]
        if mine.size:
            stays[mine[np.argmax(scores[mine])]] = True
    missing = least - int(stays.sum())
    if missing > 0:
        stays[rising[~stays[rising]][-missing:]] = True
    return np.asarray(rising[~stays[rising]], dtype=np.int64)


def _rising(scores: FloatArray, order: IntArray) -> FloatArray:
    return np.asarray(np.asarray(scores, dtype=np.float64)[order])


def channels_of_a_unit(group: Group) -> int:
    """How many channels of the group's first writer one unit holds."""
    first = group.writers[0]
    return max(1, first.positions.size // max(distinct(first.units, group.size).size, 1))


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
        back = gone[best] % ranking.steps[best] or ranking.steps[best]
        trial[best] = max(gone[best] - back, 0)
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
