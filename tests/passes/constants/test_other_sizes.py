"""Inputs of other sizes: what is changed, and whether a model takes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler.tracing.trace import trace
from prunec.passes.constants.other_sizes import other_sizes, takes_other_sizes
from tests.support.nets import Made


def _shapes(net: nn.Module, *inputs: Tensor) -> list[list[tuple[int, ...]]]:
    return [[tuple(x.shape) for x in found] for found in other_sizes(trace(net.eval(), inputs), 0)]


def test_small_images_are_doubled_and_large_ones_halved():
    net = nn.Conv2d(3, 4, 3)
    assert _shapes(net, torch.randn(2, 3, 8, 10)) == [[(2, 3, 16, 20)], [(2, 3, 15, 19)]]
    assert _shapes(net, torch.randn(2, 3, 64, 33)) == [[(2, 3, 32, 17)], [(2, 3, 31, 16)]]


def test_of_three_dimensions_either_may_be_the_length():
    assert _shapes(nn.Linear(6, 4), torch.randn(2, 5, 6)) == [[(2, 5, 12)], [(2, 5, 11)], [(2, 10, 6)], [(2, 9, 6)]]


def test_tokens_and_their_mask_stay_as_long_as_each_other():
    net = Made({"a": nn.Embedding(10, 6), "b": nn.Linear(6, 4)}, lambda m, x, mask: m.b(m.a(x)) * mask[..., None])
    found = _shapes(net, torch.randint(0, 10, (2, 7)), torch.ones(2, 7, dtype=torch.bool))
    assert found == [[(2, 14), (2, 14)], [(2, 13), (2, 13)]]


TAKES = {
    "an average": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), True),
    "a flatten": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)), False),
}


@pytest.mark.parametrize(("net", "takes"), TAKES.values(), ids=TAKES)
def test_a_model_is_asked_whether_it_takes_them(net, takes):
    assert takes_other_sizes(trace(net.eval(), (torch.randn(2, 3, 8, 8),))) is takes
