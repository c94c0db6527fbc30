"""Removed units that give a constant are told, and no others; a compile is compared with the zeroed network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from prunec.compiler import compile
from prunec.compiler.driver.compile import Result
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.tracing.trace import trace
from prunec.passes.constants import constant_units as constant_units_module
from prunec.passes.constants.constant_units import by_group, constant_units

GONE = (1, 4, 6)
IMAGES = (4, 3, 6, 6)


class _Net(nn.Module):
    """`a` writes eight channels, a batch norm shifts them, `between` leads to the reader `b`."""

    def __init__(self, between: Callable[[_Net, Tensor], Tensor], shift: float, **more: nn.Module) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.b = more.pop("b", nn.Conv2d(8, 4, 1))
        self.more = nn.ModuleDict(more)
        self.between = between
        nn.init.constant_(self.n.bias, shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.n(self.a(x))))


def _zeroed(net: _Net, *, scale: bool = False) -> _Net:
    with torch.no_grad():
        (net.n if scale else net.a).weight[list(GONE)] = 0
    return net.eval()


def _found(net: nn.Module, gone: tuple[int, ...] = GONE, shape: tuple[int, ...] = IMAGES) -> dict[str, int]:
    analysis = analyse(trace(net, (torch.randn(shape),)))
    keep = np.ones(analysis.size, dtype=bool)
    keep[analysis.groups["a"].start + np.array(gone)] = False
    return by_group(analysis, constant_units(analysis, keep))


CONSTANT = {
    "relu": lambda m, x: x.relu(),
    "sigmoid": lambda m, x: x.sigmoid(),
    "a scaled sum": lambda m, x: x.tanh() * 3 + 1,
    "max-pooled": lambda m, x: nn.functional.max_pool2d(x.relu(), 2, padding=1),
    "averaged with zeros around": lambda m, x: nn.functional.avg_pool2d(x.relu(), 3, padding=1),
    "averaged": lambda m, x: nn.functional.adaptive_avg_pool2d(x.relu(), 1),
    "padded": lambda m, x: nn.functional.pad(x.relu(), (1, 1, 1, 1)),
    "beside the image": lambda m, x: torch.cat([x, x.relu()], 1)[:, 8:],
    "through a depthwise layer": lambda m, x: m.more["depthwise"](x).tanh(),
}


@pytest.mark.parametrize("between", CONSTANT.values(), ids=CONSTANT)
def test_a_constant_that_is_dropped_is_found(between):
    torch.manual_seed(0)
    net = _Net(between, 0.5, depthwise=nn.Conv2d(8, 8, 3, groups=8))
    assert _found(_zeroed(net)) == {"a": 3}
    assert _found(_zeroed(net), (1, 2, 3)) == {"a": 1}, "of those that go"
    assert _found(net, (0, 2, 3)) == {}


def test_a_flattened_image_is_read_place_by_place():
    torch.manual_seed(0)
    net = _Net(lambda m, x: x.relu().flatten(1), 0.5, b=nn.Linear(8 * 16, 4))
    assert _found(_zeroed(net)) == {"a": 3}


def test_a_norm_without_scale_gives_its_shift():
    torch.manual_seed(0)
    assert _found(_zeroed(_Net(lambda m, x: x.relu(), 0.5), scale=True)) == {"a": 3}


NOT_CONSTANT = {
    "zero behind a relu": (-0.5, lambda m, x: x.relu()),
    "zero": (0.0, lambda m, x: x.tanh()),
    "a gate": (0.5, lambda m, x: x * x.mean((1, 2, 3), keepdim=True)),
    "a sum with what lives": (0.5, lambda m, x: x + m.more["same"](x)),
}


@pytest.mark.parametrize(("shift", "between"), NOT_CONSTANT.values(), ids=NOT_CONSTANT)
def test_zeros_and_what_lives_are_not_told(shift, between):
    torch.manual_seed(0)
    net = _zeroed(_Net(between, shift, same=nn.Conv2d(8, 8, 1)))
    assert _found(net) == {}


def test_saturated_units_live():
    torch.manual_seed(0)
    net = _Net(lambda m, x: nn.functional.relu6(x + 100), 0.5).eval()
    assert _found(net) == {}


def test_one_sample_and_no_image_still_tell_apart():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("a", nn.Linear(5, 8))
    net.add_module("r", nn.Sigmoid())
    net.add_module("b", nn.Linear(8, 2))
    with torch.no_grad():
        net.a.weight[list(GONE)] = 0
    assert _found(net.eval(), (0, 1, 4), (1, 5)) == {"a": 2}


# -- through shrink ----------------------------------------------------------------------------------------------------

_PLAN = {
    "plan": 1,
    "passes": [{"score": {"criterion": "l1", "axes": "writers"}}, {"select": {"threshold": 1e-9}}, "shrink"],
}


def _plain(shift: float) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    nn.init.constant_(net[1].bias, shift)
    return net.eval()


def _pruned(shift: float, **options: str) -> tuple[nn.Sequential, Result]:
    """A network with four filters zeroed by torch's own pruning, and what a compile gives of it."""
    net = _plain(shift)
    prune.ln_structured(net[0], "weight", 4, n=1, dim=0)
    plan = {**_PLAN, "passes": [*_PLAN["passes"][:2], {"shrink": options} if options else "shrink"]}
    return net, compile(net, plan, example_inputs=(torch.randn(2, 3, 5, 5),))


