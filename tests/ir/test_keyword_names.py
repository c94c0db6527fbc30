"""Parts that are named by a word that Python reserves compile, and keep their names in every form of the result."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from prunec.compiler import compile

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


class Reserved(nn.Module):
    """Layers and weights whose names are words of Python, and one that only begins like such."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.d = nn.ModuleDict({"in": nn.Linear(6, 8), "class": nn.Linear(8, 8), "classes": nn.Linear(8, 4)})
        self.register_parameter("lambda", nn.Parameter(torch.rand(8)))
        self.d["not"] = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x):
        y = self.d["class"](torch.relu(self.d["in"](x))) * getattr(self, "lambda")
        return self.d["classes"](self.d["not"](y))


@pytest.fixture(scope="module")
def compiled():
    x = torch.rand(2, 6)
    model = Reserved().eval()
    return model, compile(model, PLAN, example_inputs=(x,)), x


def test_names_stay(compiled):
    model, result, x = compiled
    assert result.module.state_dict().keys() == model.state_dict().keys()
    assert len(result.lock["removed"]["lambda"]["0"]) == 4
    assert result.module(x).shape == (2, 4)


def test_every_form_runs(compiled, tmp_path):
    _, result, x = compiled
    slim = result.module
    result.save(tmp_path)
    scope = {"__file__": str(tmp_path / "model.py"), "__name__": "emitted"}
    exec((tmp_path / "model.py").read_text(), scope)
    with warnings.catch_warnings(action="ignore"):  # torch warns of attributes of its own
        scripted = torch.jit.script(slim)
    others = [copy.deepcopy(slim), pickle.loads(pickle.dumps(slim)), scripted, scope["load"]()]
    others.append(compile(slim, {"plan": 1, "passes": []}, example_inputs=(x,)).module)
    for other in others:
        torch.testing.assert_close(other(x), slim(x))
