"""In which order units go: the arithmetic behind `select`, on plain arrays.

Each group is a queue of steps, the least important first. A step takes one unit, or as many as limits and blocks ask
for. What may never go (pinned units, the best of every piece of a split, what limits keep) isn't in the queue. A
selection is a number for each queue: its level, how many steps are gone.

    conv1   scores 3 1 4 2, a multiple of 2 stays     steps  [1 3]           levels 0, 1
    conv2   scores 5 0 6                              steps  [1] [0]         levels 0, 1, 2

Units of a step count by their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from prunec.compiler.groups.analysis import Analysis, Group
from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray
from prunec.passes.selection.aligned import parts
from prunec.passes.selection.limits import Limits
from prunec.passes.selection.queues import Queue, queue_of, tied_queue
from prunec.passes.selection.traced import Whole


@dataclass(frozen=True)
class Ranking:
    """The queues of all groups that may be cut, one behind the other; `unit`, `queue` and `step` go together."""

    analysis: Analysis
    groups: Mapping[str, int]
    """group name -> queue; tied groups share one"""
    unit: IntArray
    queue: IntArray
    step: IntArray
    """the step of its queue at which the unit goes"""
    score: FloatArray
    scored: frozenset[str] = frozenset()
    """the groups that have scores, whether they may be cut or not"""
    whole: Whole = field(default_factory=dict)
    """group name -> its units in the traced model, of which shares are taken"""

    @staticmethod
    def of(analysis: Analysis, scores: Mapping[str, FloatArray], limits: Limits) -> Ranking:
        """The queues of every group that has scores and isn't barred."""
        chosen = [g for g in analysis.groups.values() if g.name in scores and g.name not in limits.barred]
        score = np.full(analysis.size, np.nan)
        for group in chosen:
            score[group.where] = scores[group.name]
        may_go = _may_go(analysis, chosen, score)
        bound = set(analysis.group_of[[balance.cells[0][0] for balance in analysis.balances]].tolist())
        tied = {name for names in limits.tied for name in names}
        special = [
            number
            for number, g in enumerate(analysis.groups.values())
            if number in bound or g.name in tied or (limits.step(g) > 1 and parts(g).size)
        ]
        single = _at_once(analysis, [g for g in chosen if not _is_in(analysis, g, special)], score, may_go, limits)
        alone = {
            g.name: queue_of(analysis, g, score[g.where], may_go[g.where], limits)
            for g in chosen
            if _is_in(analysis, g, special)
        }
        ranking = _joined(analysis, single, _tied(analysis, alone, limits), score)
        return replace(ranking, scored=frozenset(scores), whole=limits.whole)

    @property
    def count(self) -> int:
        """The number of queues."""
        return len(set(self.groups.values()))

    @cached_property
    def steps(self) -> Steps:
        """The steps of all queues, one behind the other."""
        starts = np.flatnonzero(np.diff(self.queue, prepend=-1) | np.diff(self.step, prepend=-1))
        size = np.diff(starts, append=self.unit.size)
        total = np.add.reduceat(self.score, starts) if starts.size else np.zeros(0)
        queue = self.queue[starts]
        first = np.searchsorted(queue, np.arange(self.count + 1))
        return Steps(queue, self.step[starts], size, total, total / np.maximum(size, 1), first)

    @cached_property
    def sizes(self) -> IntArray:
        """[queues]: how many units the group, or all tied ones, have."""
        found = np.zeros(self.count, dtype=np.int64)
        for name, queue in self.groups.items():
            found[queue] += self.analysis.groups[name].size
        return found

    @cached_property
    def wholes(self) -> IntArray:
        """[queues]: how many units the group, or all tied ones, have in the traced model."""
        found = np.zeros(self.count, dtype=np.int64)
        for name, queue in self.groups.items():
            found[queue] += self.whole.get(name, self.analysis.groups[name].size)
        return found

    def keep(self, levels: IntArray) -> BoolArray:
        """[units]: which units stay when so many steps of each queue are gone."""
        keep = np.ones(self.analysis.size, dtype=bool)
        keep[self.unit[self.step < levels[self.queue]]] = False
        return keep

    @cached_property
    def matrix(self) -> csr_matrix:
        """[units, steps]: which units a step takes."""
        number = self.steps.first[self.queue] + self.step
        shape = (self.analysis.size, self.steps.queue.size)
        return csr_matrix((np.ones(self.unit.size), (self.unit, number)), shape=shape)

    def levels(self, gone: FloatArray) -> IntArray:
        """The highest levels at which at most `gone` [queues] units are gone; 0 where that is NaN."""
        wanted = np.where(np.isnan(gone), 0, np.floor(np.nan_to_num(gone) + 1e-9))
        fits = self.steps.ends <= wanted[self.steps.queue]
        return np.bincount(self.steps.queue[fits], minlength=self.count)

    def below(self, thresholds: FloatArray) -> IntArray:
        """The levels at which all units with scores below `thresholds` [queues] are gone, and no others; 0 for NaN."""
        worst = np.full(self.steps.queue.size, -np.inf)
        np.maximum.at(worst, self.steps.first[self.queue] + self.step, self.score)
        stays = ~(worst < thresholds[self.steps.queue])
        before = np.cumsum(stays) - np.concatenate([[0], np.cumsum(stays)])[self.steps.first[self.steps.queue]]
        return np.bincount(self.steps.queue[before == 0], minlength=self.count)


