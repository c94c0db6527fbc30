"""The error that remains after a refit: what a refit by hand leaves; doubles, constants, groups, sums, wide layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from calibrating import Samples, images, program_of, scores
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.ir.program import FloatArray
from prunec.passes.criteria import reconstruction
from prunec.passes.repairing import inputs
from tests.support.nets import Made

DATA = images(24)


def _net(reader: nn.Module, run: Any = None, **more: nn.Module) -> nn.Module:
    """A convolution `a` with six channels, of which 4 is 1's double and 2 is constant, and its reader `b`."""
    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(2, 6, 3, padding=1), "b": reader, **more}
    net = Made(parts, run or (lambda m, x: m.b(m.a(x).relu()))).double().eval()
    with torch.no_grad():
        net.a.weight[4], net.a.bias[4] = 2 * net.a.weight[1], 2 * net.a.bias[1]
        net.a.weight[2], net.a.bias[2] = 0, 3
    return net


def _found(net: nn.Module, data: Samples = DATA, **options: Any) -> FloatArray:
    given = {"ridge": 1e-10, "relative_to": "sum", **options}
    return scores(program_of(net, data), {"reconstruction": given}, data, aggregate="sum", samples=24)["a"]


def _rows(net: nn.Module, taps: int) -> Tensor:
    """[positions, channels * taps]: what `b` reads everywhere."""
    with torch.no_grad():
        read = net.a(DATA.inputs).relu()
    return F.unfold(read, taps).transpose(1, 2).flatten(0, 1)


