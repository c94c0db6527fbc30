"""Which calls of layers can be watched, and what can't be told of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler.data import Batch
from prunec.compiler.errors import PassError
from prunec.compiler.tracing.trace import trace
from prunec.passes.criteria.layer_calls import calls_of, watched_calls
from prunec.passes.criteria.watching import evaluated, look_once


def test_what_anything_else_reads_is_left_out():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(x @ self.a.weight + self.b(self.a(x)))

    program = trace(Tied(), (torch.zeros(2, 4),))
    weights = {id(program.tensors[f"{name}.weight"]) for name in "bc"}
    assert calls_of(program).keys() == weights


def test_what_was_overwritten_is_told():
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            y = self.b(x)
            x += 1.0
            return x + y

    program = trace(Overwritten(), (torch.zeros(2, 4),))
    calls = [call for each in calls_of(program).values() for call in each]
    module = watched_calls(evaluated(program), calls, lambda call, read, gradient: None)
    with pytest.raises(PassError, match="what b has read is overwritten behind it"):
        look_once(module, Batch((torch.ones(2, 4),)), lambda y, piece: y.sum())
