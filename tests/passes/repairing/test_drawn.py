"""Repair without data: exact where batch norms know all, near to what data say otherwise; what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import compile, trace
from prunec.compiler.driver.compile import Result
from prunec.compiler.errors import PassError, PlanError
from prunec.compiler.pass_base import Context
from prunec.passes.repair import Repair
from prunec.passes.shrink import Shrink
from tests.support.nets import Made

GONE = (1, 4)


def _net(run: Any = None, **more: nn.Module) -> nn.Module:
    """A batch norm behind a convolution with eight channels, and a convolution that reads them."""
    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(3, 8, 3), "n": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 4, 3, bias=False)}
    net = Made({**parts, "m": nn.BatchNorm2d(4), **more}, run or (lambda m, x: m.m(m.b(m.n(m.a(x)).relu()))))
    for part in (each for each in net.modules() if isinstance(each, nn.BatchNorm2d)):
        nn.init.uniform_(part.weight, -2, 2)
        nn.init.uniform_(part.bias, -1, 1)
    return net.double().eval()


def _repaired(net: nn.Module, **options: Any) -> Any:
    """(the slim program, the same repaired) without any data."""
    traced = trace(net, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))
    slim = Shrink().run(traced.with_facts(selection={"a": GONE}), Context()).program
    made = Repair.model_validate({"data": "none", "method": "bias", **options})
    context = Context(traced=traced)
    made.ready(slim, context)
    return slim, made.run(slim, context)


def _clipped(mean: Tensor, deviation: Tensor) -> Tensor:
    """The mean of a normal distribution behind a ReLU."""
    z = mean / deviation
    return mean * torch.special.ndtr(z) + deviation * torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5


def test_a_running_mean_takes_the_mean_of_clipped_normal_distributions():
    net = _net()
    slim, found = _repaired(net)
    mean = _clipped(net.n.bias, net.n.weight.abs())
    gave = (net.b.weight.sum((2, 3)) * mean)[:, list(GONE)].sum(1)
    shift = slim.tensors["m.running_mean"] - found.program.tensors["m.running_mean"]
    assert torch.allclose(shift, gave, rtol=0.02, atol=0.02)
    assert list(found.details["repaired"]) == ["b"]
    assert found.details["samples"] == 0
    assert not found.notes


def test_without_a_nonlinearity_it_is_exact():
    net = _net(lambda m, x: m.m(m.b(m.n(m.a(x)))))
    slim, found = _repaired(net)
    gave = (net.b.weight.sum((2, 3)) * net.n.bias)[:, list(GONE)].sum(1)
    shift = slim.tensors["m.running_mean"] - found.program.tensors["m.running_mean"]
    assert torch.allclose(shift, gave, atol=1e-9)


def test_batch_norms_are_brought_to_what_is_left():
    net = _net(lambda m, x: m.m(m.b(m.n(m.a(x)))))
    slim, found = _repaired(net, method="batch_norm")
    variance = (net.b.weight.sum((2, 3)) * net.n.weight).square()
    left = variance.sum(1) - variance[:, list(GONE)].sum(1)
    share = found.program.tensors["m.running_var"] / slim.tensors["m.running_var"]
    assert torch.allclose(share, left / variance.sum(1), rtol=0.5)
    assert (share < 1.1).all()
    gave = (net.b.weight.sum((2, 3)) * net.n.bias)[:, list(GONE)].sum(1)
    shift = slim.tensors["m.running_mean"] - found.program.tensors["m.running_mean"]
    assert torch.allclose(shift, gave, atol=1e-9)


def test_a_layer_that_follows_reads_what_was_repaired():
    more = {"c": nn.Conv2d(4, 4, 1), "d": nn.Conv2d(4, 2, 1)}
    net = _net(lambda m, x: m.d(m.c(m.b(m.n(m.a(x))))), **more)
    net.b.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    _, found = _repaired(net)
    assert list(found.details["repaired"]) == ["b"]


def test_what_comes_of_the_input_is_left_alone_and_told():
    net = _net(lambda m, x: m.m(m.b(m.n(m.a(x)).relu())) + m.c(m.n(m.a(x)) * x.mean()), c=nn.Conv2d(8, 4, 3))
    _, found = _repaired(net)
    assert list(found.details["repaired"]) == ["b"]
    assert [str(note) for note in found.notes] == ["c: what it reads doesn't come of batch norms alone"]


def _compiled(passes: list[Any], data: Any = None) -> Result:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)).eval()
    torch.manual_seed(0)
    return compile(net, {"plan": 1, "passes": passes}, (torch.zeros(2, 3, 6, 6),), data)


CUT: list[Any] = [{"score": "l1"}, {"select": 0.25}, "shrink"]


def test_a_plan_needs_no_data_and_its_lock_neither():
    found = _compiled([*CUT, {"repair": {"method": "bias", "data": "none"}}, "fold_bn"])
    record = found.report["passes"][3]
    assert list(record["details"]["repaired"]) == ["4"]
    assert record["verification"]["difference"] < 1e-5


def test_without_batch_norms_there_is_nothing_to_go_by():
    with pytest.raises(PassError, match="repair without data goes by batch norms, and the model has none"):
        _compiled(["fold_bn", *CUT, {"repair": {"method": "bias", "data": "none"}}])
    with pytest.raises(PlanError, match="must not say 'data: none' for least_squares, which needs samples"):
        _compiled([*CUT, {"repair": {"data": "none"}}])