def _left(rows: Tensor, weight: Tensor, gone: Any, taps: int) -> float:
    """The mean squared error that least squares leave without some channels."""
    left = [row for row in range(rows.shape[1]) if row // taps not in gone]
    rows = rows - rows.mean(0)
    target = rows @ weight
    found = rows[:, left] @ torch.linalg.lstsq(rows[:, left], target, driver="gelsd").solution
    return float((target - found).square().sum(1).mean())


@pytest.mark.parametrize("kernel", [1, 3])
def test_sums_of_scores_are_errors_of_refits(kernel: int):
    net = _net(nn.Conv2d(6, 4, kernel))
    found, order = _found(net), np.argsort(_found(net))
    rows, weight = _rows(net, kernel), net.b.weight.detach().flatten(1).T
    whole = _left(rows, weight, range(6), kernel**2)
    assert set(order[:2]) in ({1, 2}, {2, 4}), "a constant and one of two doubles cost nothing"
    assert np.abs(found[order[:2]]).max() < 1e-6
    curve = [_left(rows, weight, order[:count].tolist(), kernel**2) / whole for count in range(7)]
    sums = np.concatenate([[0.0], np.cumsum(found[order])])
    assert np.allclose(sums[[0, 1, 2, 6]], np.array(curve)[[0, 1, 2, 6]], atol=1e-5)
    assert (sums <= np.array(curve) + 1e-5).all(), "the hull lies below"


def test_neither_batches_nor_memory_matter(monkeypatch: pytest.MonkeyPatch):
    net = _net(nn.Conv2d(6, 4, 3))
    found = _found(net)
    assert np.allclose(_found(net, DATA.in_batches_of(5)), found, atol=1e-12)
    monkeypatch.setattr(inputs, "_MEMORY", 1)
    assert np.allclose(_found(net, DATA.in_batches_of(24)), found, atol=1e-12)


def test_a_wide_layer_is_looked_at_by_its_samples(monkeypatch: pytest.MonkeyPatch):
    net = _net(nn.Linear(6 * 9, 4), lambda m, x: m.b(F.avg_pool2d(m.a(x).relu(), 2).flatten(1)))
    formed = _found(net, ridge=1e-3)
    monkeypatch.setattr(inputs, "WIDE", 10)
    assert np.allclose(_found(net, ridge=1e-3), formed, atol=1e-9)


def test_what_fits_the_samples_and_no_others_is_no_repair():
    run = lambda m, x: m.b(m.a(x).relu().mean((2, 3)))  # noqa: E731
    torch.manual_seed(0)
    net = Made({"a": nn.Conv2d(2, 60, 3, padding=1), "b": nn.Linear(60, 20)}, run).double().eval()
    fitted = np.sort(_found(net, ridge=1e-9))
    seen = np.sort(_found(net, ridge=None))
    assert fitted[:36].sum() < 1e-3, "24 samples are fitted by 24 inputs"
    assert seen[:36].sum() > 0.05, "and others aren't"


def test_the_samples_that_are_held_out_are_the_same_in_any_batches():
    net = _net(nn.Conv2d(6, 4, 3))
    found = [
        scores(program_of(net, DATA), "reconstruction", DATA.in_batches_of(size), samples=24)["a"] for size in (5, 24)
    ]
    assert np.allclose(*found, atol=1e-12)
    one = images(1)
    assert np.isfinite(scores(program_of(net, one), "reconstruction", one, samples=1)["a"]).all()


def test_a_wide_layer_is_judged_by_its_samples_too(monkeypatch: pytest.MonkeyPatch):
    net = _net(nn.Linear(6 * 9, 4), lambda m, x: m.b(F.avg_pool2d(m.a(x).relu(), 2).flatten(1)))
    formed = scores(program_of(net, DATA), "reconstruction", DATA, samples=24)["a"]
    monkeypatch.setattr(inputs, "WIDE", 10)
    assert np.allclose(scores(program_of(net, DATA), "reconstruction", DATA, samples=24)["a"], formed, atol=1e-9)


def test_what_is_without_a_bias_has_to_give_constants_by_its_weights():
    net = _net(nn.Conv2d(6, 4, 1, bias=False))
    assert _found(net)[2] > 1e-3


def test_outputs_count_as_their_norm_scales_them():
    net = _net(nn.Conv2d(6, 4, 1, bias=False), lambda m, x: m.n(m.b(m.a(x).relu())), n=nn.BatchNorm2d(4))
    net.n.weight.data = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    alone = _net(nn.Conv2d(6, 1, 1))
    alone.b.weight.data = net.b.weight.data[3:]
    assert np.allclose(_found(net), _found(alone), atol=1e-6)


def test_errors_are_shares_of_the_sum_that_follows():
    def run(m: Any, x: Tensor) -> Tensor:
        return m.c((m.b(m.a(x).relu()) + 10 * x).relu())

    net = _net(nn.Conv2d(6, 2, 1), run, c=nn.Conv2d(2, 3, 1))
    own, of_sum, plain = (_found(net, relative_to=what) for what in ("own", "sum", "none"))
    assert own.sum() > 10 * of_sum.sum()
    assert np.allclose(own / own.sum(), of_sum / of_sum.sum())
    assert np.allclose(plain / plain.sum(), own / own.sum())
    assert own.sum() == pytest.approx(1, rel=1e-6), "all of the variance, once all units are gone"


def test_two_readers_add_up_and_groups_are_fitted_each_for_itself():
    both = _net(nn.Conv2d(6, 4, 1), lambda m, x: torch.cat([m.b(y := m.a(x).relu()), m.c(y)], 1), c=nn.Conv2d(6, 4, 1))
    both.c.load_state_dict(both.b.state_dict())
    assert np.allclose(_found(both), 2 * _found(_net_like(both)), atol=1e-9)
    grouped = _net(nn.Conv2d(6, 4, 1, groups=2))
    found = _found(grouped)
    assert found.shape == (3,), "a unit is a channel of each group"
    assert (found > 1e-6).all(), "1 and its double are in two groups"


def test_what_a_depthwise_layer_gives_goes_with_what_it_reads():
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(m.d(m.a(x).relu()))

    deep = nn.Conv2d(6, 6, 1, groups=6)
    nn.init.ones_(deep.weight)
    nn.init.zeros_(deep.bias)
    net = _net(nn.Conv2d(6, 4, 1), run, d=deep)
    assert np.allclose(_found(net), _found(_net_like(net)), atol=1e-9)


def _net_like(net: nn.Module) -> nn.Module:
    made = _net(nn.Conv2d(6, 4, 1))
    made.b.load_state_dict(net.b.state_dict())
    return made


def test_a_plan_cuts_by_it_and_loses_nothing_that_others_can_stand_for():
    net = _net(nn.Conv2d(6, 4, 1))
    plan = {
        "plan": 1,
        "passes": [
            {"score": {"criterion": {"reconstruction": {"ridge": 1e-9}}, "samples": 24}},
            {"select": {"widths": {"a": 4}}},
            "shrink",
            {"repair": "least_squares"},
        ],
    }
    found = compile(net, plan, example_inputs=(DATA.inputs[:2],), data=DATA)
    assert found.module.a.weight.shape[0] == 4
    details = found.report["passes"][0]["details"]["remaining_error"]
    assert [len(curve) for curve in details.values()] == [7]
    assert details["a"] == sorted(details["a"])
    (picture,) = found.findings.passes[0].attachments
    assert picture.file == "remaining_error.png"
    assert picture.content.startswith(b"\x89PNG")
    assert torch.allclose(found.module(DATA.inputs), net(DATA.inputs), atol=1e-6)


READERS = {
    "transposed": (nn.ConvTranspose2d(6, 4, 3), None),
    "called twice": (nn.Conv2d(6, 4, 3), lambda m, x: m.b(m.a(x).relu()).mean() + m.b(F.avg_pool2d(m.a(x).relu(), 2))),
    "a product": (nn.Linear(4, 6), lambda m, x: m.a(x).relu().movedim(1, -1) @ m.b.weight),
    "an einsum": (nn.Linear(4, 6), lambda m, x: torch.einsum("bchw,cd->bdhw", m.a(x).relu(), m.b.weight)),
}


@pytest.mark.parametrize(("reader", "run"), READERS.values(), ids=READERS)
def test_a_double_costs_nothing_whatever_reads_it(reader: nn.Module, run: Any):
    net, criterion = _net(reader, run), {"reconstruction": {"ridge": 1e-10}}
    found = scores(program_of(net, DATA), criterion, DATA, aggregate="sum", samples=24)
    (read,) = (each for each in found.values() if each.size == 6)
    assert np.isfinite(read).all()
    assert np.sort(read)[0] < 1e-4 * np.sort(read)[3]
    assert {1, 2, 4} >= set(np.argsort(read)[:1])


@pytest.mark.parametrize("normed", [False, True], ids=["a bias", "a batch norm"])
def test_errors_that_reach_the_outputs_are_what_a_refit_by_hand_leaves_there(
    normed: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reconstruction, "_TRIED", 1e-4)  # without three units: the first two cost nothing

    def run(m: Any, x: Tensor) -> Tensor:
        return m.c(m.n(m.b(m.a(x).relu())).relu().mean((2, 3)))

    norm = nn.BatchNorm2d(4) if normed else nn.Identity()
    net = _net(nn.Conv2d(6, 4, 1, bias=not normed), run, n=norm, c=nn.Linear(4, 3))
    found = _found(net, relative_to="outputs")
    order, given = np.argsort(found, kind="stable"), net(DATA.inputs).detach()
    rows = _rows(net, 1)
    left = [row for row in range(6) if row not in order[:3]]
    mean, target = rows.mean(0), rows @ net.b.weight.detach().flatten(1).T
    weight = torch.linalg.lstsq(rows[:, left] - mean[left], target - target.mean(0), driver="gelsd").solution
    with torch.no_grad():
        if normed:
            net.n.running_mean -= target.mean(0) - mean[left] @ weight
        else:
            net.b.bias += target.mean(0) - mean[left] @ weight
        net.b.weight.zero_()[:, left] = weight.T[..., None, None]
        want = (net(DATA.inputs) - given).square().mean() / given.var(0, correction=0).mean()
    assert found[order[:3]].sum() == pytest.approx(float(want), rel=1e-3)


@pytest.mark.parametrize("ridge", [None, 1e-10])
def test_what_an_error_is_worth_is_told_by_the_outputs(ridge: float | None):
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.cat([m.b(m.a(x).relu()), 0.01 * m.d(m.c(x).relu())], 1)

    net = _net(nn.Conv2d(6, 4, 1), run, c=nn.Conv2d(2, 6, 3, padding=1), d=nn.Conv2d(6, 4, 1))
    net.c.load_state_dict(net.a.state_dict())
    net.d.load_state_dict(net.b.state_dict())
    for what, share in (("sum", 1.0), ("outputs", 1e-4)):
        criterion = {"reconstruction": {"ridge": ridge, "relative_to": what}}
        found = scores(program_of(net, DATA), criterion, DATA, aggregate="sum", samples=24)
        assert np.allclose(found["c"], share * found["a"], rtol=1e-3, atol=1e-12 * found["a"].max())


def test_classes_tell_nothing_of_how_far_errors_reach():
    net = _net(nn.Conv2d(6, 4, 1), lambda m, x: m.b(m.a(x).relu()).mean((2, 3)).argmax(1))
    assert np.array_equal(_found(net, relative_to="outputs"), _found(net))


def test_neither_batches_nor_memory_matter_for_what_reaches_the_outputs(monkeypatch: pytest.MonkeyPatch):
    net = _net(nn.Conv2d(6, 4, 3), lambda m, x: m.n(m.b(m.a(x).relu())).relu(), n=nn.BatchNorm2d(4))
    found = _found(net, relative_to="outputs", ridge=None)
    assert np.allclose(_found(net, DATA.in_batches_of(5), relative_to="outputs", ridge=None), found, rtol=1e-9)
    monkeypatch.setattr(inputs, "_MEMORY", 1)
    assert np.allclose(_found(net, relative_to="outputs", ridge=None), found, rtol=1e-9)


@pytest.mark.parametrize("squeezed", [False, True])
def test_one_number_a_sample_weighs_as_a_column_does(squeezed: bool):
    def run(m: Any, x: Tensor) -> Tensor:
        first, second = (f(m.a(x).relu().mean((2, 3))) + 100 for f in (m.b, m.d))
        return (first.squeeze(1) if squeezed else first, second + m.e(m.c(x).relu().mean((2, 3))))

    net = _net(nn.Linear(6, 1), run, c=nn.Conv2d(2, 6, 3, padding=1), d=nn.Linear(6, 1), e=nn.Linear(6, 1))
    found = scores(program_of(net, DATA), "reconstruction", DATA, aggregate="sum", samples=24)
    assert 1e-2 < found["a"].sum() / found["c"].sum() < 1e2, "means of 100 don't count"


def test_outputs_that_are_no_numbers_without_some_units_are_as_wrong_as_can_be():
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        return m.b(y).mean((2, 3)), (m.d(y).mean((2, 3)) - m.least).sqrt()

    net = _net(nn.Conv2d(6, 4, 1), run, d=nn.Conv2d(6, 4, 1), least=nn.Identity())
    with torch.no_grad():
        net.least = nn.Parameter(net.d(net.a(DATA.inputs).relu()).mean((2, 3)).amin(0) - 1e-6)
    found = _found(net, relative_to="outputs", ridge=None)
    assert np.isfinite(found).all()
    assert not np.allclose(found, _found(net, ridge=None)), "the outputs tell"


def test_samples_whose_values_are_no_numbers_are_left_out_and_told():
    net, spoilt = _net(nn.Conv2d(6, 4, 1), lambda m, x: m.b(m.a(x / x[:, :1, :1, :1]).relu())), images(24)
    spoilt.inputs[5, 0, 0, 0] = 0.0
    found = scores(program_of(net, spoilt), "reconstruction", spoilt, aggregate="sum", samples=24)["a"]
    assert np.isfinite(found).all()
    assert (np.sort(found)[2:] > 1e-6).all()
    plan = {"plan": 1, "passes": [{"score": {"criterion": "reconstruction", "samples": 24}}]}
    notes = compile(net, plan, example_inputs=(DATA.inputs[:2],), data=spoilt).findings.passes[0].notes
    assert any("a sample makes values infinite or NaN; these are left out" in note.reason for note in notes)


def test_errors_of_each_group_of_a_layer_reach_the_outputs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reconstruction, "_TRIED", 1e-4)
    net = _net(nn.Conv2d(6, 4, 1, groups=2), lambda m, x: m.b(m.a(x).relu()).relu())
    first = int(np.argmin(_found(net, relative_to="outputs")))  # a channel of each group
    plan = {"plan": 1, "passes": [{"score": {"criterion": {"reconstruction": {"ridge": 1e-10}}, "samples": 24}}]}
    details = compile(net, plan, example_inputs=(DATA.inputs[:2],), data=DATA).report["passes"][0]["details"]
    given, rows = net(DATA.inputs).detach(), _rows(net, 1)
    with torch.no_grad():
        for group in (0, 1):
            mine, outputs = rows[:, 3 * group : 3 * group + 3], slice(2 * group, 2 * group + 2)
            left, target = [unit for unit in range(3) if unit != first], mine @ net.b.weight[outputs].flatten(1).T
            mean = mine.mean(0)
            weight = torch.linalg.lstsq(mine[:, left] - mean[left], target - target.mean(0), driver="gelsd").solution
            net.b.bias[outputs] += target.mean(0) - mean[left] @ weight
            net.b.weight[outputs].zero_()[:, left] = weight.T[..., None, None]
        want = (net(DATA.inputs) - given).square().mean() / given.var(0, correction=0).mean()
    assert details["remaining_error"]["a"][1] == pytest.approx(float(want), rel=1e-3)
