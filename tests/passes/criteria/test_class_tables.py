"""What follows for units of a table unit x class."""

from __future__ import annotations

import numpy as np

from prunec.passes.criteria.class_tables import balanced, in_turn, missing, strongest, unit_labels

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


def test_missing():
    assert missing(np.array([[1.0, NAN, NAN], [NAN, NAN, 0]]), [0, 1, 2]) == [1]
