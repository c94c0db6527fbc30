"""What follows for units of a table unit x class."""

from __future__ import annotations

import numpy as np

from prunec.passes.criteria.class_tables import balanced, by_cluster, in_turn, missing, strongest, unit_labels

NAN = np.nan


def test_columns_have_a_mean_of_one():
    table = np.array([[1.0, 0, 40], [3, 0, NAN], [2, 0, 20]])
    np.testing.assert_allclose(balanced(table), [[0.5, 0, 4 / 3], [1.5, 0, NAN], [1, 0, 2 / 3]])


def test_labels_are_taken_of_balanced_columns():
    """A class with large gradients owns no unit that says more about another."""
    table = np.array([[100.0, 3], [101, 1], [102, 2], [0, 0], [NAN, NAN]])
    assert unit_labels(table).tolist() == [1, 0, 0, -1, -1]
    assert unit_labels(np.zeros((2, 0))).tolist() == [-1, -1]


def test_strongest():
    np.testing.assert_array_equal(strongest(np.array([[1.0, 3], [2, 0], [NAN, 1]])), [3, 2, NAN])


def test_classes_take_units_in_turn():
    """Both want unit 0 first; class 1 takes its next best then. Nobody takes unit 4."""
    table = np.array([[9.0, 8], [7, 1], [6, 7], [0, 6], [0, 0]])
    order = np.argsort(-in_turn(table), kind="stable")
    assert order.tolist() == [0, 2, 1, 3, 4]
    np.testing.assert_allclose(in_turn(table)[order], [1, 0.8, 0.6, 0.4, 0])


def test_a_class_without_units_loses_its_turn():
    table = np.array([[1.0, 0, 5], [2, 0, 0], [3, 0, 0]])
    assert np.argsort(-in_turn(table), kind="stable").tolist() == [2, 0, 1]


def test_clusters_stay_whole_and_in_the_order_of_their_evidence():
    """Of four clusters one is for class 1 alone. The others go in the order of what their units have for class 0, a
    unit of them at a time, the weaker first."""
    table = np.array([[3.0, 0], [5, 0], [1, 0], [2, 0], [0, 9], [0, 8], [0.5, 0], [7, 0]])
    clusters = np.array([0, 0, 1, 1, 2, 2, -1, 3])[:, None]
    found = by_cluster(table, clusters, [0], 0.5)
    assert np.argsort(found, kind="stable").tolist() == [6, 4, 5, 2, 3, 0, 1, 7]
    assert (found >= 1).tolist() == [True] * 4 + [False] * 3 + [True]
    assert (by_cluster(table, clusters, [0, 1], 0.5) >= 1).tolist() == [True] * 6 + [False, True]


def test_a_unit_has_a_cluster_in_each_layer_of_its_group():
    table = np.array([[4.0, 0], [0, 4], [0, 4]])
    clusters = np.array([[0, -1], [1, 0], [-1, 1]])
    assert (by_cluster(table, clusters, [0], 0.5) >= 1).tolist() == [True, False, False]
    assert (by_cluster(table, np.array([[0, 0], [1, 0], [-1, 1]]), [0], 0.5) >= 1).tolist() == [True, True, False]


def test_missing():
    assert missing(np.array([[1.0, NAN, NAN], [NAN, NAN, 0]]), [0, 1, 2]) == [1]
