"""Constants go into readers exactly, at every kind of reader; what can't be told exactly is left, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace
from prunec.passes.constants.absorbing import Absorbed, absorbed
from prunec.passes.constants.constant_units import constants
from tests.support.nets import Made

CONSTANT = (1, 4, 6)
Run = Callable[[Any, Tensor], Tensor]


def _net(reader: nn.Module, run: Run | None = None, **more: nn.Module) -> nn.Module:
    """A convolution `a`, three of whose eight filters are zero; a batch norm shifts all to 0.5 to 1.2."""
    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(3, 8, 3, bias=False), "n": nn.BatchNorm2d(8), "b": reader, **more}
    net = Made(parts, run or (lambda m, x: m.b(m.n(m.a(x)).relu()))).double().eval()
    with torch.no_grad():
        net.n.bias.copy_(torch.linspace(0.5, 1.2, 8))
        net.a.weight[list(CONSTANT)] = 0
    return net


def _absorbed(net: nn.Module, stay: tuple[int, ...] = ()) -> tuple[Absorbed, nn.Module]:
    """The constants of all constant units but `stay` in their readers, and the network without those that were."""
    analysis = analyse(trace(net, (torch.randn(2, 3, 8, 8, dtype=torch.float64),)))
    stays = np.zeros(analysis.size, dtype=bool)
    stays[[analysis.groups["a"].start + unit for unit in stay]] = True
    _, constant = constants(analysis, analysis.free)
    found = absorbed(analysis, constant & ~stays, stays)
    return found, remove_units(found.program, ~found.units).module


EXACT: dict[str, tuple[nn.Module, Run | None, dict[str, nn.Module]]] = {
    "not padded": (nn.Conv2d(8, 4, 3, stride=2), None, {}),
    "padded by reflection": (nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"), None, {}),
    "padded circularly": (nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), None, {}),
    "flattened": (nn.Linear(8 * 4, 5), lambda m, x: m.b(F.avg_pool2d(m.n(m.a(x)).relu(), 3).flatten(1)), {}),
    "averaged": (nn.Linear(8, 5), lambda m, x: m.b(m.n(m.a(x)).relu().mean((2, 3))), {}),
    "tokens": (nn.Linear(8, 5), lambda m, x: m.b(m.n(m.a(x)).relu().flatten(2).transpose(1, 2)), {}),
    "a batch norm takes it": (
        nn.Conv2d(8, 4, 1, bias=False),
        lambda m, x: m.c(m.b(m.n(m.a(x)).relu())),
        {"c": nn.BatchNorm2d(4)},
    ),
    "beside others": (
        nn.Conv2d(11, 4, 1),
        lambda m, x: m.b(torch.cat([x[..., 1:-1, 1:-1], m.n(m.a(x)).relu()], 1)),
        {},
    ),
    "two readers, other values": (
        nn.Conv2d(8, 4, 1),
        lambda m, x: m.b((y := m.n(m.a(x))).sigmoid()) + m.c(y.relu()),
        {"c": nn.Conv2d(8, 4, 1)},
    ),
    "through a depthwise layer": (
        nn.Conv2d(8, 4, 1),
        lambda m, x: m.b(m.d(m.n(m.a(x)).relu()).tanh()),
        {"d": nn.Conv2d(8, 8, 3, groups=8)},
    ),
}


@pytest.mark.parametrize(("reader", "run", "more"), EXACT.values(), ids=EXACT)
def test_a_constant_goes_into_what_reads_it(reader, run, more):
    net = _net(reader, run, **more)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found, slim = _absorbed(net)
    assert int(found.units.sum()) == 3
    assert slim.a.weight.shape[0] == 5
    for size in (8, 8):
        x = torch.randn(3, 3, size, size, dtype=torch.float64)
        assert (slim(x) - net(x)).abs().max() < 1e-9
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_with_zeros_around_it_another_constant_stands_for_it():
    net = _net(nn.Conv2d(8, 4, 3, padding=1))
    found, _ = _absorbed(net)
    assert not found.units.any()
    assert set(found.reasons.values()) == {"b puts zeros around it"}
    found, slim = _absorbed(net, stay=(1,))
    assert int(found.units.sum()) == 2
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert (slim(x) - net(x)).abs().max() < 1e-9


def test_without_a_bias_another_constant_stands_for_it():
    net = _net(nn.Conv2d(8, 4, 1, bias=False))
    assert set(_absorbed(net)[0].reasons.values()) == {"b has no bias"}
    found, slim = _absorbed(net, stay=(6,))
    assert int(found.units.sum()) == 2
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert (slim(x) - net(x)).abs().max() < 1e-9


LEFT: dict[str, tuple[nn.Module, Run, dict[str, nn.Module], str]] = {
    "not the same everywhere": (
        nn.Conv2d(8, 4, 1),
        lambda m, x: m.b(m.d(m.n(m.a(x)).relu())),
        {"d": nn.Conv2d(8, 8, 3, padding=1, groups=8)},
        "isn't the same everywhere",
    ),
    "read by no layer": (
        nn.ConvTranspose2d(8, 4, 2),
        lambda m, x: m.b(m.n(m.a(x)).relu()),
        {},
        "is no layer that can take it",
    ),
    "called twice": (
        nn.Conv2d(8, 8, 1),
        lambda m, x: m.c(m.b(m.b(m.n(m.a(x)).relu()).relu())),
        {"c": nn.Conv2d(8, 2, 1)},
        "is no layer that can take it",
    ),
}


@pytest.mark.parametrize(("reader", "run", "more", "reason"), LEFT.values(), ids=LEFT)
def test_what_is_not_exact_is_left_with_its_reason(reader, run, more, reason):
    found, _ = _absorbed(_net(reader, run, **more))
    assert not found.units.any()
    assert all(reason in why for why in found.reasons.values())


def test_what_a_norm_over_channels_sees_stays():
    """A scale of zero behind the norm makes a constant, but the norm's statistics are of that channel, too."""
    torch.manual_seed(0)
    net = (
        Made({"a": nn.Linear(3, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 4)}, lambda m, x: m.b(m.n(m.a(x))))
        .double()
        .eval()
    )
    with torch.no_grad():
        net.n.weight[2], net.n.bias[2] = 0, 1.5
    analysis = analyse(trace(net, (torch.randn(2, 3, dtype=torch.float64),)))
    _, constant = constants(analysis, analysis.free)
    assert int(constant.sum()) == 1
    found = absorbed(analysis, constant, np.zeros_like(constant))
    assert not found.units.any()
    assert set(found.reasons.values()) == {"what stays depends on it, for example by a norm over channels"}


