"""What a selector solves: queues of steps, and budgets over the widths that they leave; and a state to search from.

A selection is a level for each queue. There are three ways to its cost, equally exact: for any levels (`Problem.used`),
for one queue moved from a state (`State.trial`), and after a move (`State.move`). The last two compute only the terms
that hold a width of that queue. Where channels go by themselves once no reader keeps them, only the first counts that;
the others give a little more, so that what fits by them fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.sparse import csr_matrix

from prunec.compiler.cost.resource import Resource
from prunec.compiler.cost.resources import baseline, resource
from prunec.compiler.ir.program import FloatArray, IntArray, Program
from prunec.compiler.pass_base import Context
from prunec.passes.selection.ranking import Ranking

_RESYNC: Final = 512
"""After so many moves a state is computed anew, so that rounding doesn't add up."""


@dataclass(frozen=True)
class Budget:
    """A resource, how much of it may be used, and how much the traced model uses."""

    resource: Resource
    limit: float
    whole: float

    @cached_property
    def bound(self) -> float:
        """What the sum of terms may reach; for whole numbers, with room for rounding."""
        if not np.isfinite(self.limit):
            return float(np.inf)
        limit = np.floor(self.limit + 1e-6) + 0.25 if self.resource.whole else self.limit * (1 + 1e-9)
        return float(limit) - self.resource.fixed

    @property
    def name(self) -> str:
        """The resource's name."""
        return self.resource.name


def budgets_of(
    wanted: Mapping[str, float | None], program: Program, context: Context, scales: Mapping[str, float]
) -> tuple[Budget, ...]:
    """A budget for every resource that is wanted: a share (at most 1) of what the traced model uses; an amount, in
    units of `scales` (1 where it has none); or None for no limit."""
    found = []
    for name, amount in wanted.items():
        whole = baseline(name, program, context)
        limit = np.inf if amount is None else amount * scales[name] if name in scales else amount * whole
        found.append(Budget(resource(name, program, context), float(limit), whole))
    return tuple(found)


@dataclass(frozen=True)
class _Touched:
    """The terms of one budget that hold a width of some queue, and their columns in its rows."""

    terms: IntArray
    rows: csr_matrix | FloatArray


@dataclass(frozen=True)
class Problem:
    """Queues, and the budgets that a selection must meet; those without a limit are only reported or priced."""

    ranking: Ranking
    budgets: tuple[Budget, ...]

    @cached_property
    def last(self) -> IntArray:
        """[queues]: the last level, at which all that may go is gone."""
        return self.ranking.steps.levels

    @cached_property
    def worth(self) -> FloatArray:
        """[steps]: the score that is kept with a step: the sum over its units, counted from the lowest score if that is
        negative.

        Normalised or signed scores can be. Their order says what goes first, their zero means nothing: without this, a
        sum over what is kept would ask for more to go than a budget does.
        """
        steps = self.ranking.steps
        return np.asarray(steps.total - min(float(self.ranking.score.min(initial=0.0)), 0.0) * steps.size)

    def lost(self, queue: IntArray, level: IntArray) -> FloatArray:
        """The score that is lost when each of these queues is at that level."""
        sums, first = np.concatenate([[0.0], np.cumsum(self.worth)]), self.ranking.steps.first
        return np.asarray(sums[first[queue] + level] - sums[first[queue]])

    @cached_property
    def _removed(self) -> csr_matrix:
        """[steps, widths]: how much a step takes from each width."""
        model = self.budgets[0].resource.model
        return (model.counts @ self.ranking.matrix).T.tocsr()

    @cached_property
    def tables(self) -> tuple[tuple[IntArray, FloatArray], ...]:
        """For every queue: the widths that it narrows, and [levels, widths] by how much."""
        found = []
        first = self.ranking.steps.first
        for low, high in pairwise(first.tolist()):
            part = self._removed[low:high]
            widths = np.unique(part.indices)
            lost = np.cumsum(part[:, widths].toarray(), axis=0)
            found.append((widths, np.concatenate([np.zeros((1, widths.size)), lost])))
        return tuple(found)

    @cached_property
    def touched(self) -> tuple[tuple[_Touched, ...], ...]:
        """For every queue, and every budget: the terms that it changes."""
        holds = [_holders(budget.resource) for budget in self.budgets]
        return tuple(
            tuple(_touched(b.resource, h, widths) for b, h in zip(self.budgets, holds, strict=True))
            for widths, _ in self.tables
        )

    @cached_property
    def neighbours(self) -> tuple[IntArray, ...]:
        """For every queue: those that share a term with it, itself among them."""
        together = None
        for number in range(len(self.budgets)):
            terms = [mine[number].terms for mine in self.touched]
            column = np.concatenate([np.zeros(0, dtype=np.int64), *terms])
            row = np.repeat(np.arange(len(terms)), [t.size for t in terms])
            size = self.budgets[number].resource.terms.factors.shape[0]
            matrix = csr_matrix((np.ones(row.size), (row, column)), shape=(len(terms), size))
            met = matrix @ matrix.T
            together = met if together is None else together + met
        return tuple(together[q].indices for q in range(len(self.tables))) if together is not None else ()

    def widths(self, levels: IntArray) -> FloatArray:
        """Every width of the model at these levels."""
        return self.budgets[0].resource.model.widths(self.ranking.keep(levels))

    def upper_widths(self, levels: IntArray) -> FloatArray:
        """`widths` without what goes by itself (`Analysis.settled`): a step's part in them is its own."""
        model = self.budgets[0].resource.model
        return np.asarray(model.fixed + model.counts @ self.ranking.keep(levels).astype(np.float64))

    def used(self, levels: IntArray) -> FloatArray:
        """[budgets]: what is used at these levels."""
        widths = self.widths(levels)
        return np.array([budget.resource.value(widths) for budget in self.budgets])

    def fits(self, levels: IntArray) -> bool:
        """Whether every budget is met."""
        widths = self.widths(levels)
        return all(b.resource.value(widths) <= b.bound + b.resource.fixed for b in self.budgets)

    def kept(self, levels: IntArray) -> float:
        """The sum of `worth` over the steps that stay."""
        steps = self.ranking.steps
        return float(self.worth[steps.number >= levels[steps.queue]].sum())


