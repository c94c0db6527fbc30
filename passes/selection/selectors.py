"""Methods of selection under budgets: how the levels of all queues are chosen.

    ranking     the least important of all groups go first, until the budgets are met
    greedy      one step at a time, by score minus what it costs now
    knapsack    the largest sum of scores that the budgets can hold

A method is a class with a name and `levels`, registered in the entry-point group `prunec.selectors`; a package of its
own can add one. What it gives is checked against the budgets, and filled up where something still fits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np

from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.plugins import Registry
from prunec.passes.selection.problems import Problem, filled


@dataclass(frozen=True)
class Wishes:
    """What a plan says to the method beside its budgets."""

    scope: str = "global"
    cost_weight: Mapping[str, float] = field(default_factory=dict)
    per_cost: bool = False
    progress: Progress = silent


class Selector(ABC):
    """A method; instances have no state."""

    name: ClassVar[str]

    @abstractmethod
    def levels(self, problem: Problem, wishes: Wishes) -> IntArray:
        """The level of every queue, at which the budgets are met: they are when every queue is at its last level."""


SELECTORS: Final = Registry("prunec.selectors", "selection method", Selector)  # type: ignore[type-abstract]
"""The methods that are installed, by name."""


class RankingSelector(Selector):
    """Remove the steps of all queues by rising score, or by equal shares, until the budgets are met."""

    name = "ranking"

    def levels(self, problem: Problem, wishes: Wishes) -> IntArray:
        """The levels at which the budgets are met, filled up."""
        importance = _importance(problem, wishes.scope)
        steps = problem.ranking.steps
        queues = steps.queue[np.lexsort((steps.number, importance))]
        low, high = 0, queues.size
        while low < high:
            middle = (low + high) // 2
            fits = problem.fits(np.bincount(queues[:middle], minlength=problem.last.size))
            low, high = (low, middle) if fits else (middle + 1, high)
        return filled(problem, np.bincount(queues[:low], minlength=problem.last.size), importance)


def _importance(problem: Problem, scope: str) -> FloatArray:
    """[steps]: what decides: the mean score or, with scope `local`, the share of the group gone after the step."""
    steps = problem.ranking.steps
    return steps.score if scope == "global" else steps.ends / problem.ranking.sizes[steps.queue]
