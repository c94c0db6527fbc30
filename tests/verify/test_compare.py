"""How far two values are apart: relative to the right one, and infinite where they can't be compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prunec.compiler.verify.compare import compare_values, difference, leaf_difference, magnitude, relative_difference
from prunec.compiler.verify.masks import FREE, KEPT, REMOVED, Marked

INF, NAN = math.inf, math.nan


def t(*values: complex, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


LEAVES = {
    "equal": (t(1.0, -4.0), t(1.0, -4.0), 0),
    "relative to the largest": (t(1.0, -3.0), t(1.0, -4.0), 0.25),
    "the right one is zero": (t(0.5), t(0.0), INF),
    "both are zero": (t(0.0), t(0.0), 0),
    "another shape": (t(1.0), t(1.0, 1.0), INF),
    "another kind": (t(1), t(1.0), INF),
    "another precision": (t(1.0, dtype=torch.float64), t(1.0), 0),
    "whole numbers": (t(1, 2), t(1, 2), 0),
    "other whole numbers": (t(1, 3), t(1, 2), INF),
    "truth values": (t(True, False), t(True, True), INF),
    "no elements": (t(), t(), 0),
    "both infinite": (t(INF, 2.0), t(INF, 4.0), 0.5),
    "both no number": (t(NAN, 4.0), t(NAN, 4.0), 0),
    "other signs of infinity": (t(-INF, 1.0), t(INF, 1.0), INF),
    "one is no number": (t(NAN, 1.0), t(1.0, 1.0), INF),
    "infinite where it isn't": (t(INF, 1.0), t(1.0, 1.0), INF),
    "complex": (t(3 + 4j), t(3 + 2j), 2 / 3),
    "complex for real": (t(1 + 0j), t(1.0), INF),
    "numbers": (2, 2, 0),
    "other numbers": (2, 3, INF),
    "no tensor": (2, t(2.0), INF),
}


@pytest.mark.parametrize(("got", "want", "expected"), LEAVES.values(), ids=LEAVES)
def test_single_values(got, want, expected):
    assert leaf_difference(got, want) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("got", "want", "expected"),
    [
        ((t(1.0), [t(3.0)]), (t(1.0), [t(4.0)]), 0.25),
        ([t(1.0)], (t(1.0),), INF),
        ({"a": t(1.0)}, {"b": t(1.0)}, INF),
        ((), (), 0),
        ({"a": None, "b": 1}, {"a": None, "b": 1}, 0),
    ],
    ids=["the worst counts", "another nest", "another key", "empty", "other things"],
)
def test_nests(got, want, expected):
    assert difference(got, want) == expected


@pytest.mark.parametrize(("values", "expected"), [((1, -3, 2), 3), ((1, -INF, 2), 2), ((NAN, -0.5), 0.5), ((NAN,), 0)])
def test_the_largest_finite_magnitude(values, expected):
    assert magnitude(t(*map(float, values))) == expected


def marked(data: torch.Tensor, *marks: int, shape: tuple[int, ...] = (1, -1)) -> Marked:
    return Marked(data, torch.tensor(marks, dtype=torch.uint8).reshape(shape))


OLD = torch.arange(8.0).reshape(2, 4)
COLUMNS = marked(OLD, KEPT, REMOVED, KEPT, KEPT)


def test_what_is_kept_is_compared_in_its_order():
    found = compare_values(COLUMNS, OLD[:, [0, 2, 3]], diagnose=True)
    assert found is not None
    assert (found.difference, found.got, found.want, found.reordered) == (0, (2, 3), (2, 3), True)
    found = compare_values(COLUMNS, OLD[:, [0, 3, 2]], diagnose=True)
    assert found is not None
    assert found.difference == pytest.approx(1 / 7)
    assert found.reordered
    found = compare_values(COLUMNS, OLD[:, [0, 1, 2]], diagnose=True)
    assert found is not None
    assert not found.reordered


def test_another_count_is_told_by_its_shape():
    found = compare_values(COLUMNS, OLD, diagnose=True)
    assert found is not None
    assert (found.difference, found.got, found.want) == (INF, (2, 4), (2, 3))


@pytest.mark.parametrize("shape", [(1, 4), (2, 4)], ids=["by columns", "by elements"])
def test_marks_may_vary_along_any_dimension(shape):
    value = marked(OLD, *[KEPT, REMOVED, KEPT, KEPT] * shape[0], shape=shape)
    found = compare_values(value, OLD[:, [0, 2, 3]])
    assert found is not None
    assert found.difference == 0


@pytest.mark.parametrize(
    ("want", "got"),
    [
        (3, 4),
        ((OLD, OLD), OLD),
        (marked(OLD, FREE, REMOVED, KEPT, KEPT), OLD[:, 2:]),
        (marked(torch.arange(4)[None], REMOVED, REMOVED, REMOVED, REMOVED), torch.zeros(1, 1, dtype=torch.int64)),
    ],
    ids=["numbers", "several", "constants that went along", "places among channels"],
)
def test_what_can_not_be_told(want, got):
    assert compare_values(want, got) is None


ARRAYS = {
    "equal": ([[1.0, 2.0]], [[1.0, 2.0]], 0),
    "relative": ([[1.0, 3.0]], [[1.0, 4.0]], 0.25),
    "the worst": ([[1.0], [3.0]], [[1.0], [4.0]], 0.25),
    "no number": ([[NAN]], [[1.0]], INF),
    "no number wanted": ([[1.0, 2.0]], [[NAN, 2.0]], INF),
    "the same that is no number": ([[NAN, INF, 3.0]], [[NAN, INF, 4.0]], 0.25),
    "other infinities": ([[INF, 1.0]], [[-INF, 1.0]], INF),
    "nothing finite": ([[NAN]], [[NAN]], 0),
    "for zero": ([[1.0]], [[0.0]], INF),
    "zeros": ([[0.0]], [[0.0]], 0),
    "shapes": ([[1.0]], [[1.0, 1.0]], INF),
    "counts": ([[1.0]], [[1.0], [1.0]], INF),
    "none": ([], [], 0),
    "empty": ([[]], [[]], 0),
}


@pytest.mark.parametrize(("got", "expected", "apart"), ARRAYS.values(), ids=ARRAYS)
def test_arrays(got, expected, apart):
    one, other = ([np.array(value, dtype=np.float32) for value in values] for values in (got, expected))
    assert relative_difference(one, other) == apart
