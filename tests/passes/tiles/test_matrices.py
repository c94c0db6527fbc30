"""Weights as matrices, there and back."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.errors import PassError
from prunec.compiler.tracing.trace import trace
from prunec.passes.tiles.matrices import Matrix, chosen, grouped, matrices

KINDS = {
    "conv1d": (nn.Conv1d(6, 4, 3), (1, 6, 9)),
    "conv2d": (nn.Conv2d(6, 4, (3, 2)), (1, 6, 9, 9)),
    "conv3d": (nn.Conv3d(6, 4, 2), (1, 6, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3), (1, 6, 9, 9)),
    "linear": (nn.Linear(6, 4), (1, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_an_output_and_columns_stand_by_inputs(kind):
    layer, shape = KINDS[kind]
    [(name, matrix)] = matrices(trace(nn.Sequential(layer), (torch.ones(shape),))).items()
    assert (name, matrix.rows, matrix.inputs) == ("0", 4, 6)
    rows = matrix.of(layer.weight.detach())
    assert rows.shape == (4, 6 * matrix.kernel)
    assert torch.equal(matrix.back(rows), layer.weight)
    of_input = layer.weight[2] if kind == "transposed" else layer.weight[:, 2]
    assert torch.equal(rows.reshape(4, 6, -1)[:, 2], of_input.reshape(4, -1))


def test_grouped_layers_are_none_and_tied_ones_are_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.grouped = nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 1, groups=2)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.grouped(self.second(self.first(x))[:, :, None])

    assert list(matrices(trace(Tied(), (torch.ones(1, 4),)))) == ["first"]


CALLS = {
    "linear": (F.linear, (4, 6), (1, 6)),
    "conv1d": (F.conv1d, (4, 6, 3), (1, 6, 9)),
    "conv2d": (F.conv2d, (4, 6, 3, 2), (1, 6, 9, 9)),
    "transposed": (F.conv_transpose2d, (6, 4, 3, 3), (1, 6, 9, 9)),
    "grouped": (partial(F.conv1d, groups=2), (4, 3, 3), (1, 6, 9)),
}


class Call(nn.Module):
    """Calls a function with a parameter of its own."""

    def __init__(self, function, shape):
        super().__init__()
        self.function, self.kernel = function, nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return self.function(x, weight=self.kernel)


@pytest.mark.parametrize("kind", CALLS)
def test_a_function_with_a_parameter_is_a_layer(kind):
    function, shape, reads = CALLS[kind]
    found = matrices(program := trace(Call(function, shape), (torch.ones(reads),)))
    if kind == "grouped":
        assert not found
        assert grouped(program) == ["kernel"]
    else:
        assert found == {"kernel": Matrix("kernel", "kernel", shape, kind == "transposed")}
        assert (found["kernel"].rows, found["kernel"].inputs) == (4, 6)
        assert list(chosen(found, ["kernel"])) == ["kernel"]
        assert not grouped(program)


def test_patterns_name_layers_and_the_parts_around_them():
    found = {name: Matrix(name, f"{name}.weight", (1, 1)) for name in ("body.0", "body.1", "head")}
    assert list(chosen(found, ["body"])) == ["body.0", "body.1"]
    assert list(chosen(found, (), ["body.*"])) == ["head"]
    assert list(chosen(found, ["head.*"])) == ["head"]
    with pytest.raises(PassError, match="nothing is called 'haed'"):
        chosen(found, ["haed"])
