"""Which outputs and which inputs of a layer make a group, so that what a grouped layer would lose is least.

    scores [rows, columns]      rows [0 1 0 1], columns [1 1 0 0]: row 0 reads columns 2 and 3 alone

Every group has equally many rows, and equally many columns. Given the columns' groups, the best groups of rows are an
assignment problem, which is solved exactly, and so are those of columns given the rows'. The two take turns until
nothing is gained: from the order in which the channels stand, from the one that the leading singular vectors tell, and
from a few random ones. The best is taken. (To find the best of all is as hard as cutting a graph.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.ir.program import FloatArray, IntArray

STARTS: Final = 6
"""Random starts, beside the two others."""
ROUNDS: Final = 50
"""The most turns; a few are usual."""
EXACT: Final = 1024
"""With more lines than this, the assignment is made greedily: its time grows with their third power."""


def balanced_groups(scores: FloatArray, groups: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """The group of each row and of each column, which keep the most of `scores`, [rows, columns], none negative.

    Raises ValueError where rows or columns can't be shared out evenly.
    """
    if scores.shape[0] % groups or scores.shape[1] % groups:
        raise ValueError(f"{scores.shape[0]} rows and {scores.shape[1]} columns make no {groups} groups")
    found = (_settled(scores, columns, groups) for columns in _starts(scores, groups, rng))
    rows, columns = max(found, key=lambda pair: kept_score(scores, *pair))
    return by_appearance(rows, columns)


def kept_score(scores: FloatArray, rows: IntArray, columns: IntArray) -> float:
    """The sum of the scores within groups."""
    return float(scores[rows[:, None] == columns[None, :]].sum())


def by_appearance(first: IntArray, second: IntArray) -> tuple[IntArray, IntArray]:
    """Two assignments to the same groups, numbered as they appear in the first."""
    values, places = np.unique(first, return_index=True)
    number = np.argsort(np.argsort(places))
    return number[np.searchsorted(values, first)], number[np.searchsorted(values, second)]


def _starts(scores: FloatArray, groups: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Groups of columns to begin with."""
    count = scores.shape[1]
    even = np.repeat(np.arange(groups), count // groups)
    yield even
    yield _spectral(scores, groups)
    for _ in range(STARTS):
        yield rng.permutation(even)


def _spectral(scores: FloatArray, groups: int) -> IntArray:
    """Columns by what the leading singular vectors tell of them, each group seeded by the column farthest from the
    others' seeds."""
    scaled = scores / np.sqrt(np.outer(scores.sum(1) + 1e-30, scores.sum(0) + 1e-30))
    _, _, vectors = np.linalg.svd(scaled, full_matrices=False)
    places = vectors[:groups].T
    places = places / (np.linalg.norm(places, axis=1, keepdims=True) + 1e-30)
    seeds = [int(np.argmax(scores.sum(0)))]
    while len(seeds) < groups:
        seeds.append(int(np.argmin(np.abs(places @ places[seeds].T).max(1))))
    return _shared_out(places @ places[seeds].T)


def _settled(scores: FloatArray, columns: IntArray, groups: int) -> tuple[IntArray, IntArray]:
    """Take turns until nothing is gained."""
    last = -np.inf
    rows = np.zeros(scores.shape[0], dtype=np.int64)
    for _ in range(ROUNDS):
        rows = _shared_out(scores @ np.eye(groups)[columns])
        columns = _shared_out(scores.T @ np.eye(groups)[rows])
        value = kept_score(scores, rows, columns)
        if value <= last * (1 + 1e-12):
            break
        last = value
    return rows, columns


def _shared_out(gains: FloatArray) -> IntArray:
    """[lines]: the group of each line, equally many in each, for the largest sum of `gains`, [lines, groups]."""
    lines, groups = gains.shape
    room = lines // groups
    if lines <= EXACT:
        from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  (slow to import)

        _, seats = linear_sum_assignment(np.repeat(gains, room, axis=1), maximize=True)
        return np.asarray(seats // room, dtype=np.int64)
    free = np.full(groups, room)
    found = np.zeros(lines, dtype=np.int64)
    ordered = np.sort(gains, axis=1)
    for line in np.argsort(ordered[:, -2] - ordered[:, -1], kind="stable"):  # the surest first
        open_ones = np.where(free > 0, gains[line], -np.inf)
        found[line] = int(np.argmax(open_ones))
        free[found[line]] -= 1
    return found


def group_mask(weight: Tensor, groups: int, seed: int = 0) -> Tensor:
    """True where elements of a weight, [out, in, ...], stay, so that it can become a grouped layer's: for a loop of
    one's own. Kernels count by the sums of their elements' sizes.

    Raises ValueError where outputs or inputs can't be shared out evenly.
    """
    scores = weight.detach().abs().double().reshape(*weight.shape[:2], -1).sum(2).numpy(force=True)
    rows, columns = balanced_groups(scores, groups, np.random.default_rng(seed))
    stays = torch.from_numpy(rows[:, None] == columns[None, :]).to(weight.device)
    return stays.reshape(*stays.shape, *[1] * (weight.ndim - 2)).expand(weight.shape)
