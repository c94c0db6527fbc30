"""Channels as combinations of others: exact where they are, the least squares' error otherwise; what can't be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.driver.compile import Result
from prunec.compiler.errors import PassError
from prunec.passes.repairing.combining import coefficients
from tests.support.nets import Made


def _images(count: int = 24, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).split(8))


def _net(reader: nn.Module, run: Any = None, **more: nn.Module) -> nn.Module:
    """A convolution `a` without a nonlinearity behind it, of whose eight channels two are combinations of others."""
    torch.manual_seed(0)
    net = Made({"a": nn.Conv2d(3, 8, 3), "b": reader, **more}, run or (lambda m, x: m.b(m.a(x)))).double().eval()
    with torch.no_grad():
        for tensor in (net.a.weight, net.a.bias):
            tensor[5] = 2 * tensor[0] - tensor[3]
            tensor[7] = tensor[1] + 0.5 * tensor[2] - tensor[4]
    return net


def _merged(net: nn.Module, clusters: Any = ((0, 5), (1, 7)), merge: Any = "least_squares") -> Result:
    plan = {"plan": 1, "passes": [{"cluster": {"method": "given", "clusters": {"a": clusters}}}, {"merge": merge}]}
    return compile(net, plan, example_inputs=(_images()[0][:2],), data=_images())


EXACT: dict[str, tuple[nn.Module, Any, dict[str, nn.Module]]] = {
    "zeros around it": (nn.Conv2d(8, 4, 3, padding=1), None, {}),
    "without a bias": (nn.Conv2d(8, 4, 3, stride=2, bias=False), None, {}),
    "flattened": (nn.Linear(8 * 4, 5), lambda m, x: m.b(F.avg_pool2d(m.a(x), 3).flatten(1)), {}),
    "tokens": (nn.Linear(8, 5), lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2)), {}),
    "transposed": (nn.ConvTranspose2d(8, 4, 3, stride=2), None, {}),
    "a function": (nn.Linear(8, 5), lambda m, x: F.linear(m.a(x).flatten(2).transpose(1, 2), m.b.weight), {}),
    "a product": (nn.Linear(5, 8), lambda m, x: m.a(x).movedim(1, -1) @ m.b.weight, {}),
    "two readers": (
        nn.Conv2d(8, 4, 1),
        lambda m, x: m.b(m.a(x)) + m.c(m.a(x)),
        {"c": nn.Conv2d(8, 4, 3, padding=1)},
    ),
}


@pytest.mark.parametrize(("reader", "run", "more"), EXACT.values(), ids=EXACT)
def test_a_combination_of_others_goes_without_a_trace(reader, run, more):
    net = _net(reader, run, **more)
    found = _merged(net)
    assert found.module.a.weight.shape[0] == 6
    x = torch.cat(_images(8, seed=2))
    assert (found.module(x) - net(x)).abs().max() < 1e-8
    record = found.report["passes"][1]
    assert record["details"]["removed"] == {"a": 2}
    assert record["details"]["error_left"]["a"] < 1e-9
    assert record["verification"]["difference"] < 1e-9


def test_a_reader_of_some_units_alone():
    """A stream that is padded with zero channels: a later reader sees its units beside others."""
    run = lambda m, x: m.c(F.pad((y := m.a(x)), (0, 0, 0, 0, 2, 2)) + m.b(y))  # noqa: E731
    net = _net(nn.Conv2d(8, 12, 3, padding=1), run, c=nn.Conv2d(12, 4, 1))
    found = _merged(net)
    assert found.module.a.weight.shape[0] == 6
    assert found.report["passes"][1]["verification"]["difference"] < 1e-9


def test_it_is_nearer_than_dropping_and_than_means():
    net = _net(nn.Conv2d(8, 4, 3, padding=1), lambda m, x: m.b(m.a(x).relu()))
    x = torch.cat(_images(16, seed=2))
    clusters = ((0, 2, 5), (1, 6, 7))

    def apart(found: nn.Module) -> float:
        with torch.no_grad():
            return float((found(x) - net(x)).square().mean())

    cut = {"plan": 1, "passes": [{"select": {"units": {"a": [2, 5, 6, 7]}}}, "shrink"]}
    dropped = compile(net, cut, example_inputs=(x[:2],))
    squares, means = (apart(_merged(net, clusters, how).module) for how in ("least_squares", "mean"))
    assert squares < 0.7 * apart(dropped.module)
    assert squares < 0.9 * means


def test_singular_moments_give_the_smallest_combination():
    rows = torch.tensor([[1.0, 2.0, -1.0], [1.0, 2.0, -1.0], [3.0, 6.0, -3.0], [0.0, 0.0, 0.0]]).double()
    found = coefficients(rows @ rows.T, np.array([0, 1, 3]), np.array([2]))
    assert torch.allclose(found[:, 0], torch.tensor([1.5, 1.5, 0.0]).double())


def test_what_can_not_be_told_stays_with_a_note():
    net = _net(nn.Conv2d(8, 4, 3, groups=2), lambda m, x: m.b(m.a(x)))
    found = _merged(net, clusters=((0, 1),))
    assert found.module.a.weight.shape[0] == 8
    assert found.report["passes"][1]["notes"]


def test_without_data_it_says_so():
    plan = {"plan": 1, "passes": [{"cluster": {"ratio": 0.5}}, {"merge": "least_squares"}]}
    with pytest.raises(PassError, match="merge: least_squares needs some samples"):
        compile(_net(nn.Conv2d(8, 4, 1)), plan, example_inputs=(_images()[0][:2],))


def test_behind_a_depthwise_layer_it_is_its_reader_that_makes_up_for_a_channel():
    run = lambda m, x: m.b(m.d(m.a(x)))  # noqa: E731
    net = _net(nn.Conv2d(8, 4, 1), run, d=nn.Conv2d(8, 8, 3, padding=1, groups=8))
    with torch.no_grad():  # the same filter everywhere: what is a combination before it is one behind it
        net.d.weight[:] = net.d.weight[0]
        net.d.bias.zero_()
    found = _merged(net)
    assert found.module.d.weight.shape[0] == 6
    x = torch.cat(_images(8, seed=2))
    assert (found.module(x) - net(x)).abs().max() < 1e-8
    assert found.report["passes"][1]["verification"]["difference"] < 1e-9
