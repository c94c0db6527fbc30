"""Tables unit x class of how much each unit has to do with each class, and what follows of them for units.

G [units, classes]       as measured; a class with large gradients has large numbers
balanced                 each column divided by its mean over the units: 1 is what a unit has in the mean
label of a unit          the class with the largest balanced number of the unit
strongest                a unit's largest number for any of the classes that stay: keep it where that is above t
by cluster               what units of a cluster have to do with the classes that stay, all together
in turn                  for each class that stays its best unit, in turn, then each one's next: the units' order
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.passes.criteria.cluster_labels import cluster_evidence, cluster_labels


class ClassTable(dict[str, FloatArray]):
    """Group -> evidence, [units, classes], before any balancing; NaN where nothing is known."""

    titles: tuple[str, ...] = ()
    """What to call each class; empty where numbers do."""
    kept: tuple[int, ...] = ()
    """The columns of the classes that the plan keeps; empty where it keeps all."""


def balanced(table: FloatArray) -> FloatArray:
    """Each column divided by its mean over the units, [units, classes]; a column of zeros stays."""
    known = ~np.isnan(table)
    means = np.where(known, table, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return np.asarray(table / np.where(means > 0, means, 1.0))


def unit_labels(table: FloatArray) -> IntArray:
    """The class of each unit, [units]: that of its largest balanced number; -1 where it has none above zero."""
    found = np.nan_to_num(balanced(table), nan=0.0)
    if not found.size:
        return np.full(len(found), -1)
    return np.where(found.max(1) > 0, found.argmax(1), -1)


def strongest(table: FloatArray) -> FloatArray:
    """The largest number of each unit, [units]; NaN where one isn't known."""
    return np.asarray(table.max(1))


def in_turn(table: FloatArray) -> FloatArray:
    """The place of each unit, [units], in an order in which each class takes a unit in turn: 1 for the first that is
    taken, down to 1 / units for the last, and 0 for units that no class takes.

    A class takes the unit of its largest number that isn't taken yet, and none where it has no number above zero.
    """
    order = np.argsort(-table, axis=0, kind="stable")
    waiting = [iter(column[table[column, y] > 0].tolist()) for y, column in enumerate(order.T)]
    places = np.zeros(len(table))
    taken = 0
    while waiting:
        still = []
        for units in waiting:
            unit = next((each for each in units if not places[each]), None)
            if unit is not None:
                places[unit] = (len(table) - taken) / len(table)
                taken += 1
                still.append(units)
        waiting = still
    return places


def by_cluster(table: FloatArray, clusters: IntArray, wanted: Sequence[int], share: float) -> FloatArray:
    """Scores by the clusters of units, [units]: below 1 for those of clusters that are for no wanted class, from 1 to 2
    for the others; in each, those of a cluster stand together, and clusters whose units have in the mean more evidence
    for a wanted class come later. Units without a cluster have 0.

    `table` is balanced; `clusters` [units, layers] numbers the clusters of each layer, -1 for units without one. Where
    a unit has several clusters, the one with the most counts.
    """
    meets, most, number = np.zeros(len(table)), np.full(len(table), -1.0), np.full(len(table), -1)
    for column in clusters.T:
        mine, sums = column >= 0, cluster_evidence(table, column)
        labels = cluster_labels(table, column, share)
        for_wanted = np.array([bool(set(each) & set(wanted)) for each in labels], dtype=np.float64)
        means = sums[:, list(wanted)].max(1) / np.maximum(np.bincount(column[mine], minlength=len(sums)), 1)
        meets[mine] = np.maximum(meets[mine], for_wanted[column[mine]])
        better = np.flatnonzero(mine)[means[column[mine]] > most[mine]]
        most[better], number[better] = means[column[better]], column[better]
    inside = np.nan_to_num(table[:, list(wanted)], nan=0.0).max(1)
    order = np.lexsort((inside, number, most, meets))
    places = np.empty(len(table))
    places[order] = np.arange(len(table)) / len(table)
    return np.where(number >= 0, places + meets, 0.0)


def missing(table: FloatArray, wanted: Sequence[int]) -> list[int]:
    """Which of the wanted classes have nothing known: those of which the data had no sample."""
    return [each for each in wanted if not np.isfinite(table[:, each]).any()]
