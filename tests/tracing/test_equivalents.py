"""Copies of tensors, and splits and repeats by known numbers, are traced as what they do; channels go through them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import ModelError
from prunec.compiler.tracing.trace import trace

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}


class Net(nn.Module):
    """Three convolutions; `case` stands between the last two, or takes the input."""

    def __init__(self, case, first=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 4, 1)
        self.case, self.first = case, first
        self.register_buffer("counts", torch.tensor([1, 2, 0, 1, 1, 1, 3]))
        self.register_buffer("cuts", torch.tensor([3, 5]))
        self.register_buffer("twice", torch.tensor([2]))

    def forward(self, x):
        y = torch.relu(self.b(torch.relu(self.a(self.case(self, x) if self.first else x))))
        return self.c(y if self.first else self.case(self, y))


COPIES = {
    "copy": lambda s, x: copy.copy(x),
    "copy of a list": lambda s, x: copy.copy([x])[0],
    "deepcopy": lambda s, x: copy.deepcopy(x.detach()),
    "deepcopy of a nest": lambda s, x: copy.deepcopy({"x": [x.detach()]})["x"][0],
    "deepcopy keeps what is one": lambda s, x: sum(copy.deepcopy([x.detach()] * 2)) / 2,
    "clone": lambda s, x: x.clone(),
    "data": lambda s, x: x.data,
    "tensor": lambda s, x: torch.tensor(x),
    "tensor of a dtype": lambda s, x: torch.tensor(x, dtype=torch.float64).float(),
    "as_tensor": lambda s, x: torch.as_tensor(x),
    "asarray": lambda s, x: torch.asarray(x),
    "new_tensor": lambda s, x: x.new_tensor(x),
    "new_tensor of another": lambda s, x: s.a.bias.new_tensor(x),
    "Tensor": lambda s, x: torch.Tensor(x),
    "Parameter": lambda s, x: nn.Parameter(x),
    "as_subclass": lambda s, x: x.as_subclass(torch.Tensor),
    "empty_like": lambda s, x: torch.empty_like(x).copy_(x),
}
KNOWN = {
    "repeats in a buffer": lambda s, x: torch.repeat_interleave(x, s.counts, dim=2),
    "repeats by name": lambda s, x: torch.repeat_interleave(input=x, repeats=s.counts, dim=2),
    "method's repeats": lambda s, x: x.repeat_interleave(s.counts, 2),
    "literal repeats": lambda s, x: x.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 1, 1]), dim=2),
    "repeats of a known size": lambda s, x: x.repeat_interleave(s.counts, dim=2, output_size=9),
    "one count": lambda s, x: x.repeat_interleave(s.twice, dim=2),
    "places of counts": lambda s, x: x[:, :, torch.repeat_interleave(s.counts)],
    "cuts in a buffer": lambda s, x: torch.tensor_split(x, s.cuts, dim=2)[1],
    "method's cuts": lambda s, x: x.tensor_split(s.cuts, 2)[2],
    "literal cuts": lambda s, x: x.tensor_split(torch.tensor([3, 5]), dim=2)[0],
    "cuts by name": lambda s, x: torch.tensor_split(x, tensor_indices_or_sections=s.cuts, dim=2)[0],
    "sections": lambda s, x: torch.cat(x.tensor_split(torch.tensor(3), dim=2)[::-1], 2),
    "cuts of channels": lambda s, x: torch.cat(x.tensor_split(s.cuts, dim=1)[::-1], 1),
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", COPIES)
def test_copies(name, first):
    model, x = Net(COPIES[name], first).eval(), torch.rand(2, 3, 7)
    result = compile(model, PLAN, (x,))
    assert sorted(len(found["0"]) for found in result.lock["removed"].values() if "0" in found) == [4, 4, 4, 4]
    with torch.no_grad():
        program, other = trace(model, (x,)), torch.rand(3, 3, 7)
        assert torch.equal(program.module(other), model(other))


@pytest.mark.parametrize("name", KNOWN)
def test_known_repeats_and_splits(name):
    model, x = Net(KNOWN[name]).eval(), torch.rand(2, 3, 7)
    result = compile(model, PLAN, (x,))
    assert len(result.lock["removed"]["a.weight"]["0"]) == 4
    assert len(result.lock["removed"]["b.weight"]["0"]) == 4
    other = torch.rand(3, 3, 7)
    assert torch.equal(trace(model, (x,)).module(other), model(other))


def test_repeats_of_all_elements():
    model, x = (
        Net(lambda s, y: y + y.mean(0).repeat_interleave(torch.tensor([2] * 56)).sum()).eval(),
        torch.rand(2, 3, 7),
    )
    assert torch.allclose(trace(model, (x,)).module(x), model(x))


def test_a_list_of_samples():
    model, x = Net(lambda s, y: torch.stack(list(y))).eval(), torch.rand(2, 3, 7)
    assert torch.equal(trace(model, (x,)).module(x), model(x))


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("make", [torch.tensor, torch.as_tensor, torch.asarray])
def test_a_list_of_numbers_in_tensors(make):
    model, x = Net(lambda s, y: y * make([y.mean(), y.amax()]).sum()).eval(), torch.rand(2, 3, 7)
    assert torch.allclose(trace(model, (x,)).module(x * 2), model(x * 2))


COUNTED = "the size of a result depends on the values of a tensor (`{}`)"
NUMBERS = "a tensor's values are read as Python numbers (`{}`)"
REFUSED = {
    "repeat_interleave": (
        lambda s, x: x.repeat_interleave((x[0, 0] > 0).long(), 2),
        COUNTED.format(".repeat_interleave()"),
    ),
    "tensor_split": (lambda s, x: x.tensor_split(x[0, 0, :2].long(), 2)[0], COUNTED.format(".tensor_split()")),
    "nonzero": (lambda s, x: x + x.nonzero().shape[0], COUNTED.format(".nonzero()")),
    "unique": (lambda s, x: x + torch.unique(x).sum(), COUNTED.format("unique")),
    "masked_select": (lambda s, x: x + x.masked_select(x > 0).sum(), COUNTED.format(".masked_select()")),
    "a mask": (lambda s, x: x + x[x > 0].sum(), COUNTED.format("x[mask]")),
    "bincount": (lambda s, x: x + torch.bincount(x[0, 0].long()).sum(), COUNTED.format("bincount")),
    "one_hot": (lambda s, x: x + F.one_hot(x[0, 0].long()).sum(), COUNTED.format("one_hot")),
    "numpy": (lambda s, x: torch.from_numpy(x.detach().numpy()), NUMBERS.format(".numpy()")),
    "asarray of numpy": (lambda s, x: torch.from_numpy(np.asarray(x.detach())), NUMBERS.format("numpy.asarray()")),
    "tolist": (lambda s, x: torch.tensor(x.tolist()), NUMBERS.format(".tolist()")),
    "dlpack": (lambda s, x: torch.from_dlpack(x.detach()), NUMBERS.format("from_dlpack")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_the_matter(name):
    case, message = REFUSED[name]
    model = Net(case).eval()
    with pytest.raises(ModelError) as caught:
        trace(model, (torch.rand(2, 3, 7),))
    assert caught.value.message == f"Net: {message}"
    assert caught.value.hint.endswith("name a part to compile: region: backbone")
    assert caught.value.at.file == __file__
    assert caught.value.at.line == case.__code__.co_firstlineno
