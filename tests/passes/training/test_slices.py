"""Sums over slices and numbers laid back, against the rows that a program counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.groups.axis_rows import axis_rows
from prunec.compiler.ir.program import Axis
from prunec.compiler.tracing.trace import trace
from prunec.passes.training.slices import over_slices, slice_sums

LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3), (1, 4, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5)),
    "depthwise": (nn.Conv1d(4, 8, 3, groups=4), (1, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5)),
    "linear": (nn.Linear(4, 6), (1, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dim", [0, 1])
def test_slices_are_the_rows_that_a_program_counts(name, dim):
    layer, shape = LAYERS[name]
    program = trace(nn.Sequential(layer), (torch.randn(shape),))
    axis = Axis("0.weight", dim)
    weight, groups = layer.weight.detach(), program.groups_along(axis)

    sums = slice_sums(weight, dim, groups)
    assert torch.allclose(sums, axis_rows(program, axis).sum(1), atol=1e-6)

    numbers = torch.arange(1.0, len(sums) + 1)
    laid = over_slices(numbers, weight.shape, dim, groups).expand_as(weight)
    assert torch.equal(axis_rows(program, axis, laid), numbers[:, None].expand_as(axis_rows(program, axis)))


def test_a_vector_is_its_own_slices():
    vector = torch.randn(5)
    assert torch.equal(slice_sums(vector, 0), vector)
    assert torch.equal(over_slices(vector, (5,), 0), vector)
