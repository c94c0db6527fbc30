"""Queues that can't be made for all groups at once: of units that leave in packs, of groups whose layers hold different
parts of them, and of groups that are tied.

Where rows of a block must stay equally long, units leave in packs: the least important of every row go first, together,
then the next of every row. A pack's score is the mean of its units'.

Where layers hold different parts of a group, the queue is one of `selection/aligned.py`.

Tied groups leave together: a step of their common queue takes the least important of every group, as many as bring all
of them to the next width that each can have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from prunec.compiler.groups.analysis import Analysis, Group
from prunec.compiler.groups.balance import Balance
from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray
from prunec.passes.selection.aligned import in_aligned_steps, parts
from prunec.passes.selection.limits import Limits, channels_of_a_unit, within


@dataclass(frozen=True)
class Queue:
    """Units (program-wide numbers) in the order in which they go, and the step at which each does."""

    names: tuple[str, ...]
    units: IntArray
    steps: IntArray

    @property
    def ends(self) -> IntArray:
        """[steps + 1]: how many units are gone after 0, 1, ... steps."""
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.bincount(self.steps))])


def queue_of(analysis: Analysis, group: Group, scores: FloatArray, may_go: BoolArray, limits: Limits) -> Queue:
    """The queue of one group, from its units' `scores` and from which of them `may_go`."""
    bound = [balance for balance in analysis.balances if within(balance.units, group).size]
    if not bound and limits.step(group) > 1 and (held := parts(group)).size:
        units, ends = in_aligned_steps(held, int(limits.multiple_of[group.name]), scores, may_go)
        return _fitting(group, units, ends, limits)
    packs = [pack for balance in bound for pack in _packs(balance, group, scores, may_go)]
    single = may_go.copy()
    for balance in bound:
        single[within(balance.units, group)] = False
    units, ends = _in_order(np.flatnonzero(single), packs, scores)
    return _fitting(group, units, ends, limits)


def _fitting(group: Group, units: IntArray, ends: IntArray, limits: Limits) -> Queue:
    """The queue of units (by their numbers within the group) whose steps end where limits allow it."""
    fits = (ends <= limits.most(group)) & ((group.size - ends) % limits.step(group) == 0)
    return _queue((group.name,), units + group.start, ends[fits])


def tied_queue(analysis: Analysis, queues: Sequence[Queue]) -> Queue:
    """One queue of several groups' queues, in which all have the same width after every step."""
    groups = [analysis.groups[queue.names[0]] for queue in queues]
    lost = [queue.ends * channels_of_a_unit(group) for queue, group in zip(queues, groups, strict=True)]
    common = reduce(lambda a, b: np.intersect1d(a, b), lost)
    ends = [queue.ends[np.searchsorted(gone, common)] for queue, gone in zip(queues, lost, strict=True)]
    parts = [queue.units[: end[-1]] for queue, end in zip(queues, ends, strict=True)]
    steps = np.concatenate([np.repeat(np.arange(end.size - 1), np.diff(end)) for end in ends])
    order = np.argsort(steps, kind="stable")
    return Queue(tuple(group.name for group in groups), np.concatenate(parts)[order], steps[order])


def _queue(names: tuple[str, ...], units: IntArray, ends: IntArray) -> Queue:
    steps = np.repeat(np.arange(ends.size), np.diff(ends, prepend=0))
    return Queue(names, units[: steps.size], steps)


def _in_order(single: IntArray, packs: Sequence[IntArray], scores: FloatArray) -> tuple[IntArray, IntArray]:
    """Single units and packs by rising score: their units, and where each of them ends."""
    means = np.array([scores[pack].mean() for pack in packs], dtype=np.float64)
    order = np.argsort(np.concatenate([scores[single], means]), kind="stable")
    whole = [*single[:, None], *packs]
    units = np.concatenate([np.zeros(0, dtype=np.int64), *(whole[i] for i in order)])
    return units, np.cumsum(np.array([whole[i].size for i in order], dtype=np.int64))


def _packs(balance: Balance, group: Group, scores: FloatArray, may_go: BoolArray) -> Iterator[IntArray]:
    """Units that leave together: the least important of every cell first."""
    cells = [within(cell, group) for cell in balance.cells]
    ranked = [cell[np.argsort(scores[cell], kind="stable")] for cell in cells]
    leaving = [cell[may_go[cell]] for cell in ranked]
    each = list(zip(leaving, balance.each, strict=True))
    count = min(cells[0].size // balance.each[0] - 1, *(cell.size // some for cell, some in each))
    parts = [cell[: count * some].reshape(count, some) for cell, some in each]
    yield from np.concatenate(parts, axis=1)
