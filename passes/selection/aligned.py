"""Queues of groups whose layers hold different parts of them: of streams that are shuffled, split and joined.

    a, b -> cat, shuffle, split     a unit of the first half     a channel of a, one of b, two of c
    second half -> conv -> c        a unit of the second half    a channel of a, one of b, and two that conv reads

A multiple must hold in every layer, and how many units stay says nothing of `c` or of `conv`. What is over a multiple
of each layer's channels is a *remainder*; units that change the remainders alike are of one *kind*. A step starts where
nothing is over, takes the least important unit of all, and goes on to the nearest set with nothing over, by the least
important units of the kinds that lead there. How near a remainder is, is known from a search backwards from zero. A
whole network may have something over, so the first step may be longer than others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from prunec.compiler.groups.analysis import Group
from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray

MOST: Final = 20_000
"""Remainders that are looked at; layers for which there are more aren't asked."""


def parts(group: Group) -> IntArray:
    """[layers, units]: how many channels of each layer a unit holds, layers that are alike once; no layers where all
    units hold equally many of each."""
    held = [np.bincount(m.units, minlength=group.size) for m in group.members if m.role in ("writer", "reader")]
    if all(row.min() == row.max() for row in held):
        return np.zeros((0, group.size), dtype=np.int64)
    return np.unique(np.array(held, dtype=np.int64), axis=0)


def in_aligned_steps(held: IntArray, multiple: int, scores: FloatArray, may_go: BoolArray) -> tuple[IntArray, IntArray]:
    """Units in the order in which they go, and after how many of them the layers keep a multiple of their channels.

    `held` [layers, units] are the channels of each that a unit holds. A layer that is narrower than the multiple keeps
    one of half of it, of a quarter, ..., whatever it is wide enough for. Layers of many units come first; one that
    would leave less than half of the steps, since a unit that must stay holds many of its channels, isn't asked.
    Where no step is left that all of them allow, units go on one by one.
    """
    rows = held[np.argsort(-(held > 0).sum(axis=1), kind="stable")]
    asked, gone, ends = rows[:0], np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for row in rows:
        more = np.concatenate([asked, row[None]])
        tried = _aligned(more, multiple, scores, may_go)
        if 2 * tried[1].size >= max(ends.size, 1):
            asked, (gone, ends) = more, tried
    order = np.argsort(scores, kind="stable")
    rest = order[may_go[order] & ~np.isin(order, gone)]
    return np.concatenate([gone, rest]), np.concatenate([ends, np.arange(gone.size, gone.size + rest.size) + 1])


def _aligned(held: IntArray, multiple: int, scores: FloatArray, may_go: BoolArray) -> tuple[IntArray, IntArray]:
    """As of `in_aligned_steps`, for all of these layers and no further; empty where there are too many remainders."""
    kinds, kind_of = np.unique(_remainders(held, multiple).T, axis=0, return_inverse=True)
    near = _distances(kinds.tobytes(), kinds.shape, multiple)
    if not near:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return _walked(kinds, kind_of.reshape(-1), multiple, near, scores, may_go)


def _remainders(held: IntArray, multiple: int) -> IntArray:
    """[layers, units]: what each unit adds; scaled where a layer is narrower than the multiple."""
    own = np.array([_fitting(multiple, int(width)) for width in held.sum(axis=1)], dtype=np.int64)
    return held * (multiple // own)[:, None] % multiple


def _fitting(multiple: int, width: int) -> int:
    """The largest half, quarter, ... of a multiple that a layer of this width has."""
    while multiple > width and multiple % 2 == 0:
        multiple //= 2
    return multiple if multiple <= width else 1


@lru_cache(maxsize=64)
def _distances(kinds: bytes, shape: tuple[int, int], multiple: int) -> dict[bytes, int]:
    """Remainder -> the fewest units that must go until nothing is over. Empty where there are more than MOST."""
    added = np.frombuffer(kinds, dtype=np.int64).reshape(shape)
    front, near = np.zeros((1, shape[1]), dtype=np.int64), {bytes(8 * shape[1]): 0}
    while len(front):
        if len(near) > MOST or len(front) * len(added) > 10 * MOST:
            return {}
        reached = np.unique(((front[:, None] + added) % multiple).reshape(-1, shape[1]), axis=0)
        front = reached[[row.tobytes() not in near for row in reached]]
        near.update(dict.fromkeys((row.tobytes() for row in front), max(near.values()) + 1))
    return near


def _walked(
    kinds: IntArray, kind_of: IntArray, multiple: int, near: dict[bytes, int], scores: FloatArray, may_go: BoolArray
) -> tuple[IntArray, IntArray]:
    """As of `in_aligned_steps`, by kinds [kinds, layers] and the distances of remainders."""
    order = np.argsort(-scores, kind="stable")
    queues = [order[(kind_of[order] == kind) & may_go[order]].tolist() for kind in range(len(kinds))]
    over = kinds[kind_of].sum(axis=0) % multiple
    gone: list[int] = []
    ends: list[int] = []
    begin = set(range(len(kinds)))
    while begin:
        first, step, left = _step(kinds, multiple, near, over, scores, queues, begin)
        if step:
            gone, queues, over = gone + step, left, np.zeros_like(over)
            ends.append(len(gone))
        elif over.any():
            break
        else:
            begin.discard(first)
    return np.array(gone, dtype=np.int64), np.array(ends, dtype=np.int64)


def _step(
    kinds: IntArray,
    multiple: int,
    near: dict[bytes, int],
    over: IntArray,
    scores: FloatArray,
    queues: list[list[int]],
    begin: set[int],
) -> tuple[int, list[int], list[list[int]]]:
    """The kind of which the first unit is, the units of a step, and what is left of the queues [kinds], whose last
    units are the least important; no units where there is no way. Where nothing is over, a step begins with one of the
    kinds in `begin`."""
    left = [list(queue) for queue in queues]
    step: list[int] = []
    fit = set(range(len(kinds))) if over.any() else begin
    first = next(iter(fit))
    for _ in range(1 + max(near.values())):
        ways = {kind: near[((over - kinds[kind]) % multiple).tobytes()] for kind in fit if left[kind]}
        if not ways:
            break
        nearest = min(ways.values()) if over.any() else None
        open_ = [kind for kind, distance in ways.items() if nearest in (None, distance)]
        kind = min(open_, key=lambda each: (scores[left[each][-1]], each))
        first = first if step else kind
        step.append(left[kind].pop())
        over, fit = (over - kinds[kind]) % multiple, set(range(len(kinds)))
        if not over.any():
            return first, step, left
    return first, [], queues
