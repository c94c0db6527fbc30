"""The error that remains: what least squares leave, in the order of a search by hand; from moments and from samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from prunec.passes.repairing.surgeon import Curve, Formed, Places, Reader, Sampled, best_ridge, curve, hull_slopes

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


def _refit(u: Tensor, w: Tensor, rows: np.ndarray, ridge: float) -> Tensor:
    """The weights that make up for `rows`: zero there, and elsewhere near `w`."""
    left = np.setdiff1d(np.arange(len(w)), rows)
    stacked = torch.cat([u, ridge**0.5 * torch.eye(len(w), dtype=torch.float64)])
    found = torch.zeros_like(w)
    found[left] = w[left] + torch.linalg.lstsq(stacked[:, left], stacked[:, rows] @ w[rows]).solution
    return found


@pytest.mark.parametrize("kind", ["formed", "sampled"])
def test_errors_are_those_on_what_is_held_out(kind):
    (u, w), (held, _) = _problem(rows=6), _problem(seed=1)
    places = Places.of(UNITS, torch.device("cpu"))
    if kind == "formed":
        reader: Reader = Formed(u.T @ u, w, places, RIDGE, held.T @ held)
    else:
        reader = Sampled(u, w, places, RIDGE, held)
    found = curve([reader], np.ones(5, dtype=bool))
    assert np.array_equal(found.order, curve(_readers(kind, (u, w)), np.ones(5, dtype=bool)).order)
    errors = [0.0]
    for step in range(5):
        rows = np.concatenate([UNITS[unit] for unit in found.order[: step + 1]]).astype(np.int64)
        errors.append(float((held @ (w - _refit(u, w, rows, RIDGE))).square().sum()))
    assert np.allclose(found.error, np.maximum.accumulate(errors), rtol=1e-6)


def test_errors_on_what_is_held_out_are_measured_at_some_widths_of_many():
    generator = torch.Generator().manual_seed(0)
    u, held = (torch.randn(200, 50, generator=generator, dtype=torch.float64) / 200**0.5 for _ in range(2))
    w = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    places = Places.of([np.array([row]) for row in range(50)], torch.device("cpu"))
    found = curve([Formed(u.T @ u, w, places, RIDGE, held.T @ held)], np.ones(50, dtype=bool))
    for count in (2, 24, 50):
        apart = w - _refit(u, w, found.order[:count], RIDGE)
        assert found.error[count] == pytest.approx(float((held @ apart).square().sum()), rel=1e-6)
    assert found.error[25] == pytest.approx((found.error[24] + found.error[26]) / 2), "a line between two"


@pytest.mark.parametrize("sampled", [False, True])
def test_the_best_ridge_is_the_one_that_a_search_by_hand_finds(sampled):
    generator = torch.Generator().manual_seed(3)
    u, held = (torch.randn(n, 12, generator=generator, dtype=torch.float64) / n**0.5 for n in (8, 200))
    w, rows = torch.randn(12, 3, generator=generator, dtype=torch.float64), np.arange(0, 12, 2)
    ridges = (1e-6, 1e-4, 1e-2, 1.0, 100.0)
    errors = [float((held @ (w - _refit(u, w, rows, ridge))).square().sum()) for ridge in ridges]
    gone = np.isin(np.arange(12), rows)
    given = (u, held) if sampled else (u.T @ u, held.T @ held)
    best = ridges[int(np.argmin(errors))]
    assert best_ridge(*given, w, gone, ridges, sampled=sampled) == best
    assert best > 1e-4, "eight samples don't tell six inputs from six others"


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
