"""How far outputs are, and how much of a step is taken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import trace
from prunec.compiler.data import Data
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.repairing.outputs import Step, longest_step, partial_step


class _Several(nn.Module):
    """Two outputs of floats, and one of whole numbers."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2, bias=False).double(), nn.Linear(3, 4, bias=False).double()
        with torch.no_grad():
            self.a.weight.fill_(scale)
            self.b.weight.fill_(1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.a(x), {"b": self.b(x), "best": self.b(x).argmax(1)}


def _step(dense: nn.Module, before: nn.Module, after: nn.Module, x: Tensor, **options: bool) -> Step | None:
    dense_, before_, after_ = (trace(net, (x[:2],)) for net in (dense, before, after))
    return longest_step(before_, after_, dense_, Calibration(), Context(data=Data.of([x])), **options)


@pytest.mark.parametrize(
    ("before", "after", "share", "errors"),
    [
        (3.0, 2.0, 1.0, (4.0, 1.0)),
        (3.0, -1.0, 1.0, (4.0, 4.0)),
        (2.0, -1.0, 0.5, (1.0, 0.25)),
        (2.0, -4.0, 0.25, (1.0, 0.25)),
        (1.0, -4.0, 0.0, (0.0, 0.0)),
        (math.nan, 2.0, 1.0, (math.nan, 1.0)),
        (2.0, math.inf, 0.0, (1.0, 1.0)),
    ],
)
def test_a_step_is_as_long_as_is_good_for_the_outputs(before, after, share, errors):
    x = torch.ones(5, 3, dtype=torch.float64)
    found = _step(_Several(1.0), _Several(before), _Several(after), x)
    assert found.share == share
    assert (found.before, found.after) == pytest.approx([e / 2 for e in errors], nan_ok=True), "the mean of two outputs"


def test_it_is_whole_where_it_may_not_be_shorter():
    x = torch.ones(5, 3, dtype=torch.float64)
    found = _step(_Several(1.0), _Several(2.0), _Several(4.0), x, shorten=False)
    assert (found.share, found.is_nearer) == (1.0, False)
    assert (found.before, found.after) == (0.5, 4.5)


def test_samples_whose_dense_outputs_are_no_numbers_say_nothing():
    x = torch.ones(5, 3, dtype=torch.float64)
    x[2, 1] = math.inf
    found = _step(_Several(1.0), _Several(3.0), _Several(2.0), x)
    assert (found.before, found.after) == (2.0, 0.5)


def test_outputs_of_another_shape_can_t_be_compared():
    x = torch.ones(5, 3)
    assert _step(nn.Linear(3, 5), nn.Linear(3, 4), nn.Linear(3, 4), x) is None


def test_a_part_of_a_step_leaves_both_programs_as_they_are():
    x = torch.ones(5, 3, dtype=torch.float64)
    before, after = (trace(_Several(scale), (x[:2],)) for scale in (1.0, 3.0))
    made = partial_step(before, after, 0.25)
    assert [float(p.tensors["a.weight"].detach().mean()) for p in (before, made, after)] == [1.0, 1.5, 3.0]


@pytest.mark.parametrize(("share", "end"), [(0.0, 1.0), (1.0, math.inf)])
def test_no_step_is_what_was_before_and_a_whole_one_what_is_after(share, end):
    before, after = (trace(_Several(scale), (torch.ones(2, 3, dtype=torch.float64),)) for scale in (1.0, math.inf))
    made = partial_step(before, after, share)
    assert torch.equal(made.tensors["a.weight"], torch.full((2, 3), end, dtype=torch.float64))