def _holders(resource: Resource) -> csr_matrix:
    """[widths, terms]: which terms look at a width."""
    factors = resource.terms.factors
    shape = (resource.model.counts.shape[0], factors.shape[0])
    column = np.repeat(np.arange(shape[1]), factors.shape[1])
    return csr_matrix((np.ones(factors.size), (factors.ravel(), column)), shape=shape)


def _touched(resource: Resource, holders: csr_matrix, widths: IntArray) -> _Touched:
    terms = np.unique(holders[widths].indices)
    rows = resource.columns[:, terms]
    return _Touched(terms, rows.toarray() if rows.shape[0] == 1 else rows.tocsr())


class State:
    """Levels with their costs; a move recomputes only the terms that it changes."""

    def __init__(self, problem: Problem, levels: IntArray) -> None:
        self.problem = problem
        self.levels = levels.astype(np.int64)
        self.moves = 0
        self._sync()

    def _sync(self) -> None:
        self.widths = self.problem.upper_widths(self.levels)
        terms = [budget.resource.terms.each(self.widths) for budget in self.problem.budgets]
        self.values = terms
        self.rows = [b.resource.rows @ values for b, values in zip(self.problem.budgets, terms, strict=True)]

    def _changed(self, queue: int, level: int) -> list[FloatArray]:
        """The new values of the terms that a move changes; the state's widths are left at their new values."""
        widths, lost = self.problem.tables[queue]
        self.widths[widths] += lost[self.levels[queue]] - lost[level]
        touched = self.problem.touched[queue]
        return [b.resource.terms.each(self.widths, t.terms) for b, t in zip(self.problem.budgets, touched, strict=True)]

    def _sums(self, queue: int, changed: Sequence[FloatArray]) -> list[FloatArray]:
        touched = self.problem.touched[queue]
        return [
            rows + t.rows @ (new - values[t.terms])
            for rows, values, t, new in zip(self.rows, self.values, touched, changed, strict=True)
        ]

    def trial(self, queue: int, level: int) -> list[FloatArray]:
        """For every budget, its rows if the queue were at that level; the state stays."""
        widths = self.problem.tables[queue][0]
        before = self.widths[widths]
        changed = self._changed(queue, level)
        self.widths[widths] = before
        return self._sums(queue, changed)

    def changes(self, queue: int, levels: IntArray) -> FloatArray:
        """[rows of all budgets, levels]: what each of these levels of the queue would add: many trials at once."""
        widths, lost = self.problem.tables[queue]
        there = np.repeat(self.widths[:, None], levels.size, axis=1)
        there[widths] += (lost[self.levels[queue]] - lost[levels]).T
        parts = zip(self.problem.budgets, self.problem.touched[queue], self.values, strict=True)
        return np.concatenate(
            [t.rows @ (b.resource.terms.each(there, t.terms) - v[t.terms, None]) for b, t, v in parts]
        )

    def move(self, queue: int, level: int) -> None:
        """Take a queue to a level."""
        changed = self._changed(queue, level)
        self.rows = self._sums(queue, changed)
        for values, touched, new in zip(self.values, self.problem.touched[queue], changed, strict=True):
            values[touched.terms] = new
        self.levels[queue] = level
        self.moves += 1
        if self.moves % _RESYNC == 0:
            self._sync()

    def within(self, rows: Sequence[FloatArray]) -> bool:
        """Whether rows, as `trial` gives them, meet every budget."""
        return all(bool((r <= b.bound).all()) for r, b in zip(rows, self.problem.budgets, strict=True))

    @property
    def fits(self) -> bool:
        """Whether every budget is met."""
        return self.within(self.rows)

    @property
    def room(self) -> FloatArray:
        """[rows of all budgets]: what may be added before a budget is exceeded."""
        return np.concatenate([b.bound - r for r, b in zip(self.rows, self.problem.budgets, strict=True)])


def tops(rows: Sequence[FloatArray]) -> FloatArray:
    """[budgets]: the worst row of each."""
    return np.array([r.max(initial=0.0) for r in rows])


def filled(problem: Problem, levels: IntArray, importance: FloatArray | None = None) -> IntArray:
    """The levels with steps put back as far as the budgets allow, those that matter most first.

    `importance` is [steps], by default their mean scores. A step that costs more than what is left stays gone.
    """
    state, first = State(problem, levels), problem.ranking.steps.first
    matter = problem.ranking.steps.score if importance is None else importance
    is_open = state.levels > 0
    while is_open.any():
        queues = np.flatnonzero(is_open)
        best = int(queues[np.argmax(matter[first[queues] + state.levels[queues] - 1])])
        back = int(state.levels[best]) - 1
        is_open[best] = state.within(state.trial(best, back))
        if is_open[best]:
            state.move(best, back)
            is_open[best] = back > 0
    return state.levels
