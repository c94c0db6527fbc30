"""Which classes clusters of units serve: several for one cluster, and several clusters for one class.

sum over the units of a cluster of G[i, y]      the cluster's evidence for class y
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

    `evidence` is [units, classes], balanced between classes, so that these can be compared.
    """
    return tuple(_served(row, share) for row in cluster_evidence(evidence, clusters))


def _served(row: FloatArray, share: float) -> tuple[int, ...]:
    most = row.max(initial=0.0)
    order = np.argsort(-row, kind="stable")
    return tuple(int(y) for y in order if row[y] >= share * most) if most > 0 else ()
