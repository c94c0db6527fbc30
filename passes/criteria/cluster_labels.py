"""Which classes clusters of units serve: several for one cluster, and several clusters for one class.

    sum over the units of a cluster of G[i, y]      the cluster's evidence for class y

The strongest class of a cluster is always one that it serves. So are others that come near it, as long as the cluster's
units have more evidence for them than the layer's have in the mean: else a cluster of units that serve all classes a
little would be one for all of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from prunec.compiler.ir.program import FloatArray, IntArray

SHARE: Final = 0.5
"""A cluster serves the classes for which its evidence is at least this share of that for its strongest class."""


def cluster_evidence(evidence: FloatArray, clusters: IntArray) -> FloatArray:
    """[clusters, classes]: each cluster's sums of its units' evidence [units, classes], of which NaN says nothing.

    `clusters` is each unit's, [units], counted from 0; units with a negative one belong to none.
    """
    count = int(clusters.max(initial=-1)) + 1
    found = np.zeros((count, evidence.shape[1]))
    mine = clusters >= 0
    np.add.at(found, clusters[mine], np.nan_to_num(evidence[mine]))
    return found


def cluster_labels(evidence: FloatArray, clusters: IntArray, share: float = SHARE) -> tuple[tuple[int, ...], ...]:
    """For each cluster the classes that it serves, the strongest first; none where it has no evidence at all.

    `evidence` is [units, classes], balanced between classes: 1 is what a unit has in the mean.
    """
    sums = cluster_evidence(evidence, clusters)
    sizes = np.bincount(clusters[clusters >= 0], minlength=len(sums))
    return tuple(_served(row, float(size), share) for row, size in zip(sums, sizes, strict=True))


def _served(row: FloatArray, size: float, share: float) -> tuple[int, ...]:
    """The classes of one cluster, by its sums and its number of units."""
    most = row.max(initial=0.0)
    order = np.argsort(-row, kind="stable")
    near = [int(y) for y in order if row[y] >= share * most and (row[y] > size or row[y] == most)]
    return tuple(near) if most > 0 else ()