def _details(result: Result) -> dict[str, object]:
    return next(record["details"] for record in result.report["passes"] if record["pass"] == "shrink")


def test_shrink_tells_how_many_and_where():
    _, result = _pruned(0.5, constants="drop")
    assert _details(result)["removed_units"] == _details(result)["constant_units"] == {"0": 4}
    assert _details(result)["absorbed_units"] == {}
    told = [w for w in result.report["warnings"] if "shrink removes 4 units that are constant but not zero" in w]
    assert len(told) == 1
    assert "(4 of '0')" in told[0]


def test_units_that_give_zero_are_exact_and_not_told():
    net, result = _pruned(0.0)
    x = torch.randn(3, 3, 7, 7)
    assert dict(result.module.named_parameters())["0.weight"].shape[0] == 4
    assert torch.allclose(net(x), result.module(x), atol=1e-6)
    assert result.report["warnings"] == []


def test_units_that_give_a_constant_are_exact():
    net, result = _pruned(0.5)
    x = torch.randn(3, 3, 7, 7)
    assert torch.allclose(net(x), result.module(x), atol=1e-5)
    assert _details(result)["absorbed_units"] == {"0": 4}
    assert result.report["warnings"] == []


class _Tokens(nn.Module):
    """A vector of zeros that is added and one that is laid beside the pixels, as vision transformers begin."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(8))
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b((torch.cat([self.token.expand(len(x), -1, -1), self.a(x)], 1) * self.scale + self.place).cos())


@pytest.mark.parametrize("scaled", [False, True])
def test_zeros_that_are_added_cut_nothing_off(scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with no factor of zero isn't run for it; a scale of zero is such a factor, which needs no run either."""
    runs: list[object] = []
    monkeypatch.setattr(constant_units_module, "_constant", lambda *found: runs.append(found) or (~keep, ~keep))
    net = _Tokens()
    if scaled:
        nn.init.zeros_(net.scale)
    analysis = analyse(trace(net.eval(), (torch.randn(4, 5, 3),)))
    keep = np.ones(analysis.size, dtype=bool)
    keep[analysis.groups["token"].start + np.array(GONE)] = False
    assert by_group(analysis, constant_units(analysis, keep)) == ({"token": 3} if scaled else {})
    assert not runs


class _Shifted(nn.Module):
    """A norm by a function, whose shift is zero, as ConvNeXt begins."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)
        self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.nn.functional.layer_norm(self.a(x), (8,), self.scale, self.shift).cos())


@pytest.mark.parametrize("scaled", [False, True])
def test_a_norm_s_shift_of_zero_cuts_nothing_off(scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale of zero does."""
    runs: list[object] = []
    monkeypatch.setattr(constant_units_module, "_constant", lambda *found: runs.append(found) or (~keep, ~keep))
    net = _Shifted()
    if scaled:
        nn.init.zeros_(net.scale)
    analysis = analyse(trace(net.eval(), (torch.randn(4, 3),)))
    keep = np.ones(analysis.size, dtype=bool)
    keep[analysis.groups["a"].start + np.array(GONE)] = False
    constant_units(analysis, keep)
    assert bool(runs) is scaled
