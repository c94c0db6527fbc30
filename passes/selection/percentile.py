"""One threshold for many groups, at a share of all their scores: the global percentile of network slimming (Liu 2017).

    scores of all units together, rising    .1 .2 .2 .3 .5 .6 .7 .8 .9 1.
    ratio: 30%                              threshold .3, at position int(10 * 30%), counted from 0
    what stays                              scores strictly above it: .1 .2 .2 .3 go, and so would others of .3

With distinct scores one unit more goes than the share says, as in the paper's code. The share is one of the traced
model's units, of all groups that are scored and may be cut: those that earlier rounds took count as the lowest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prunec.compiler.ir.program import FloatArray, IntArray, Note
from prunec.passes.selection.per_group import Way
from prunec.passes.selection.ranking import Ranking


def by_percentile(ranking: Ranking, scores: Mapping[str, FloatArray], ratio: float, class_of: IntArray) -> Way:
    """Units at or under the threshold of their class go, as far as limits and packs allow; `class_of` [queues].

    Where they allow less, a note says so.
    """
    names: dict[int, list[str]] = {}
    for name, queue in ranking.groups.items():
        names.setdefault(int(class_of[queue]), []).append(name)
    found = {number: _threshold(ranking, scores, each, ratio) for number, each in names.items()}
    limits = np.array([np.nextafter(found[int(number)], np.inf) for number in class_of])
    levels = ranking.below(limits)
    told = [value for value in found.values() if np.isfinite(value)]
    details = {"threshold": told[0]} if len(told) == len(names) == 1 else {}
    return Way(ranking, levels, _held_back(ranking, scores, levels, limits), details)


def _threshold(ranking: Ranking, scores: Mapping[str, FloatArray], names: list[str], ratio: float) -> float:
    """The score at or under which units go; minus infinity where none do."""
    values = np.sort(np.concatenate([scores[name] for name in names]))
    whole = sum(ranking.whole.get(name, scores[name].size) for name in names)
    place = int(whole * ratio + 1e-9) - (whole - values.size)
    return float(values[min(place, values.size - 1)]) if ratio and place >= 0 else -np.inf


def _held_back(
    ranking: Ranking, scores: Mapping[str, FloatArray], levels: IntArray, limits: FloatArray
) -> tuple[Note, ...]:
    """A note for each group that keeps units whose score says that they go."""
    keep, groups, notes = ranking.keep(levels), ranking.analysis.groups, list[Note]()
    for name, queue in ranking.groups.items():
        asked = int((scores[name] < limits[queue]).sum())
        gone = int((~keep[groups[name].where]).sum())
        if gone < asked:
            size = groups[name].size
            notes.append(Note(name, f"{asked} of {size} units are at or under the threshold; {gone} of them may go"))
    return tuple(notes)
