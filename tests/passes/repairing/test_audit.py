"""Weights that their pass got wrong are found, whatever the fault; right ones pass, also from a single sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler import compile
from prunec.compiler.errors import VerifyError
from prunec.compiler.rewrite.merge import Tensors
from prunec.passes.repairing import combining
from prunec.passes.repairing.low_rank import Spectrum
from prunec.passes.repairing.refit import LeastSquares, Statistics, _OfLayer

CUT: list[Any] = [{"score": "l1"}, {"select": "40%"}, "shrink"]
PASSES: dict[str, list[Any]] = {
    "least squares": [*CUT, "repair"],
    "bias": [*CUT, {"repair": "bias"}],
    "batch norm": [*CUT, {"repair": "batch_norm"}],
    "factors": [{"factorise": {"error": 0.2}}],
    "combinations": [{"cluster": {"ratio": "40%"}}, {"merge": "least_squares"}],
}


CHECKED = ("repair", "factorise", "merge")


def _images(count: int) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(count, 3, 4, 4, generator=draws), size=8, mode="bilinear")
    return smooth + 0.1 * torch.randn(count, 3, 8, 8, generator=draws) + 0.5


class _Net(nn.Module):
    """Layers of every kind that is refit, one behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.m = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.c, self.d = nn.Conv2d(16, 20, 3, stride=2, padding=1), nn.Linear(20 * 16, 24)
        self.e = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n(self.a(x)).relu()
        x = (x + self.m(self.b(x))).relu()
        found: Tensor = self.e(self.d(self.c(x).relu().flatten(1)).relu())
        return found


def _net() -> nn.Module:
    net = _Net().train()
    with torch.no_grad():
        for _ in range(30):
            net(_images(128))
    return net.eval()


def _compiled(passes: list[Any], samples: int = 128) -> Any:
    x = _images(128)[:samples]
    return compile(_net(), {"plan": 1, "passes": passes}, (x[:1],), list(x.split(32)))


def _changed(result: Any) -> bool:
    """Whether the pass that is checked has given other weights, so that there was something to check."""
    return [record for record in result.report["passes"] if record["pass"] in CHECKED][-1]["verification"] is not None


@pytest.mark.parametrize("samples", [1, 2, 9, 128])
@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
def test_what_is_right_passes(passes, samples):
    result = _compiled(passes, samples)
    assert samples < 128 or _changed(result)


def _rolled(tensor: Tensor, dim: int) -> Tensor:
    return tensor.roll(1, dim)


def _writes(change: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Least squares write weights, [groups, inputs * taps, outputs], that are changed."""
    write = LeastSquares._write

    def wrong(self: LeastSquares, some: slice, new: Tensor, counts: Tensor) -> None:
        write(self, some, change(new), counts)

    return lambda patch: patch.setattr(LeastSquares, "_write", wrong)


def _shifts(change: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Biases are moved otherwise."""
    shift = _OfLayer.shift
    return lambda patch: patch.setattr(_OfLayer, "shift", lambda self, by: shift(self, change(by)))


def _splits(change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    """Layers are split into others."""
    split = Spectrum.split
    return lambda patch: patch.setattr(Spectrum, "split", lambda self, rank: change(*split(self, rank)))


def _noisy(patch: pytest.MonkeyPatch) -> None:
    """Columns get what is no combination of columns."""
    right = Tensors.accumulate
    patch.setattr(Tensors, "accumulate", lambda self, axis, at, rows: right(self, axis, at, rows + rows.flip(1)))


def _combines(change: Callable[[Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Channels are combined otherwise, [units that stay, units that are gone]."""
    right = combining.coefficients
    return lambda patch: patch.setattr(combining, "coefficients", lambda *args: change(right(*args)))


def _other_means(patch: pytest.MonkeyPatch) -> None:
    right = Statistics.finish

    def wrong(self: Statistics) -> bool:
        self.mean = self.mean.roll(1)
        return right(self)

    patch.setattr(Statistics, "finish", wrong)


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "columns in another order": ("least squares", _writes(lambda w: _rolled(w, 1))),
    "taps turned round": ("least squares", _writes(lambda w: w.flip(1))),
    "outputs in another order": ("least squares", _writes(lambda w: _rolled(w, 2))),
    "another sign": ("least squares", _writes(lambda w: -w)),
    "no bias": ("least squares", _shifts(torch.zeros_like)),
    "another output's bias": ("least squares", _shifts(lambda b: b.roll(1))),
    "no bias alone": ("bias", _shifts(lambda b: -b)),
    "another channel's bias": ("bias", _shifts(lambda b: b.roll(1))),
    "another channel's mean": ("batch norm", _other_means),
    "the first factor in another order": ("factors", _splits(lambda one, two, b: (_rolled(one, 1), two, b))),
    "the second factor in another order": ("factors", _splits(lambda one, two, b: (one, _rolled(two, 1), b))),
    "the first factor's columns": ("factors", _splits(lambda one, two, b: (_rolled(one, 0), two, b))),
    "factors without what they lack": ("factors", _splits(lambda one, two, b: (one, two, torch.zeros_like(b)))),
    "no combination": ("combinations", _noisy),
    "half of a combination": ("combinations", _combines(lambda c: c / 2)),
    "nothing for what is gone": ("combinations", _combines(torch.zeros_like)),
    "the nearest channel alone": (
        "combinations",
        _combines(lambda c: c * (c.abs() == c.abs().amax(0))),
    ),
    "combinations of other channels": ("combinations", _combines(lambda c: _rolled(c, 0))),
}


@pytest.mark.parametrize(("passes", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(passes, fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(VerifyError, match="wrote wrong weights"):
        _compiled(PASSES[passes])


def _sparse() -> Tensor:
    """Only images that a check of some samples doesn't come across are more than zeros."""
    images = torch.zeros(300, 3, 8, 8)
    images[5::10] = 20 * _images(30)
    return images


@pytest.mark.parametrize("name", ["least squares", "bias", "batch norm", "factors"])
@pytest.mark.parametrize("images", [_sparse(), torch.ones(40, 3, 8, 8)], ids=["few that say all", "all alike"])
def test_odd_samples_are_no_fault(name, images):
    result = compile(_net(), {"plan": 1, "passes": PASSES[name]}, (_images(2),), [images])
    assert _changed(result)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_rounding_is_no_fault(dtype):
    passes = [*CUT, {"repair": "batch_norm"}, "repair"]
    result = compile(_net().to(dtype), {"plan": 1, "passes": passes}, (_images(2).to(dtype),), [_images(17).to(dtype)])
    assert _changed(result)
