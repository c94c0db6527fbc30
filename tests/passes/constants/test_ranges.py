"""No value leaves its range, whatever the input; and ranges are tight enough to prove what is constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import programs
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.interpreter import Interpreter
from prunec.passes.constants.ranges import Range, ranges
from tests.support.nets import Made


def _silence(model: nn.Module, seed: int) -> None:
    """Zeros in some rows of weights, and zeros or large negative numbers in some biases."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            chosen = torch.rand(len(tensor), generator=draws) < 0.3
            if torch.rand((), generator=draws) < 0.6:
                tensor[chosen] = 0 if tensor.ndim > 1 or torch.rand((), generator=draws) < 0.5 else -30


def _stays_inside(program: Program, inputs: tuple[Tensor, ...]) -> int:
    """Check every value of a run against its range; how many elements of results are constant."""
    found = ranges(analyse(program))
    for node, value in Interpreter(program, torch.float64).steps(inputs):
        if node in found and isinstance(value, Tensor):
            slack = 1e-9 * (1 + value.abs().max())
            low, high = found[node].low, found[node].high
            assert low.ndim == value.ndim, node
            assert bool((value >= low - slack).all() and (value <= high + slack).all()), node
    return sum(int(each.fixed.sum()) for node, each in found.items() if node.op != "get_attr")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(programs(), st.integers(0, 1000))
def test_no_value_of_a_random_network_leaves_its_range(net, seed):
    _silence(net.model, seed)
    program = trace(net.model, net.inputs(2))
    _stays_inside(program, tuple(100 * x for x in net.inputs(3)))


RUN = Callable[[Any, Tensor], Tensor]
LAYERS: dict[str, tuple[RUN, dict[str, nn.Module]]] = {
    "conv": (lambda m, x: m.b(m.a(x).sigmoid()), {"b": nn.Conv2d(8, 4, 3, padding=1)}),
    "reflected": (lambda m, x: m.b(m.a(x).tanh()), {"b": nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")}),
    "strided and dilated": (lambda m, x: m.b(F.relu6(m.a(x))), {"b": nn.Conv2d(8, 4, 3, stride=2, dilation=2)}),
    "grouped": (lambda m, x: m.b(F.hardtanh(m.a(x), -2, 0.5)), {"b": nn.Conv2d(8, 4, 3, groups=2)}),
    "depthwise": (lambda m, x: m.b(F.hardsigmoid(m.a(x))), {"b": nn.Conv2d(8, 8, 3, padding=1, groups=8)}),
    "transposed": (lambda m, x: m.b(m.a(x).sigmoid()), {"b": nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1)}),
    "flattened": (lambda m, x: m.b(m.a(x).sigmoid().flatten(1)), {"b": nn.Linear(8 * 36, 4)}),
    "tokens": (lambda m, x: m.b(m.a(x).softmax(1).flatten(2).transpose(1, 2)), {"b": nn.Linear(8, 4)}),
    "layer norm": (lambda m, x: m.c(m.b(m.a(x).mean((2, 3)))), {"b": nn.LayerNorm(8), "c": nn.Linear(8, 4)}),
    "rms norm": (lambda m, x: m.c(m.b(m.a(x).mean((2, 3)))), {"b": nn.RMSNorm(8), "c": nn.Linear(8, 4)}),
    "group norm": (lambda m, x: m.b(m.a(x)), {"b": nn.GroupNorm(2, 8)}),
    "instance norm": (lambda m, x: m.b(m.a(x)), {"b": nn.InstanceNorm2d(8, affine=True)}),
    "averaged with zeros": (lambda m, x: m.b(m.a(x).sigmoid() + 1), {"b": nn.AvgPool2d(3, 1, 1)}),
    "averaged without": (
        lambda m, x: m.b(m.a(x).sigmoid() + 1),
        {"b": nn.AvgPool2d(3, 1, 1, count_include_pad=False)},
    ),
    "largest": (lambda m, x: F.max_pool2d(-(m.a(x).sigmoid()), 3, 2, 1), {}),
    "resized": (lambda m, x: F.interpolate(m.a(x).sigmoid(), scale_factor=2, mode="bilinear"), {}),
    "gelu": (lambda m, x: F.gelu(m.a(x).relu() - 0.4), {}),
    "silu": (lambda m, x: F.silu(m.a(x).tanh() * 3), {}),
    "mish": (lambda m, x: F.mish(m.a(x).tanh() * 3 - 1), {}),
    "hardswish": (lambda m, x: F.hardswish(m.a(x).tanh() * 4), {}),
    "elu": (lambda m, x: F.elu(m.a(x).tanh(), 0.5) - F.celu(m.a(x).sigmoid()), {}),
    "silu of what is not positive": (lambda m, x: F.silu(-m.a(x).relu()), {}),
    "gelu of what is not positive": (lambda m, x: F.gelu(-m.a(x).relu()), {}),
    "mish of what is not positive": (lambda m, x: F.mish(-m.a(x).relu()), {}),
    "hardswish up to 0": (lambda m, x: F.hardswish(m.a(x).clamp(-3, 0)), {}),
    "dropout that always drops": (lambda m, x: F.dropout(m.a(x).sigmoid()), {}),
    "noise": (lambda m, x: torch.rand_like(m.a(x).relu()) + torch.randn_like(m.a(x) * 0), {}),
    "negative slope": (lambda m, x: F.leaky_relu(m.a(x).tanh(), -0.5), {}),
    "a line early": (lambda m, x: F.softplus(m.a(x).tanh() * 0.55 - 0.45, 1.0, 0), {}),
    "softplus": (lambda m, x: F.softplus(m.a(x).tanh(), 2.0), {}),
    "a gate": (lambda m, x: F.relu6(m.a(x)) * m.a(x).sigmoid() / 3, {}),
    "written in place": (lambda m, x: _written(m.a(x).sigmoid()), {}),
    "padded": (lambda m, x: F.pad(m.a(x).sigmoid() + 1, (1, 1, 1, 1)) - F.pad(m.a(x).tanh(), [1] * 4, value=3.0), {}),
    "the largest of two": (lambda m, x: torch.maximum(m.a(x).tanh(), m.a(x).sigmoid() - 0.5), {}),
    "sums": (lambda m, x: m.a(x).tanh().sum((2, 3)) + m.a(x).mean((2, 3)), {}),
}


def _written(x: Tensor) -> Tensor:
    y = x[:, :4]
    y.sub_(7)
    return x.relu() + 1


@pytest.mark.parametrize(("run", "parts"), LAYERS.values(), ids=LAYERS)
def test_no_value_of_a_layer_leaves_its_range(run, parts):
    torch.manual_seed(0)
    net = Made({"a": nn.Conv2d(3, 8, 1), **parts}, run).double().eval()
    for seed in range(3):
        _silence(net, seed)
        program = trace(net, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
        for size in (1, 1000):
            _stays_inside(program, (size * torch.randn(3, 3, 6, 6, dtype=torch.float64),))


def _last(net: nn.Module, x: Tensor) -> Range:
    program = trace(net.eval(), (x,))
    node = next(node for node in reversed(program.graph.nodes) if node.op != "output")
    return ranges(analyse(program))[node]


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_unit_is_shut_where_its_bias_outweighs_all_that_can_arrive(share):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU())
    with torch.no_grad():
        net[2].bias[1] = -share * net[2].weight[1].abs().sum()
    assert bool(_last(net, torch.randn(2, 5)).zero[0, 1]) is (share > 1)


def test_positive_inputs_and_negative_weights_shut_a_unit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
    with torch.no_grad():
        net[2].weight[2], net[2].bias[2] = -net[2].weight[2].abs(), -0.5
        net[2].weight[3] = -net[2].weight[3].abs()
        net[2].bias[3] = 0.5
    assert _last(net, torch.randn(2, 5)).fixed.flatten().tolist() == [False, False, True, False]


SATURATED: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "relu": (F.relu, -10.0, 0.0),
    "relu6 above": (F.relu6, 10.0, 6.0),
    "hardsigmoid above": (F.hardsigmoid, 10.0, 1.0),
    "hardswish": (F.hardswish, -10.0, 0.0),
    "hardtanh": (F.hardtanh, -10.0, -1.0),
}


