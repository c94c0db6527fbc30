"""Labels of clusters: the strongest class, and all that come near it."""

from __future__ import annotations

import numpy as np

from prunec.passes.criteria.cluster_labels import cluster_evidence, cluster_labels

EVIDENCE = np.array([[3.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 5.0, 0.0], [np.nan, 9.0, 9.0], [0.0, 0.0, 0.0]])
CLUSTERS = np.array([0, 0, 1, -1, 2])


def test_a_cluster_sums_its_units_evidence_and_nobody_elses():
    assert cluster_evidence(EVIDENCE, CLUSTERS).tolist() == [[4, 0, 2], [0, 5, 0], [0, 0, 0]]
    assert cluster_evidence(EVIDENCE, np.full(5, -1)).shape == (0, 3)


def test_a_cluster_serves_all_classes_above_a_share_of_its_strongest():
    assert cluster_labels(EVIDENCE, CLUSTERS, 0.5) == ((0, 2), (1,), ())
    assert cluster_labels(EVIDENCE, CLUSTERS, 0.6) == ((0,), (1,), ())
