"""`torch.vmap` is traced as the operations on whole batches that it comes down to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import compile
from prunec.compiler.tracing.trace import trace

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


class Net(nn.Module):
    def __init__(self, case):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.case = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1), case
        self.scale = nn.Parameter(torch.rand(8, 1))

    def forward(self, x):
        return self.b(self.case(self, torch.relu(self.a(x))))


CASES = {
    "arithmetic": lambda s, y: torch.vmap(lambda t: t * 2 + 1)(y),
    "from torch.func": lambda s, y: torch.func.vmap(torch.sigmoid)(y),
    "a parameter outside": lambda s, y: torch.vmap(lambda t: t * s.scale)(y),
    "two operands": lambda s, y: torch.vmap(lambda t, u: t * u, in_dims=(1, 0), out_dims=1)(y, torch.arange(8.0)),
    "none of one": lambda s, y: torch.vmap(torch.add, in_dims=(0, None))(y, s.scale),
    "a product": lambda s, y: torch.vmap(torch.matmul)(y, y.transpose(1, 2) @ y),
    "a nest": lambda s, y: torch.vmap(lambda d: {"y": d["y"].softmax(-1)})({"y": y})["y"],
    "two results": lambda s, y: sum(torch.vmap(lambda t: (t.relu(), t.tanh()))(y)),
    "one in another": lambda s, y: torch.vmap(torch.vmap(lambda row: row - row.mean()))(y),
    "a function of torch.nn": lambda s, y: torch.vmap(lambda t: F.conv1d(t, s.b.weight.new_ones(8, 1, 1), groups=8))(y),
    "an index": lambda s, y: torch.vmap(lambda t: t[torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])])(y),
    "many weights": lambda s, y: torch.vmap(lambda w: y * w)(torch.stack([s.scale, s.scale * 2])).sum(0),
    "in chunks": lambda s, y: torch.vmap(torch.exp, chunk_size=1)(y),
}


@pytest.mark.parametrize("name", CASES)
def test_it_gives_what_the_model_gives(name):
    model, x = Net(CASES[name]).eval(), torch.rand(2, 3, 5)
    program = trace(model, (x,))
    for batch in (2, 5):
        other = torch.rand(batch, 3, 5)
        assert torch.allclose(program.module(other), model(other), atol=1e-6)
    compile(model, PLAN, (x,))


def test_channels_go_on_through_it():
    result = compile(Net(CASES["a parameter outside"]).eval(), PLAN, (torch.rand(2, 3, 5),))
    assert len(result.lock["removed"]["a.weight"]["0"]) == 4


def test_a_layer_in_it():
    model, x = Net(lambda s, y: y), torch.rand(2, 3, 5)
    model.forward = lambda x: torch.vmap(model.b)(torch.relu(model.a(x)))
    assert torch.allclose(trace(model.eval(), (x,)).module(x), model(x), atol=1e-6)


def test_torchs_own_function_is_back_afterwards():
    trace(Net(CASES["arithmetic"]).eval(), (torch.rand(2, 3, 5),))
    x = torch.rand(4, 3)
    assert torch.equal(torch.vmap(lambda t: t * t.shape[0])(x), x * 3)
