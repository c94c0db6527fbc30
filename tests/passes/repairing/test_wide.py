"""Least squares from the rows themselves give what sums over them give, with fewer rows than inputs and with more."""

from __future__ import annotations

import pytest
import torch

from prunec.passes.repairing import moments, wide
from prunec.passes.repairing.moments import Fit, Moments
from prunec.passes.repairing.wide import Rows, Solver


def _rows(count: int, groups: int = 2, p: int = 30, o: int = 3) -> tuple[torch.Tensor, torch.Tensor, Fit]:
    torch.manual_seed(0)
    u, t = torch.randn(count, groups, p).double() + 1, torch.randn(count, groups, o).double() - 2
    old = Fit(torch.randn(groups, p, o, dtype=torch.float64), torch.randn(groups, o, dtype=torch.float64))
    return u, t + torch.einsum("rgp,gpo->rgo", u, old.weight), old


def _sums(u: torch.Tensor, t: torch.Tensor) -> Moments:
    made = Moments.none(u.shape[1], u.shape[2], t.shape[2])
    made.add(u, t)
    return made


def _lacking(u: torch.Tensor, t: torch.Tensor, old: Fit, step: int = 7) -> Rows:
    made, lacking = Rows(), t - torch.einsum("rgp,gpo->rgo", u, old.weight) - old.bias
    for start in range(0, len(u), step):
        made.add(u[start : start + step], lacking[start : start + step])
        made.aim(t[start : start + step], t[start : start + step] - lacking[start : start + step])
    return made


def _weight(solver: Solver, a: torch.Tensor, old: Fit) -> torch.Tensor:
    found = old.weight.clone()
    for some, change in solver.changes(a):
        found[:, :, some] += change
    return found


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-5, 0.1, float("inf")])
@pytest.mark.parametrize("count", [12, 50])
@pytest.mark.parametrize("at_once", [1, 2**25])
def test_the_weights_are_those_of_the_sums(intercept, ridge, count, at_once, monkeypatch):
    monkeypatch.setattr(wide, "AT_ONCE", at_once)
    u, t, old = _rows(count)
    wanted = moments.solve(_sums(u, t), old, ridge, intercept=intercept)
    solver = Solver.of(_lacking(u, t, old), intercept=intercept)
    a = solver.coefficients(ridge)
    assert torch.allclose(_weight(solver, a, old), wanted.weight, rtol=0, atol=1e-8)
    if intercept:
        assert torch.allclose(old.bias + solver.shift(a), wanted.bias, rtol=0, atol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_same_ridge_is_best_and_the_errors_are_the_same(intercept):
    u, t, old = _rows(25)
    weights = torch.tensor([[1.0, 0.5, 0.0], [2.0, 1.0, 1.0]], dtype=torch.float64)
    wanted = moments.choose(_sums(u[:20], t[:20]), _sums(u[20:], t[20:]), old, weights, intercept=intercept)
    found = wide.choose(_lacking(u[:20], t[:20], old), _lacking(u[20:], t[20:], old), weights, intercept=intercept)
    assert found.ridge == wanted.ridge
    assert found.before == pytest.approx(wanted.before)
    assert found.after == pytest.approx(wanted.after)
    assert torch.allclose(_weight(found.solver, found.a, old), wanted.fit.weight, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["sums", "rows"])
def test_what_hardly_varies_gets_no_weight_that_rounding_would_spoil(kind):
    torch.manual_seed(0)
    u = torch.randn(60, 1, 5, dtype=torch.float64)
    u[..., 0] = 1 + 1e-5 * u[..., 0]  # tells the target, but in float32 hardly
    t = 3e5 * (u[..., :1] - 1) + 0.1 * u[..., 1:2]
    old = Fit(torch.zeros(1, 5, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    made = {"sums": (_sums, moments.choose), "rows": (lambda u, t: _lacking(u, t, old), wide.choose)}
    gather, choose = made[kind]
    parts, ones = (gather(u[:50], t[:50]), gather(u[50:], t[50:])), torch.ones(1, 1, dtype=torch.float64)
    args = (*parts, old, ones) if kind == "sums" else (*parts, ones)

    def largest(precision: float) -> float:
        found = choose(*args, intercept=True, precision=precision)
        weight = found.fit.weight if kind == "sums" else _weight(found.solver, found.a, old)
        return float(weight.abs().max())

    assert largest(2.0**-52) > 1e4
    assert largest(2.0**-23) < 30


def test_rows_that_are_the_same_are_solved():
    u, t, old = _rows(12)
    u[6:], t[6:] = u[:6], t[:6]
    rows = _lacking(u, t, old)
    solver = Solver.of(rows, intercept=True)
    a = solver.coefficients(1e-12)
    assert _weight(solver, a, old).isfinite().all()
    assert float(solver.error(rows, solver.between(rows), a).max()) < 1e-9


def test_inputs_without_variance_move_the_bias_alone():
    u, t, old = _rows(12)
    solver = Solver.of(_lacking(torch.ones_like(u), t, old), intercept=True)
    a = solver.coefficients(1e-5)
    assert not a.any()
    assert torch.allclose(old.bias + solver.shift(a), t.mean(0) - old.weight.sum(1))


def test_weights_that_are_right_stay():
    u, _, old = _rows(12)
    t = torch.einsum("rgp,gpo->rgo", u, old.weight) + old.bias
    rows = _lacking(u, t, old)
    found = wide.choose(rows, rows, torch.ones(2, 3), intercept=True)
    assert torch.allclose(_weight(found.solver, found.a, old), old.weight, rtol=0, atol=1e-9)
