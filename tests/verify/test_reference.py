"""What a rewritten program is compared with: the old one as it is, with other tensors, or masked."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from slimmed_by_hand import CASES, program_of, seeded
from torch import nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.program import Axis, Edge
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked, Replaced, Same
from prunec.compiler.verify.verify import verify


@pytest.mark.parametrize(
    ("axis", "position", "message"),
    [(Axis("gone.weight", 0), 0, "no such tensor"), (Axis("conv1.weight", 0), 5, "has 5 positions")],
    ids=["tensor", "position"],
)
def test_axes_that_the_program_lacks_are_named(axis, position, message):
    case = CASES["conv-bn-relu-conv"]
    with pytest.raises(VerifyError, match=message):
        verify(case.after(), Masked(case.before, {axis: np.array([position])}), pass_name="shrink")


def test_replaced_tensors_count():
    case = CASES["conv-bn-relu-conv"]
    before, model = case.before, seeded(copy.deepcopy(case.model).double())
    weight = model.conv1.weight.detach().clone()
    weight[:2] = weight[:2].mean(0)
    model.conv1.weight.data = weight
    after = program_of(model, case.example())
    assert verify(after, Replaced(before, {"conv1.weight": weight}), pass_name="merge").difference == 0
    with pytest.raises(VerifyError, match="node 'conv1'"):
        verify(after, Same(before), pass_name="merge")
    with pytest.raises(VerifyError, match="can't be replaced"):
        Replaced(before, {"conv1.weight": weight[:2]})


# -- readers that select what they read --------------------------------------------------------------------------------


class TwoReaders(nn.Module):
    """`a` reads the stem's channels, or of those that `kept` names, through a norm; `b` reads all of them."""

    def __init__(self, kept: torch.Tensor | None = None) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4 if kept is None else len(kept))
        self.a, self.b = nn.Conv2d(self.norm.num_features, 2, 1), nn.Conv2d(4, 2, 1)
        self.register_buffer("kept", kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        z = y if self.kept is None else y.index_select(1, self.kept)
        return self.a(torch.relu(self.norm(z))) + self.b(y)


def two_readers(*kept: int) -> tuple[TwoReaders, TwoReaders]:
    """The whole model, and one whose first reader has kept some channels."""
    whole, slim = seeded(TwoReaders().double()).eval(), TwoReaders(torch.tensor(kept)).double().eval()
    nn.init.normal_(whole.norm.bias)
    for name in ("stem", "b"):
        getattr(slim, name).load_state_dict(getattr(whole, name).state_dict())
    slim.norm.load_state_dict({k: v[list(kept)] if v.ndim else v for k, v in whole.norm.state_dict().items()})
    slim.a.weight.data, slim.a.bias.data = whole.a.weight.data[:, list(kept)], whole.a.bias.data
    return whole, slim


def lost(*positions: int) -> dict[Axis | Edge, np.ndarray]:
    names = [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    axes = [Axis(name, 0) for name in names] + [Axis("a.weight", 1), Edge("norm", "stem", 1)]
    return {axis: np.array(positions) for axis in axes}


def test_a_reader_that_selects_is_masked_where_it_reads():
    image = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    whole, slim = (trace(model, image) for model in two_readers(0, 3))
    assert verify(slim, Masked(whole, lost(1, 2)), pass_name="shrink").difference < 1e-12


@pytest.mark.parametrize(
    ("kept", "gone", "message"),
    [
        ((0, 3), (1, 3), "changed what the program computes"),
        ((0, 3), (1,), "changed what the program computes"),
    ],
    ids=["others", "fewer"],
)
def test_a_reader_that_selects_otherwise_is_found_out(kept, gone, message):
    image = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    whole, slim = (trace(model, image) for model in two_readers(*kept))
    with pytest.raises(VerifyError, match=message):
        verify(slim, Masked(whole, lost(*gone)), pass_name="shrink")


def test_weights_that_lose_other_channels_than_the_reader_are_an_error():
    image = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    whole, slim = (trace(model, image) for model in two_readers(0, 3))
    wrong = {**lost(1, 2), Axis("a.weight", 1): np.array([0, 1])}
    with pytest.raises(VerifyError, match="the removed positions of an axis are not those of the channels that arrive"):
        verify(slim, Masked(whole, wrong), pass_name="shrink")
    without_edge = {place: positions for place, positions in lost(1, 2).items() if isinstance(place, Axis)}
    with pytest.raises(VerifyError, match="channels that are kept meet channels that are removed"):
        verify(slim, Masked(whole, without_edge), pass_name="shrink")
