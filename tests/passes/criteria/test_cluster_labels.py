"""Labels of clusters: the strongest class, and all that come near it and are above the mean."""

from __future__ import annotations

import numpy as np

from prunec.passes.criteria.class_tables import balanced
from prunec.passes.criteria.cluster_labels import cluster_evidence, cluster_labels

EVIDENCE = np.array([[5.0, 0.0, 1.5], [1.0, 0.0, 2.0], [0.0, 5.0, 0.0], [np.nan, 9.0, 9.0], [0.0, 0.0, 0.0]])
CLUSTERS = np.array([0, 0, 1, -1, 2])


def test_a_cluster_sums_its_units_evidence_and_nobody_elses():
    assert cluster_evidence(EVIDENCE, CLUSTERS).tolist() == [[6, 0, 3.5], [0, 5, 0], [0, 0, 0]]
    assert cluster_evidence(EVIDENCE, np.full(5, -1)).shape == (0, 3)


def test_a_cluster_serves_all_classes_above_a_share_of_its_strongest():
    assert cluster_labels(EVIDENCE, CLUSTERS, 0.5) == ((0, 2), (1,), ())
    assert cluster_labels(EVIDENCE, CLUSTERS, 0.6) == ((0,), (1,), ())


def test_what_is_below_the_mean_is_no_class_of_a_cluster_but_its_strongest():
    assert cluster_labels(np.array([[1.2, 0.9, 1.1], [1.2, 0.9, 1.0]]), np.zeros(2, dtype=int), 0.5) == ((0, 2),)
    assert cluster_labels(np.array([[0.3, 0.2], [0.5, 0.5]]), np.zeros(2, dtype=int), 0.5) == ((0,),)


def test_units_of_a_class_in_two_clusters_give_it_both():
    table = balanced(np.array([[4.0, 0.1], [4.0, 0.1], [3.0, 0.2], [0.1, 5.0]]))
    assert cluster_labels(table, np.array([0, 0, 1, 2])) == ((0,), (0,), (1,))
