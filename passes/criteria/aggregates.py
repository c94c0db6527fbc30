"""Joins a criterion's evidence into one score a unit, and makes the scores of different groups comparable.

evidence of conv1.weight[0]    units 0 1 2 3    figures 4 1 2 2
evidence of conv2.weight[0]    units 0 1 2 3    figures 2 3 2 0
joined by mean                                  scores  3 2 2 1
normalised by max                               scores  1 .67 .67 .33
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from prunec.compiler.ir.program import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one source (an axis, a value of the graph) says: `figures[i]` is about unit `units[i]` of its group.

    A unit may come several times, once for each of its positions.
    """

    source: str
    units: IntArray
    figures: FloatArray
    losses: FloatArray | None = None
    """What the loss changes by, where the figures themselves are no losses but come of some."""
    remaining: FloatArray | None = None
    """The error that remains once 0, 1, 2, ... units are gone, for the report; None where none was found."""


class Scores(dict[str, FloatArray]):
    """Group -> a score for each of its units, [units]."""

    doubt: str = ""
    """Why scores of several units don't add up to a loss; empty where they do."""
    losses: Mapping[str, FloatArray] | None = None
    """The losses that the scores come of, for who adds up; None where there are none, or the scores are losses."""
    remaining: Mapping[str, FloatArray] = MappingProxyType({})
    """Group -> the error that remains once 0, 1, 2, ... units are gone, of criteria that find it."""


def _flat(parts: Sequence[Evidence]) -> tuple[IntArray, FloatArray]:
    return np.concatenate([p.units for p in parts]), np.concatenate([p.figures for p in parts])


def _count(size: int, parts: Sequence[Evidence]) -> FloatArray:
    """How many figures each unit has; NaN for none, so that the unit's score is NaN."""
    count = np.bincount(_flat(parts)[0], minlength=size).astype(np.float64)
    return np.where(count > 0, count, np.nan)


def _sum(size: int, parts: Sequence[Evidence]) -> FloatArray:
    units, figures = _flat(parts)
    return np.bincount(units, figures, minlength=size) + 0 * _count(size, parts)


def _mean(size: int, parts: Sequence[Evidence]) -> FloatArray:
    units, figures = _flat(parts)
    return np.asarray(np.bincount(units, figures, minlength=size) / _count(size, parts))


def _max(size: int, parts: Sequence[Evidence]) -> FloatArray:
    largest = np.full(size, -np.inf)
    np.maximum.at(largest, *_flat(parts))
    return np.where(np.isneginf(largest), np.nan, largest)


def _product(size: int, parts: Sequence[Evidence]) -> FloatArray:
    product = np.ones(size)
    np.multiply.at(product, *_flat(parts))
    return product + 0 * _count(size, parts)


def _first(size: int, parts: Sequence[Evidence]) -> FloatArray:
    """The mean of a unit's figures in the first source that says anything about it."""
    scores = np.full(size, np.nan)
    for part in parts:
        scores = np.where(np.isnan(scores), _mean(size, [part]), scores)
    return scores


AGGREGATES: Final[Mapping[str, Callable[[int, Sequence[Evidence]], FloatArray]]] = {
    "mean": _mean,
    "sum": _sum,
    "max": _max,
    "product": _product,
    "first": _first,
}
"""From a group's number of units and its evidence, at least one: scores, [units], NaN where nothing is known."""


def _over(size: float, scores: FloatArray) -> FloatArray:
    """Scores divided by `size`; unchanged where that is zero."""
    return scores / size if size else scores


def _ranks(scores: FloatArray) -> FloatArray:
    """The rank of each score, from 1; equal ones have the mean of theirs. `scipy.stats` has it, and takes as long to
    import as all of torch's layers."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places])


NORMALS: Final[Mapping[str, Callable[[FloatArray], FloatArray]]] = {
    "none": lambda s: s,
    "mean": lambda s: _over(float(np.mean(s)), s),
    "max": lambda s: _over(float(np.max(s)), s),
    "l2": lambda s: _over(float(np.sqrt(np.sum(s**2))), s),
    "sum": lambda s: _over(float(np.sum(s)), s),
    "rank": lambda s: _ranks(s) / s.size,
    "gaussian": lambda s: _over(float(np.std(s)), s - np.mean(s)),
}
"""From a group's scores, [units], to comparable ones. `rank` gives (0, 1], equal scores the mean of their ranks."""


def normalised(scores: FloatArray, how: str) -> FloatArray:
    """Scores that are known, made comparable; a unit of which nothing is known gets the largest of them."""
    known = ~np.isnan(scores)
    found = scores.copy()
    found[known] = NORMALS[how](scores[known])
    found[~known] = found[known].max(initial=0.0)
    return found