@pytest.mark.parametrize(("f", "shift", "value"), SATURATED.values(), ids=SATURATED)
def test_what_is_always_beyond_the_bend_is_constant(f, shift, value):
    found = _last(Made({"a": nn.Linear(4, 3)}, lambda m, x: f(m.a(x).tanh() + shift)), torch.randn(2, 4))
    assert bool(found.fixed.all())
    assert float(found.low.flatten()[0]) == value


SMOOTH = {"gelu": F.gelu, "silu": F.silu, "mish": F.mish, "sigmoid": torch.sigmoid, "cos": torch.cos, "erf": torch.erf}


@pytest.mark.parametrize("f", SMOOTH.values(), ids=SMOOTH)
def test_a_function_of_a_constant_is_one(f):
    torch.manual_seed(0)
    net = Made({"a": nn.Linear(4, 3)}, lambda m, x: f(m.a(x)))
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0, -0.75
    found = _last(net, torch.randn(2, 4))
    assert found.fixed.flatten().tolist() == [False, True, False]
    assert float(found.low.flatten()[1]) == pytest.approx(float(f(torch.tensor(-0.75, dtype=torch.float64))))


def test_what_depends_on_how_many_there_are_is_not_constant():
    """A sum over an image, and a number that is read off a size: both differ for larger images."""
    torch.manual_seed(0)
    net = Made({"a": nn.Conv2d(3, 2, 1)}, lambda m, x: m.a(x).sum((2, 3)) + m.a(x).mean((2, 3)) * x.shape[2])
    with torch.no_grad():
        net.a.weight[:], net.a.bias[:] = 0, 1
    assert not bool(_last(net, torch.randn(2, 3, 5, 5)).fixed.any())
