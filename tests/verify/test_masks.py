"""Marks: what may not be removed, and selections that don't fit together."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slimmed_by_hand import CASES, IMAGE, Case, Net, conv, layer, program_of, seeded
from torch import nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Axis
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify

INCONSISTENT = r"kept meet channels|positions of an axis|no whole channels"


def forgotten() -> Iterator[tuple[str, Axis]]:
    for name, case in CASES.items():
        for axis in case.axes():
            yield name, axis


@pytest.mark.parametrize(("name", "axis"), forgotten(), ids=str)
def test_a_selection_that_forgets_an_axis_is_inconsistent(name, axis):
    case = CASES[name]
    removed = {a: positions for a, positions in case.axes().items() if a != axis}
    with pytest.raises(VerifyError, match=INCONSISTENT):
        Masked(case.before, removed).run((case.example(),), torch.float64)


@pytest.mark.parametrize(("name", "axis"), forgotten(), ids=str)
def test_a_selection_of_one_other_position_is_inconsistent(name, axis):
    case = CASES[name]
    removed = dict(case.axes())
    spare = next(i for i in range(100) if i not in removed[axis])
    removed[axis] = np.array([spare, *removed[axis][1:]])
    with pytest.raises(VerifyError, match=INCONSISTENT):
        Masked(case.before, removed).run((case.example(),), torch.float64)


def test_an_unequal_selection_from_the_groups_of_a_convolution_is_read_by_group():
    """Groups may lose different positions, as long as each loses as many."""
    case = CASES["grouped"]
    removed = {Axis("a.weight", 0): [1, 5], Axis("a.bias", 0): [1, 5], Axis("g.weight", 1): [1, 5]}
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    model.a.weight.data = model.a.weight.detach()[[0, 2, 3, 4]]
    model.a.bias.data = model.a.bias.detach()[[0, 2, 3, 4]]
    weight = model.g.weight.detach()
    model.g.weight.data = torch.cat([weight[:4, [0, 2]], weight[4:, [0, 1]]])
    masked = Masked(before, {axis: np.array(lost) for axis, lost in removed.items()})
    verify(program_of(model, case.example()), masked, pass_name="shrink")
    model.g.weight.data = torch.cat([weight[:4, [0, 2]], weight[4:, [0, 2]]])
    with pytest.raises(VerifyError, match="node 'g'"):
        verify(program_of(model, case.example()), masked, pass_name="shrink")


def test_a_view_of_marked_channels():
    """What is a view of the data must be one of the marks."""

    class Viewed(Net):
        def forward(self, x):
            return self.fc(self.conv1(x).view(x.size(0), -1))

    case = Case(Viewed(conv1=conv(3, 4), fc=nn.Linear(144, 2)), IMAGE,
                {**layer("conv1", [1]), **layer("fc", None, list(range(36, 72)))})  # fmt: skip
    assert verify(case.after(), Masked(case.before, case.axes()), pass_name="shrink").difference <= 1e-9


class After(Net):
    """A convolution that loses a channel, then `then`, then a reader."""

    def forward(self, x):
        return self.read(self.then(self.conv(x)))


class Do(nn.Module):
    """A plain function as a step of the graph."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


REFUSED = {
    "output": (lambda x: x, nn.Identity(), "reach the model's output"),
    "softmax": (lambda x: x.softmax(1), conv(4, 2), "reduces over removed channels at node 'softmax'"),
    "product": (lambda x: x.prod(1, keepdim=True).expand(-1, 4, -1, -1), conv(4, 2), "reduces over removed"),
    "argmax": (lambda x: x.argmax(1), nn.Identity(), "reduces over removed"),
    "median-of-all": (lambda x: torch.median(x), nn.Identity(), "reduces over removed"),
    "unknown": (lambda x: torch.cdist(x, x), conv(4, 2), "doesn't know at node 'cdist'"),
    "response-norm": (lambda x: F.local_response_norm(x, 2), conv(4, 2), "a norm over removed channels at"),
    "flip": (lambda x: x.flip(1), conv(4, 2), "not those of the channels that arrive at node 'read'"),
    "kept-image": (lambda x: x + torch.cat([x[:, 2:], x[:, :2]], 1), conv(4, 2), "kept meet .* at node 'add'"),
    "whole-outer": (lambda x: x * x.mean((2, 3), keepdim=True).roll(1, 1), conv(4, 2), "kept meet .* at node 'mul'"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "reader", "message"), REFUSED.values(), ids=REFUSED)
def test_a_removed_channel_must_not_get_there(function, reader, message):
    model = seeded(After(conv=conv(3, 4), then=Do(function), read=reader))
    removed = {Axis("conv.weight", 0): np.array([1]), Axis("conv.bias", 0): np.array([1])}
    if isinstance(reader, nn.Conv2d):
        removed[Axis("read.weight", 1)] = np.array([1])
    program = program_of(model, torch.zeros(IMAGE))
    with pytest.raises(VerifyError, match=message):
        verify(program, Masked(program, removed), pass_name="shrink")


def test_a_kept_constant_is_not_dropped_unless_it_is_zero():
    class Joined(Net):
        def forward(self, x):
            y = self.conv(x)
            return self.read(F.pad(y, (0, 0, 0, 0, 0, 1), value=self.value))

    removed = {Axis("read.weight", 1): np.array([2])}
    for value, refused in ((0.0, False), (0.5, True)):
        masked = Masked(
            program_of(seeded(Joined(conv=conv(3, 2), read=conv(3, 2), value=value)), torch.zeros(IMAGE)), removed
        )
        if refused:
            with pytest.raises(VerifyError, match="positions of an axis"):
                masked.run((torch.ones(IMAGE),), torch.float64)
        else:
            masked.run((torch.ones(IMAGE),), torch.float64)
