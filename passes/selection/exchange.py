"""Improves a selection by exchanges: a step comes back, and a step that matters less goes instead.

before    conv1 has lost a step of score 6     conv2 keeps one of score 2
after     conv1 has it back                    conv2 has lost it            if the budgets still hold
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.passes.selection.problems import Problem, State, filled

_TRIED: Final = 24
"""How many exchanges are computed exactly before the search gives up."""
_MOST: Final = 30


@dataclass(frozen=True)
class _Moves:
    """Moves of queues to other levels: the score `lost` by each, and what it adds to every row of the budgets."""

    queue: IntArray
    level: IntArray
    lost: FloatArray
    change: FloatArray
    """[moves, rows]"""


def exchanged(problem: Problem, levels: IntArray) -> IntArray:
    """Levels that meet the budgets and keep at least as much score, from levels that meet them."""
    state = State(problem, filled(problem, levels))
    for _ in range(_MOST):
        if not _exchange(problem, state):
            break
    return filled(problem, state.levels)


def _exchange(problem: Problem, state: State) -> bool:
    """Make the best exchanges that are found, at most one for each queue; whether there was any."""
    back = _moves(problem, state, (-1, -2, -3))
    gone = _moves(problem, state, (1, 2, 3))
    moved: set[int] = set()
    for one, other in _pairs(state, back, gone):
        first, second = int(back.queue[one]), int(gone.queue[other])
        if moved & {first, second}:
            continue
        before = state.levels[[first, second]].tolist()
        state.move(first, int(back.level[one]))
        state.move(second, int(gone.level[other]))
        if state.fits:
            moved |= {first, second}
            continue
        state.move(second, before[1])
        state.move(first, before[0])
    return bool(moved)


def _moves(problem: Problem, state: State, by: tuple[int, ...]) -> _Moves:
    level = state.levels[:, None] + np.array(by)
    open_ = (level >= 0) & (level <= problem.last[:, None])
    change = [state.changes(q, level[q, open_[q]]).T for q in range(level.shape[0])]
    queue, levels = np.nonzero(open_)[0], level[open_]
    lost = problem.lost(queue, levels) - problem.lost(queue, state.levels[queue])
    return _Moves(queue, levels, lost, np.concatenate(change))


def _pairs(state: State, back: _Moves, gone: _Moves) -> Iterator[tuple[int, int]]:
    """(step that comes back, step that goes) by score gained, where both costs, added up, seem to fit."""
    gain = -(back.lost[:, None] + gone.lost[None, :])
    better = (gain > 1e-12) & (back.queue[:, None] != gone.queue[None, :])
    room = state.room
    dear = back.change.max(axis=0, initial=0.0) + gone.change.max(axis=0, initial=0.0) > room
    for row in np.flatnonzero(dear & np.isfinite(room)):
        better &= back.change[:, None, row] + gone.change[None, :, row] <= room[row]
    places = np.argwhere(better)
    order = np.argsort(-gain[better], kind="stable")[:_TRIED]
    yield from ((int(a), int(b)) for a, b in places[order])
