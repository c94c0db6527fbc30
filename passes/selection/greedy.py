"""Greedy selection: one step at a time, costs looked at anew after every removal.

    key = score - sum over resources of cost_weight * what the step saves now / a million

The step with the smallest key goes, as in the cost-aware ranking of Molchanov et al. (2017), who weigh operations by
0.001 per million. Without weights that is the ranking. With `per_cost`, the key is the score for each share of the
budgets that the step saves: steps that save much for what they are worth go first.

What a step saves shrinks with the widths around it, so that a key from before a removal is a lower bound: a heap holds
them, and only those that come to its top are computed anew. Where a resource doesn't work like that (a measured table),
all that share a term with the removed step are.
"""

from __future__ import annotations

import heapq

import numpy as np

from prunec.compiler.ir.program import IntArray
from prunec.passes.selection.problems import Problem, State, filled, tops
from prunec.passes.selection.selectors import Selector, Wishes


class Greedy(Selector):
    """Remove the step with the smallest key until the budgets are met."""

    name = "greedy"
    in_steps = True

    def adds(self, wishes: Wishes) -> bool:
        """It divides scores by what they cost, if it is asked to."""
        return wishes.per_cost

    def levels(self, problem: Problem, wishes: Wishes) -> IntArray:
        """The levels at which the budgets are met, filled up; or those at which `at_most` units are gone."""
        state = State(problem, np.zeros_like(problem.last))
        descend(state, wishes)
        return filled(problem, state.levels) if state.fits else state.levels


def descend(state: State, wishes: Wishes) -> None:
    """Remove steps from a state until the budgets are met, which they must be when all are gone, or `at_most` units."""
    heap = _Heap(state, wishes)
    steps, gone = state.problem.ranking.steps, 0
    start, total = _excess(state), 20
    while not state.fits:
        queue = heap.pop()
        gone += int(steps.size[steps.first[queue] + state.levels[queue]])
        if wishes.at_most is not None and state.moves and gone > wishes.at_most:
            break
        state.move(queue, int(state.levels[queue]) + 1)
        heap.renew(queue)
        if state.moves % 64 == 0:
            wishes.progress("select", int(total * (1 - _excess(state) / max(start, 1e-12))), total)


def _excess(state: State) -> float:
    """By what share the budget that is exceeded most is exceeded."""
    over = [float(r.max(initial=0.0)) / b.bound - 1 for r, b in zip(state.rows, state.problem.budgets, strict=True)]
    return max(max(over), 0.0)


class _Heap:
    """The next step of every queue, by its key; a key is up to date until the next removal."""

    def __init__(self, state: State, wishes: Wishes) -> None:
        self.state = state
        self.weights = np.array(
            [wishes.cost_weight.get(b.name, 0.0) / b.resource.per for b in state.problem.budgets], dtype=np.float64
        )
        self.limits = np.array([b.limit for b in state.problem.budgets], dtype=np.float64)
        self.per_cost = wishes.per_cost
        self.looks = self.per_cost or bool(self.weights.any())
        counted = [b for b, w in zip(state.problem.budgets, self.weights, strict=True) if w or self.per_cost]
        self.bounded = all(b.resource.diminishing for b in counted)
        self.version = np.zeros(state.levels.size, dtype=np.int64)
        self.entries: list[tuple[float, int, int, int]] = []
        for queue in np.flatnonzero(state.levels < state.problem.last):
            self._push(int(queue))

    def _push(self, queue: int) -> None:
        self.version[queue] += 1
        entry = (self._key(queue), int(self.state.levels[queue]), queue, self.state.moves)
        heapq.heappush(self.entries, (*entry[:3], entry[3] * 2**32 + int(self.version[queue])))

    def _key(self, queue: int) -> float:
        problem, level = self.state.problem, int(self.state.levels[queue])
        steps = problem.ranking.steps
        step = int(steps.first[queue]) + level
        score = float(steps.score[step])
        if not self.looks:
            return score
        saved = tops(self.state.rows) - tops(self.state.trial(queue, level + 1))
        if not self.per_cost:
            return score - float(self.weights @ saved) / int(steps.size[step])
        share = float((saved / self.limits).sum())
        worth = float(problem.worth[step])
        return worth / share if share > 0 else np.inf if worth > 0 else worth

    def pop(self) -> int:
        """The queue whose next step has the smallest key."""
        while True:
            _, _, queue, stamp = heapq.heappop(self.entries)
            moves, version = divmod(stamp, 2**32)
            if version != self.version[queue]:
                continue
            if not self.looks or not self.bounded or moves == self.state.moves:
                return queue
            self._push(queue)

    def renew(self, queue: int) -> None:
        """After a removal, push the queue's next step, and compute anew the keys that have no lower bound."""
        last = self.state.problem.last
        again = [queue] if self.bounded else self.state.problem.neighbours[queue].tolist()
        self.version[queue] += 1
        for each in again:
            if self.state.levels[each] < last[each]:
                self._push(each)
