"""Near-exact selection: the largest sum of kept scores that all budgets can hold.

Scores must add up for that: losses do, norms don't. A norm over its group's mean makes a unit of an early layer, which
costs several times as much, worth no more than any other, and so early layers are emptied.

Every queue is at one of its levels: a knapsack of multiple choice. What a level saves is a prefix sum of terms that
multiply widths of several queues, so that the budgets aren't linear. They are linearised where the search stands,

    used(levels) = used(here) + sum over queues of (used(here, with that queue's level) - used(here))

which is exact for a move of one queue, and an integer program is solved (`scipy.optimize.milp`) over a few levels of
each queue, spread as far as `reach`. Its answer is brought within the budgets, filled up, and improved by exchanges; if
that keeps more, the search goes on from there, and otherwise within a smaller reach. It starts from what the ranking
(which greedy selection by score is, too) and greedy selection by score per cost give, and so never keeps less.

Where there are few selections, all are tried. Where there are many queues, the program is relaxed to a linear one,
which is solved ten times as fast: a vertex of it has no more queues between two levels than there are rows of budgets
that bind, so that rounding them changes little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, vstack

from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.compiler.targets.captured import captured
from prunec.passes.selection.exchange import exchanged
from prunec.passes.selection.greedy import Greedy, descend
from prunec.passes.selection.problems import Problem, State, filled
from prunec.passes.selection.selectors import RankingSelector, Selector, Wishes

_CHOICES: Final = 17
"""How many levels of a queue are considered at a time."""
_ROUNDS: Final = 16
_NODES: Final = 20
"""An integer program is given up after this many nodes: a count, not a time, so that the answer is always the same."""
_GAP: Final = 1e-4
_FEW: Final = 2048
"""Up to this many selections, all are tried: that takes milliseconds."""
_WHOLE: Final = 100
"""With more choices than this, the integer program is relaxed to a linear one."""


class Knapsack(Selector):
    """Keep as much score as the budgets hold."""

    name = "knapsack"

    def adds(self, wishes: Wishes) -> bool:
        """It looks for the largest sum."""
        return True

    def levels(self, problem: Problem, wishes: Wishes) -> IntArray:
        """The best levels that were found."""
        if problem.fits(problem.last * 0):
            return problem.last * 0
        if np.prod(problem.last + 1.0) <= _FEW:
            return _best_of_all(problem)
        starts = [RankingSelector().levels(problem, Wishes()), Greedy().levels(problem, Wishes(per_cost=True))]
        best = exchanged(problem, max(starts, key=problem.kept))
        reach = max(int(problem.last.max(initial=0)), 1)
        for done in range(_ROUNDS):
            wishes.progress("knapsack", done, _ROUNDS)
            better = _step(problem, best, reach)
            if better is not None and problem.kept(better) > problem.kept(best) + 1e-12:
                best = better
            elif reach == 1:
                break
            else:
                reach = max(reach // 3, 1)
        wishes.progress("knapsack", _ROUNDS, _ROUNDS)
        return best


def _best_of_all(problem: Problem) -> IntArray:
    """Of all selections that the budgets hold, the one that keeps most. All gone fits, so there is one."""
    queues = np.flatnonzero(problem.last)
    levels = np.indices((problem.last[queues] + 1).tolist()).reshape(queues.size, -1)
    widths = np.repeat(problem.widths(problem.last * 0)[:, None], levels.shape[1], axis=1)
    lost = np.zeros(levels.shape[1])
    for queue, mine in zip(queues.tolist(), levels, strict=True):
        narrowed, by = problem.tables[queue]
        widths[narrowed] -= by[mine].T
        lost += problem.lost(np.full_like(mine, queue), mine)
    for budget in problem.budgets:
        rows = budget.resource.rows @ budget.resource.terms.each(widths)
        lost[rows.max(axis=0, initial=0.0) > budget.bound] = np.inf
    found = np.zeros_like(problem.last)
    found[queues] = levels[:, np.argmin(lost)]
    return found


@dataclass(frozen=True)
class _Choices:
    """Levels to choose among, of all queues one behind the other: the score each loses, its effect on the budgets."""

    queue: IntArray
    level: IntArray
    lost: FloatArray
    change: FloatArray
    """[rows, choices]"""
    room: FloatArray
    """[rows]: what may be added before a budget is exceeded."""
    rows: IntArray
    """Which rows of the budgets these are: those that could be exceeded."""


def _step(problem: Problem, levels: IntArray, reach: int) -> IntArray | None:
    """The levels that an integer program chooses around `levels`, within the budgets; None where there are none.

    The room is corrected once by the error of the linear estimate.
    """
    choices = _choices(problem, levels, reach)
    found: list[IntArray] = []
    room = choices.room
    for _ in range(2):
        answer = _solved(choices, room, levels)
        if answer is None or any((answer == known).all() for known in found):
            break
        found.append(answer)
        room = room + _error(problem, choices, levels, answer)
    within = [exchanged(problem, _within(problem, answer)) for answer in found]
    return max(within, key=problem.kept, default=None)


def _within(problem: Problem, levels: IntArray) -> IntArray:
    """The levels, with as much more gone as the budgets ask for, or less."""
    state = State(problem, levels)
    if not state.fits:
        descend(state, Wishes(per_cost=True))
    return filled(problem, state.levels)


def _choices(problem: Problem, levels: IntArray, reach: int) -> _Choices:
    state = State(problem, levels)
    choices = [_spread(level, last, reach) for level, last in zip(levels.tolist(), problem.last.tolist(), strict=True)]
    at = np.repeat(np.arange(levels.size), [each.size for each in choices])
    to = np.concatenate(choices)
    change = np.concatenate([state.changes(queue, each) for queue, each in enumerate(choices)], axis=1)
    rows = np.flatnonzero(np.maximum(change, 0).sum(axis=1) > state.room)
    return _Choices(at, to, problem.lost(at, to), change[rows], state.room[rows], rows)


def _spread(level: int, last: int, reach: int) -> IntArray:
    """Levels around one, close together near it, and as far as `reach`."""
    half = (_CHOICES - 1) // 2
    if reach <= half:
        return np.arange(max(level - reach, 0), min(level + reach, last) + 1)
    offsets = np.unique(np.round(np.geomspace(1, reach, half)).astype(int))
    around = np.concatenate([level - offsets, [level], level + offsets])
    return np.unique(np.clip(around, 0, last))


def _solved(choices: _Choices, room: FloatArray, levels: IntArray) -> IntArray | None:
    """The level of every queue that loses least by the linear estimate; of two levels, the higher one."""
    count = choices.queue.size
    one = csr_matrix((np.ones(count), (choices.queue, np.arange(count))), shape=(levels.size, count))
    scale = np.maximum(np.abs(choices.change).max(axis=1, initial=0.0), 1e-12)
    rows = vstack([one, csr_matrix(choices.change / scale[:, None])]).tocsc()
    low = np.concatenate([np.ones(levels.size), np.full(room.size, -np.inf)])
    high = np.concatenate([np.ones(levels.size), room / scale])
    worth = max(float(np.abs(choices.lost).max(initial=0.0)), 1e-300)
    with captured():  # HiGHS prints names of its functions now and then
        answer = milp(
            choices.lost / worth,
            integrality=np.full(count, int(count <= _WHOLE)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(rows, low, high),
            options={"node_limit": _NODES, "mip_rel_gap": _GAP, "presolve": False},
        )
    if answer.x is None:
        return None
    found = np.zeros_like(levels)
    picked = answer.x > (0.5 if count <= _WHOLE else 1e-6)
    np.maximum.at(found, choices.queue[picked], choices.level[picked])
    return found


def _error(problem: Problem, choices: _Choices, levels: IntArray, answer: IntArray) -> FloatArray:
    """[rows]: by how much the linear estimate of an answer was too high; negative where it was too low."""
    picked = np.flatnonzero(answer[choices.queue] == choices.level)
    estimate = choices.change[:, picked].sum(axis=1)
    before, after = State(problem, levels).room[choices.rows], State(problem, answer).room[choices.rows]
    return np.asarray(estimate - (before - after))