def test_what_was_found_holds_for_the_units_that_stay():
    analysis = analyse(trace(_net(nn.Conv2d(8, 4, 3, padding=1)), (torch.randn(2, 3, 8, 8, dtype=torch.float64),)))
    gone, stay = np.zeros(analysis.size, dtype=bool), np.zeros(analysis.size, dtype=bool)
    gone[analysis.groups["a"].start + CONSTANT[0]] = True
    stay[analysis.groups["a"].start + CONSTANT[1]] = True
    assert not absorbed(analysis, gone, np.zeros_like(stay)).units.any(), "zeros are around the image"
    assert absorbed(analysis, gone, stay).units.any(), "another constant stands for it"
    assert not absorbed(analysis, gone, np.zeros_like(stay)).units.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_constants_are_rounded_once(dtype):
    net = _net(nn.Conv2d(8, 4, 3)).to(dtype)
    analysis = analyse(trace(net, (torch.randn(2, 3, 8, 8, dtype=dtype),)))
    _, constant = constants(analysis, analysis.free)
    found = absorbed(analysis, constant, np.zeros_like(constant))
    assert int(found.units.sum()) == 3
    slim = remove_units(found.program, ~found.units)
    exact = net.b.bias.double() + (net.b.weight.double().sum((2, 3))[:, CONSTANT] @ _shifts(net))
    assert torch.equal(slim.tensors["b.bias"].detach(), exact.to(dtype))


def _shifts(net: Any) -> Tensor:
    with torch.no_grad():
        return net.n.double()(torch.zeros(1, 8, 1, 1, dtype=torch.float64)).relu().flatten()[list(CONSTANT)]


def test_in_half_precision_a_small_constant_stands_for_no_larger_one():
    net = _net(nn.Conv2d(8, 4, 3, padding=1))
    net.n.bias.data[1] = 0.2
    assert _absorbed(net, stay=(1,))[0].units.sum() == 2
    half = net.half()
    analysis = analyse(trace(half, (torch.randn(2, 3, 8, 8, dtype=torch.float16),)))
    stay = np.zeros(analysis.size, dtype=bool)
    stay[analysis.groups["a"].start + 1] = True
    _, constant = constants(analysis, analysis.free)
    assert not absorbed(analysis, constant & ~stay, stay).units.any()


class _Summed(nn.Module):
    """Constants whose sum over a sequence, or a signal, is read: it depends on the length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a, self.b, self.dim = nn.Linear(3, 8), nn.Linear(8, 4), dim

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.dim == 1 else x.transpose(1, 2)
        found: Tensor = self.b(self.a(x).relu().sum(1))
        return found


@pytest.mark.parametrize("dim", [1, 2])
def test_constants_that_depend_on_the_length_stay(dim):
    torch.manual_seed(0)
    net = _Summed(dim).double().eval()
    with torch.no_grad():
        net.a.weight[2], net.a.bias[2] = 0, 0.5
    shape = (2, 5, 3) if dim == 1 else (2, 3, 5)
    analysis = analyse(trace(net, (torch.randn(shape, dtype=torch.float64),)))
    gone = np.zeros(analysis.size, dtype=bool)
    gone[analysis.groups["a"].start + 2] = True
    assert not absorbed(analysis, gone, np.zeros_like(gone)).units.any()
