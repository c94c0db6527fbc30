"""Evidence of several places is joined, and scores of a group are normalised."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from prunec.passes.criteria.aggregates import AGGREGATES, NORMALS, Evidence, normalised
from prunec.passes.score import Score

PARTS = [
    Evidence("a", np.array([0, 1, 1, 2]), np.array([4.0, 1.0, 3.0, 5.0])),
    Evidence("b", np.array([0, 1, 3]), np.array([2.0, 7.0, 6.0])),
]


JOINED = {
    "mean": [3, 11 / 3, 5, 6, np.nan],
    "sum": [6, 11, 5, 6, np.nan],
    "max": [4, 7, 5, 6, np.nan],
    "product": [8, 21, 5, 6, np.nan],
    "first": [4, 2, 5, 6, np.nan],
}


@pytest.mark.parametrize("how", AGGREGATES)
def test_evidence_is_joined(how):
    np.testing.assert_allclose(AGGREGATES[how](5, PARTS), JOINED[how])


@pytest.mark.parametrize(
    ("how", "holds"),
    [
        ("none", lambda s, raw: np.array_equal(s, raw)),
        ("mean", lambda s, raw: np.isclose(s.mean(), 1)),
        ("max", lambda s, raw: s.max() == 1),
        ("l2", lambda s, raw: np.isclose((s**2).sum(), 1)),
        ("sum", lambda s, raw: np.isclose(s.sum(), 1)),
        ("rank", lambda s, raw: np.array_equal(s, rankdata(raw) / raw.size)),
        ("gaussian", lambda s, raw: np.isclose(s.mean(), 0) and np.isclose(s.std(), 1)),
    ],
)
def test_normalised(how, holds):
    raw = np.array([3.0, 0.0, 1.0, 1.0, 7.0])
    found = NORMALS[how](raw)
    assert holds(found, raw)
    assert np.array_equal(rankdata(found), rankdata(raw))
    assert np.isfinite(NORMALS[how](np.zeros(4))).all()


def test_every_normalisation_is_one_of_the_option(program):
    assert set(Score.model_fields["normalize"].annotation.__args__) == {"auto", *NORMALS}
    assert set(Score.model_fields["aggregate"].annotation.__args__) == {"auto", *AGGREGATES}


def test_units_of_which_nothing_is_known_are_the_last_to_go():
    assert normalised(np.array([1.0, np.nan, 3.0]), "sum").tolist() == [0.25, 0.75, 0.75]
