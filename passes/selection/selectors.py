"""Methods of selection under budgets: how the levels of all queues are chosen.

    ranking     the least important of all groups go first, or of groups of one structure, until the budgets are met
    greedy      one step at a time, by score minus what it costs now
    knapsack    the largest sum of scores that the budgets can hold

A method is a class with a name and `levels`, registered in the entry-point group `prunec.selectors`; a package of its
own can add one. What it gives is checked against the budgets, and filled up where something still fits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Final

import numpy as np

from prunec.compiler.groups.isomorphic import isomorphic_classes
from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.plugins import Registry
from prunec.passes.selection.problems import Problem, filled
from prunec.passes.selection.ranking import Ranking, Steps


@dataclass(frozen=True)
class Wishes:
    """What a plan says to the method beside its budgets."""

    scope: str = "global"
    cost_weight: Mapping[str, float] = field(default_factory=dict)
    per_cost: bool = False
    at_most: int | None = None
    """So many units go and no more, but one step in any case; then a budget need not be met."""
    progress: Progress = silent


class Selector(ABC):
    """A method; instances have no state."""

    name: ClassVar[str]
    in_steps: ClassVar[bool] = False
    """Whether it takes one step after the other, and stops where a plan's `at_most` says so."""

    def adds(self, wishes: Wishes) -> bool:
        """Whether it compares sums of scores, or scores with costs: then they must be figures that add up."""
        return False

    @abstractmethod
    def levels(self, problem: Problem, wishes: Wishes) -> IntArray:
        """The level of every queue, at which the budgets are met: they are when every queue is at its last level. With
        `at_most`, as far towards that as so many units go."""


SELECTORS: Final = Registry("prunec.selectors", "selection method", Selector)  # type: ignore[type-abstract]
"""The methods that are installed, by name."""


class RankingSelector(Selector):
    """Remove the steps of all queues by rising score, or by equal shares of groups or of classes of groups, until the
    budgets are met."""

    name = "ranking"
    in_steps = True

    def levels(self, problem: Problem, wishes: Wishes) -> IntArray:
        """The levels at which the budgets are met, filled up; or those at which `at_most` units are gone."""
        importance = _importance(problem, wishes.scope)
        steps = problem.ranking.steps
        order = np.lexsort((steps.number, importance))
        queues = steps.queue[order]
        low, high = 0, queues.size
        if wishes.at_most is not None:
            high = min(max(int((np.cumsum(steps.size[order]) <= wishes.at_most).sum()), 1), high)
            levels = np.bincount(queues[:high], minlength=problem.last.size)
            if not problem.fits(levels):
                return levels
        while low < high:
            middle = (low + high) // 2
            fits = problem.fits(np.bincount(queues[:middle], minlength=problem.last.size))
            low, high = (low, middle) if fits else (middle + 1, high)
        return filled(problem, np.bincount(queues[:low], minlength=problem.last.size), importance)


def _importance(problem: Problem, scope: str) -> FloatArray:
    """[steps]: what decides: the mean score, or the share of units that are gone after the step: of the group's with
    scope `local`, of those of all groups of its structure with scope `isomorphic`."""
    ranking = problem.ranking
    if scope == "global":
        return ranking.steps.score
    queue = np.arange(ranking.count) if scope == "local" else structures(ranking)
    return _shares(ranking, queue)


def _shares(ranking: Ranking, class_of: IntArray) -> FloatArray:
    """[steps]: the share of the traced units of its class (`class_of` [queues]) that are gone when the steps of the
    class go by rising score, as far as this one."""
    steps = ranking.steps
    mine, score = class_of[steps.queue], _rising(steps)
    order = np.lexsort((steps.number, score, mine))
    gone = np.cumsum(steps.size[order])
    start = np.searchsorted(mine[order], np.arange(class_of.max(initial=0) + 1))
    before = np.concatenate([[0], gone])[start]
    whole = np.bincount(class_of, ranking.wholes, minlength=start.size)
    earlier = whole - np.bincount(class_of, ranking.sizes, minlength=start.size)
    shares = np.empty(order.size)
    shares[order] = (gone - before[mine[order]] + earlier[mine[order]]) / whole[mine[order]]
    return shares


def _rising(steps: Steps) -> FloatArray:
    """[steps]: the mean scores, where one is lower than that of an earlier step of its queue, raised to that."""
    found = steps.score.copy()
    for low, high in pairwise(steps.first.tolist()):
        found[low:high] = np.maximum.accumulate(found[low:high])
    return found


def structures(ranking: Ranking) -> IntArray:
    """[queues]: which of them are of the same structure."""
    classes = isomorphic_classes(ranking.analysis)
    of: list[set[int]] = [set() for _ in range(ranking.count)]
    for name, queue in ranking.groups.items():
        of[queue].add(classes[name])
    numbers: dict[frozenset[int], int] = {}
    return np.array([numbers.setdefault(frozenset(each), len(numbers)) for each in of], dtype=np.int64)
