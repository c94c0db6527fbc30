"""Gradients of each sample from one run of all, against a run for each sample."""

from __future__ import annotations

import pytest
import torch
from calibrating import lively
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.compiler.data import Batch
from prunec.compiler.groups.axis_rows import axis_rows
from prunec.compiler.ir.program import Axis
from prunec.compiler.tracing.trace import trace
from prunec.passes.criteria.layer_calls import calls_of, watched_calls
from prunec.passes.criteria.sample_gradients import SCRATCH, absolute_sums
from prunec.passes.criteria.watching import evaluated, look_once


class Twice(nn.Module):
    """A convolution that is called twice, on maps of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.f = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(F.relu_(self.c(F.max_pool2d(F.relu(self.c(x)), 2))).mean((2, 3)))


class Sequence(nn.Module):
    """Linear layers on sequences [samples, places, features]."""

    def __init__(self, *, places_first: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.places_first = nn.Linear(5, 6), nn.Linear(6, 3), places_first

    def forward(self, x: Tensor) -> Tensor:
        if self.places_first:
            return self.b(F.gelu(self.a(x.transpose(0, 1))).mean(0))
        return self.b(F.gelu(self.a(x)).mean(1))


class Frames(nn.Module):
    """A convolution on three frames of each sample, which stand along the batch; a linear function of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.weight = nn.Conv2d(2, 4, 3, padding=1), nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        frames = F.relu(self.c(x.flatten(0, 1))).mean((2, 3))
        return F.linear(frames.view(-1, 3, 4).mean(1), self.weight)


def behind(layer: nn.Module, values: int) -> nn.Module:
    """A layer, what overwrites its value, and a classifier."""
    return nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(values, 3))


MODELS = {
    "called twice": (Twice, (4, 6, 6)),
    "sequence": (Sequence, (7, 5)),
    "places first": (lambda: Sequence(places_first=True), (7, 5)),
    "frames": (Frames, (3, 2, 5, 5)),
    "groups": (lambda: behind(nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), 72), (4, 9, 8)),
    "depthwise": (
        lambda: behind(nn.Conv2d(4, 8, 3, padding="same", groups=4, padding_mode="circular"), 576),
        (4, 9, 8),
    ),
    "1d": (lambda: behind(nn.Conv1d(3, 5, 4, stride=3, padding=2, padding_mode="reflect"), 30), (3, 17)),
    "3d": (lambda: behind(nn.Conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)), 288), (2, 4, 5, 5)),
    "transposed": (
        lambda: behind(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), 480),
        (4, 5, 4),
    ),
    "transposed 1d": (
        lambda: behind(nn.ConvTranspose1d(4, 6, 5, stride=2, padding=1, dilation=3, output_padding=2), 138),
        (4, 6),
    ),
    "transposed 3d": (lambda: behind(nn.ConvTranspose3d(2, 3, 2, stride=2), 648), (2, 3, 3, 3)),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)), (3, 4)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_by_a_run_of_each_sample(kind):
    make, shape = MODELS[kind]
    model = lively(make())
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    program = trace(model, (x[:1],))
    calls, parts = calls_of(program), {}

    def show(call, read, gradient) -> None:
        parts.setdefault(id(program.tensors[call.weight]), []).append((call, read, gradient))

    module = watched_calls(evaluated(program), [call for each in calls.values() for call in each], show)
    look_once(module, Batch((x,)), lambda y, piece: y.softmax(1)[:, 1].sum())
    weights = {name: tensor for name, tensor in program.tensors.items() if tensor.ndim > 1}
    assert calls.keys() == {id(tensor) for tensor in weights.values()}
    for name, tensor in weights.items():
        alone = []
        for one in x.split(1):
            (gradient,) = torch.autograd.grad(model(one).softmax(1)[:, 1].sum(), model.get_parameter(name))
            alone.append([axis_rows(program, Axis(name, dim), gradient.abs()).sum(1) for dim in (0, 1)])
        for scratch in (SCRATCH, 50):  # all at once, and some samples and filters at a time
            found = absolute_sums(parts[id(tensor)], scratch)
            for dim in (0, 1):
                expected = torch.stack([each[dim] for each in alone])
                torch.testing.assert_close(found[dim], expected, rtol=1e-9, atol=1e-14)