@dataclass(frozen=True)
class Steps:
    """The steps of all queues, one behind the other."""

    queue: IntArray
    number: IntArray
    size: IntArray
    total: FloatArray
    """The sum of its units' scores."""
    score: FloatArray
    """Their mean."""
    first: IntArray
    """[queues + 1]: where each queue's steps start."""

    @cached_property
    def ends(self) -> IntArray:
        """[steps]: how many units of the queue are gone after the step."""
        sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.size)])
        return np.asarray(sums[1:] - sums[self.first[self.queue]], dtype=np.int64)

    @property
    def levels(self) -> IntArray:
        """[queues]: the last level."""
        return np.diff(self.first)


def _may_go(analysis: Analysis, chosen: Sequence[Group], score: FloatArray) -> BoolArray:
    """Units that are free, have a finite score, and aren't the best of a piece of a split that would lose all, nor
    among the best of units of which several must stay."""
    may_go = analysis.free & np.isfinite(score)
    for piece in analysis.covers:
        groups = analysis.group_of[piece]
        for number in np.unique(groups) if may_go[piece].all() else ():
            mine = piece[groups == number]
            may_go[mine[np.argmax(score[mine])]] = False
    for part in analysis.least:
        going = part.units[may_go[part.units]]
        missing = part.count - (part.units.size - going.size)
        if missing > 0:
            may_go[going[np.argsort(score[going], kind="stable")[-missing:]]] = False
    return may_go


def _is_in(analysis: Analysis, group: Group, special: Sequence[int]) -> bool:
    return bool(special) and int(analysis.group_of[group.start]) in special


Flat = tuple[list[str], IntArray, IntArray, IntArray]
"""Names by queue, and units, queues and steps."""


def _at_once(analysis: Analysis, groups: Sequence[Group], score: FloatArray, may_go: BoolArray, limits: Limits) -> Flat:
    """The queues of groups whose units leave one by one, or by the multiple that limits ask for."""
    numbers = np.full(len(analysis.groups), -1, dtype=np.int64)
    numbers[analysis.group_of[[group.start for group in groups]]] = np.arange(len(groups))
    queue = np.where(may_go, numbers[analysis.group_of], -1)
    units = np.flatnonzero(queue >= 0)
    units = units[np.lexsort((score[units], queue[units]))]
    queue = queue[units]
    first = np.searchsorted(queue, np.arange(len(groups) + 1))
    most = np.array([limits.most(group) for group in groups], dtype=np.int64)
    step = np.array([limits.step(group) for group in groups], dtype=np.int64)
    sizes = np.array([group.size for group in groups], dtype=np.int64)
    gone = np.arange(units.size) - first[queue] + 1
    ends = (gone <= most[queue]) & ((sizes[queue] - gone) % step[queue] == 0)
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(ends)])
    number = before[:-1] - before[first[queue]]
    leaves = number < (before[first[1:]] - before[first[:-1]])[queue]
    return [group.name for group in groups], units[leaves], queue[leaves], number[leaves]


def _tied(analysis: Analysis, alone: Mapping[str, Queue], limits: Limits) -> list[Queue]:
    """The queues of single groups, and one for each set of tied groups. Where one of a set stays whole, all do."""
    tied = [names for names in limits.tied if any(name in alone for name in names)]
    whole = [names for names in tied if all(name in alone for name in names)]
    bound = {name for names in tied for name in names}
    free = [queue for name, queue in alone.items() if name not in bound]
    return [*free, *(tied_queue(analysis, [alone[name] for name in names]) for names in whole)]


def _joined(analysis: Analysis, single: Flat, more: Sequence[Queue], score: FloatArray) -> Ranking:
    names, units, queue, step = single
    groups = {name: number for number, name in enumerate(names)}
    for number, one in enumerate(more, start=len(names)):
        groups.update(dict.fromkeys(one.names, number))
    unit = np.concatenate([units, *(one.units for one in more)])
    sizes = [one.units.size for one in more]
    queues = np.concatenate([queue, np.repeat(np.arange(len(names), len(names) + len(more)), sizes)])
    steps = np.concatenate([step, *(one.steps for one in more)])
    return Ranking(analysis, groups, unit, queues, steps, score[unit])
