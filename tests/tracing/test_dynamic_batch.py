"""Numbers that a forward makes plain follow the batch all the same."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace


class Windows(nn.Module):
    """Features in windows, which `count` puts back into images."""

    def __init__(self, count):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        n, c, h, w = y.shape
        windows = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c).tanh()
        images = windows.view(self.count(x, windows, h, w), h // 2, w // 2, 4, -1)
        return self.fc(images.mean((1, 2, 3)) + x.mean())


@lru_cache
def rows_of(windows: int, h: int, w: int) -> int:
    """A function that remembers plain numbers."""
    return windows // (h * w // 4)


FROZEN = {
    "int": lambda x, windows, h, w: int(windows.shape[0] / (h * w / 2 / 2)),
    "floor": lambda x, windows, h, w: math.floor(windows.shape[0] / (h * w / 4)),
    "ceil": lambda x, windows, h, w: math.ceil(windows.shape[0] / (h * w / 4)),
    "round": lambda x, windows, h, w: round(windows.shape[0] / (h * w / 4)),
    "trunc": lambda x, windows, h, w: math.trunc(windows.shape[0] / (h * w / 4)),
    "int of a size": lambda x, windows, h, w: int(x.size(0)),
    "len": lambda x, windows, h, w: len(x),
    "of a list": lambda x, windows, h, w: next(map(int, x.shape)),
    "remembered": lambda x, windows, h, w: rows_of(windows.shape[0], h, w),
}


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", FROZEN)
def test_the_batch_stays_open(name, batch):
    model = Windows(FROZEN[name]).eval()
    model(torch.rand(batch, 3, 4, 6))  # what functions remember of an earlier run isn't taken for the trace's
    program = trace(model, (torch.rand(batch, 3, 4, 6),))
    for size in (1, 2, 5):
        x = torch.rand(size, 3, 4, 6)
        assert torch.equal(program.module(x), model(x))


def test_what_is_removed_leaves_it_open():
    model = Windows(FROZEN["int"]).eval()
    program = trace(model, (torch.rand(1, 3, 4, 6),))
    keep = ~analyse(program).free
    keep[:3] = True
    assert remove_units(program, keep).module(torch.rand(7, 3, 4, 6)).shape == (7, 4)


def test_multiples_of_the_batch():
    def forward(x, windows, h, w):
        assert windows.view(int(2 * x.shape[0]), -1).shape[0] == 2 * len(x)
        return windows.view(int(2 * x.shape[0]), -1).shape[0] // 2

    model = Windows(forward).eval()
    program = trace(model, (torch.rand(2, 3, 4, 6),))
    x = torch.rand(5, 3, 4, 6)
    assert torch.equal(program.module(x), model(x))


def test_a_number_that_only_looks_like_the_batch_stays():
    model = Windows(lambda x, windows, h, w: int(w)).eval()
    graph = trace(model, (torch.rand(6, 3, 4, 6),)).graph
    [view] = [node for node in graph.nodes if node.target == "view" and len(node.args) == 6]
    assert view.args[1] == 6


def test_a_forward_that_differs_for_another_batch_is_traced_for_this_one():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x):
            return torch.stack([self.fc(x[i]) for i in range(int(x.shape[0]))])

    model, x = Unrolled().eval(), torch.rand(2, 3)
    assert torch.equal(trace(model, (x,)).module(x), model(x))


def test_functions_remember_nothing_of_a_trace():
    rows_of.cache_clear()
    trace(Windows(FROZEN["remembered"]).eval(), (torch.rand(2, 3, 4, 6),))
    assert rows_of.cache_info().currsize == 0
