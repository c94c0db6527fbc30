"""The error that remains: what least squares leave, in the order of a search by hand; from moments and from samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from prunec.passes.repairing.surgeon import Curve, Formed, Places, Reader, Sampled, curve, hull_slopes

UNITS = [np.array([0, 5]), np.array([1]), np.array([2, 3]), np.array([], dtype=np.int64), np.array([4, 6, 7])]
RIDGE = 0.01


def _problem(seed: int = 0, rows: int = 40) -> tuple[Tensor, Tensor]:
    """Samples divided by the root of their number, and weights."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(rows, 9, generator=generator, dtype=torch.float64) @ torch.randn(9, 9, generator=generator).double()
    return u / rows**0.5, torch.randn(9, 3, generator=generator, dtype=torch.float64)


def _readers(kind: str, *problems: tuple[Tensor, Tensor]) -> list[Reader]:
    places = Places.of(UNITS, torch.device("cpu"))
    if kind == "formed":
        return [Formed(u.T @ u, w, places, RIDGE) for u, w in problems]
    return [Sampled(u, w, places, RIDGE) for u, w in problems]


def _error(u: Tensor, w: Tensor, gone: list[int]) -> float:
    """The least of |U (W - X)|^2 + r |W - X|^2 where X is zero in the rows of units that are gone."""
    rows = np.concatenate([UNITS[unit] for unit in gone]).astype(np.int64)
    left = np.setdiff1d(np.arange(9), rows)
    stacked = torch.cat([u, RIDGE**0.5 * torch.eye(9, dtype=torch.float64)])
    lost = stacked[:, rows] @ w[rows]
    change = torch.linalg.lstsq(stacked[:, left], lost).solution
    return float((lost - stacked[:, left] @ change).square().sum())


@pytest.mark.parametrize("kind", ["formed", "sampled"])
@pytest.mark.parametrize("count", [1, 2])
def test_each_step_is_the_cheapest_and_leaves_what_least_squares_leave(kind, count):
    problems = [_problem(seed) for seed in range(count)]
    free = np.array([True, True, True, True, True])
    found = curve(_readers(kind, *problems), free)
    gone: list[int] = []
    for step, unit in enumerate(found.order.tolist()):
        each = {u: sum(_error(*p, [*gone, u]) for p in problems) for u in range(5) if u not in gone}
        assert unit == min(each, key=lambda u: each[u])
        gone.append(unit)
        assert found.error[step + 1] == pytest.approx(each[unit], rel=1e-8, abs=1e-10)
    assert found.order[0] == 3, "a unit that nothing reads costs nothing"


def test_fewer_samples_than_inputs_are_enough():
    u, w = _problem(rows=4)
    free = np.array([True, True, True, False, True])
    formed, sampled = (curve(_readers(kind, (u, w)), free) for kind in ("formed", "sampled"))
    assert np.array_equal(formed.order, sampled.order)
    assert 3 not in formed.order, "it isn't free"
    assert np.allclose(formed.error, sampled.error)


def test_a_double_costs_nothing_until_the_other_is_gone():
    u, w = _problem()
    u[:, 4] = 2 * u[:, 1]
    places = Places.of([np.array([1]), np.array([4]), np.array([2])], torch.device("cpu"))
    found = curve([Formed(u.T @ u, w, places, 1e-12)], np.ones(3, dtype=bool))
    assert found.order[0] in (0, 1)
    assert found.error[1] < 1e-9
    assert found.error[2] > 1e-2


def test_moments_that_rounding_has_spoilt():
    moments = torch.diag(torch.tensor([1.0, -1e-6, 1.0], dtype=torch.float64))
    places = Places.of([np.array([n]) for n in range(3)], torch.device("cpu"))
    found = curve([Formed(moments, torch.eye(3, dtype=torch.float64), places, 1e-9)], np.ones(3, dtype=bool))
    assert np.isfinite(found.error).all()
    assert found.order[0] == 1


def test_scores_are_the_slopes_of_the_hull():
    assert np.allclose(hull_slopes(np.array([0.0, 1.0, 3.0, 3.5, 7.0])), [1, 1.25, 1.25, 3.5])
    found = Curve(np.array([2, 0, 3]), np.array([0.0, 2.0, 3.0, 6.0])).scores(4)
    assert np.isnan(found[1])
    assert np.allclose(found[[2, 0, 3]], [1.5, 1.5, 3])
    assert found[2] < found[0], "equal slopes leave the order as it is"
