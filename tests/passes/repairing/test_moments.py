"""Sums over rows against all rows at once, and least squares that can't simply be solved."""

from __future__ import annotations

import pytest
import torch

from prunec.passes.repairing.moments import Fit, Moments, choose, solve


def _rows(count: int = 60, groups: int = 2, p: int = 4, o: int = 3) -> tuple[torch.Tensor, torch.Tensor, Fit]:
    torch.manual_seed(0)
    u, t = torch.randn(count, groups, p), torch.randn(count, groups, o)
    old = Fit(torch.randn(groups, p, o, dtype=torch.float64), torch.randn(groups, o, dtype=torch.float64))
    return u.double() + 1, t.double() - 2, old


def _moments(u: torch.Tensor, t: torch.Tensor, step: int = 10**6) -> Moments:
    made = Moments.none(u.shape[1], u.shape[2], t.shape[2])
    for start in range(0, len(u), step):
        made.add(u[start : start + step], t[start : start + step])
    return made


@pytest.mark.parametrize("step", [1, 7, 60])
def test_streamed_sums_are_those_of_all_rows(step):
    u, t, old = _rows()
    whole, streamed = (solve(_moments(u, t, s), old, 0.01, intercept=True) for s in (100, step))
    assert torch.allclose(whole.weight, streamed.weight, rtol=0, atol=1e-12)
    assert torch.allclose(whole.bias, streamed.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-12, 0.1])
def test_it_is_the_ridge_regression_of_the_rows(intercept, ridge):
    u, t, old = _rows()
    found = solve(_moments(u, t), old, ridge, intercept=intercept)
    for g in range(2):
        x, y = (u[:, g] - u[:, g].mean(0), t[:, g] - t[:, g].mean(0)) if intercept else (u[:, g], t[:, g] - old.bias[g])
        pull = (ridge * x.square().mean()).sqrt() * len(x) ** 0.5 * torch.eye(4, dtype=torch.float64)
        by_hand = torch.linalg.lstsq(torch.cat([x, pull]), torch.cat([y, pull @ old.weight[g]])).solution
        assert torch.allclose(found.weight[g], by_hand, rtol=0, atol=1e-9)
        bias = t[:, g].mean(0) - u[:, g].mean(0) @ by_hand if intercept else old.bias[g]
        assert torch.allclose(found.bias[g], bias, rtol=0, atol=1e-9)


def test_the_error_is_that_of_the_rows():
    u, t, old = _rows()
    given = torch.einsum("rgp,gpo->rgo", u, old.weight) + old.bias
    assert torch.allclose(_moments(u, t).error(old), (t - given).square().mean(0), rtol=1e-12)


def test_columns_that_are_the_same_are_solved():
    u, t, old = _rows()
    u[..., 1] = u[..., 0]
    u[..., 2] = 3.0
    found = choose(_moments(u[:50], t[:50]), _moments(u[50:], t[50:]), old, torch.ones(2, 3), intercept=True)
    assert found.fit.weight.isfinite().all()
    assert found.after <= found.before


def test_inputs_without_variance_move_the_bias_alone():
    u, t, old = _rows()
    found = solve(_moments(torch.zeros_like(u), t), old, 1e-5, intercept=True)
    assert torch.equal(found.weight, old.weight)
    assert torch.allclose(found.bias, t.mean(0))


def test_weights_that_are_right_stay():
    u, _, old = _rows()
    t = torch.einsum("rgp,gpo->rgo", u, old.weight) + old.bias
    found = choose(_moments(u[:50], t[:50]), _moments(u[50:], t[50:]), old, torch.ones(2, 3), intercept=True)
    assert torch.allclose(found.fit.weight, old.weight, rtol=0, atol=1e-9)
