"""Whole numbers in the place of floats, and methods that TorchScript doesn't know: what is written scripts."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import compile
from prunec.compiler.tracing.trace import trace

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


class Net(nn.Module):
    """Two convolutions, and a case between them."""

    def __init__(self, case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.case = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), case

    def forward(self, x):
        return self.b(self.case(self.a(x)))


CASES = {
    "hardtanh": lambda y: F.hardtanh(y, 0, 6),
    "dropout": lambda y: F.dropout(y, 0, False),
    "slopes": lambda y: F.leaky_relu(y, 1) + F.elu(y, alpha=1) + F.celu(y, 2),
    "a scale": lambda y: F.interpolate(y, scale_factor=2),
    "scales": lambda y: F.interpolate(y, None, [2, 1.5], mode="bilinear", align_corners=False),
    "normalize": lambda y: F.normalize(y, 2, 1),
    "padding": lambda y: F.pad(y, (1, 1), "constant", 1) + F.pad(y, (1, 1), value=0),
    "threshold": lambda y: F.threshold(y, 0, 0),
    "distance": lambda y: y * torch.cdist(y, y, p=1) + torch.pairwise_distance(y, y * 2, 1)[..., None],
    "length by a method": lambda y: y / (y.norm(2, dim=-1, keepdim=True) + 1),
    "a mask by a method": lambda y: y * torch.ones(4, 4).triu(1).bool(),
    "small floats": lambda y: y + y.bfloat16().float(),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_results_script(case, tmp_path):
    model, x = Net(case).eval(), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(trace(model, (x,)).module(x), model(x), rtol=0, atol=0)
    result = compile(model, PLAN, example_inputs=(x,))
    assert len(result.lock["removed"]["a.weight"]["0"]) == 4
    result.save(tmp_path)
    scope = {"__file__": str(tmp_path / "model.py"), "__name__": "emitted"}
    exec((tmp_path / "model.py").read_text(), scope)
    with warnings.catch_warnings(action="ignore"):  # torch warns of attributes of its own
        scripted = torch.jit.script(result.module)
    torch.testing.assert_close(scripted(x), result.module(x))
    torch.testing.assert_close(scope["load"]()(x), result.module(x))


def test_whole_numbers_stay_where_they_are_counted():
    model, x = Net(lambda y: torch.roll(F.max_pool2d(y, 2) + 1, 1, 3)), torch.randn(2, 3, 4, 4)
    given = [a for node in trace(model, (x,)).graph.nodes for a in (*node.args, *node.kwargs.values())]
    assert not any(isinstance(value, float) for value in given)


def ours(x, times: float = 2.0):
    """A function that isn't torch's."""
    return x * times


torch.fx.wrap("ours")


def test_functions_of_others_get_what_they_were_given():
    model, x = Net(lambda y: ours(y, 3)), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(trace(model, (x,)).module(x), model(x), rtol=0, atol=0)
