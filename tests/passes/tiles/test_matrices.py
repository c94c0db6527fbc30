"""Weights as matrices, there and back."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.errors import PassError
from prunec.compiler.tracing.trace import trace
from prunec.passes.tiles.matrices import Matrix, chosen, grouped, left_alone, matrices

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

    program = trace(Tied(), (torch.ones(1, 4),))
    assert list(matrices(program)) == ["first"]
    assert left_alone(program) == {
        "second": "it has the weight of another layer, and its tiles",
        "grouped": "it has groups, and its tiles are left alone",
    }


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


class Functional(nn.Module):
    """Weights that are values: three that are matrices, and some that aren't used as they are, or not alone."""

    def __init__(self):
        super().__init__()
        self.kernel, self.inner = nn.Parameter(torch.randn(6, 4, 3)), nn.Linear(6, 5)
        sizes = {"factor": (5, 8), "shape": (8, 4, 2), "table": (3, 8)}
        self.factor, self.shape, self.table = (nn.Parameter(torch.randn(size)) for size in sizes.values())
        self.recurrent = nn.GRU(8, 2, batch_first=True)

    def forward(self, x):
        x = F.conv1d(x, self.kernel).transpose(1, 2)
        x = F.linear(x, self.inner.weight, self.inner.bias) @ self.factor
        x = F.linear(x, self.shape.flatten(1)) + F.linear(x, self.table.repeat(3, 1)[:8])
        return self.recurrent(x)[0]


def test_parameters_that_are_weights_alone_are_matrices_and_others_are_told():
    program = trace(Functional(), (torch.ones(1, 4, 9),))
    found = matrices(program)
    assert {name: (m.rows, m.inputs) for name, m in found.items()} == {
        "kernel": (6, 4),
        "inner.weight": (5, 6),
        "factor": (8, 5),
    }
    factor = program.tensors["factor"].detach()
    assert torch.equal(found["factor"].of(factor), factor.T)
    assert torch.equal(found["factor"].back(factor.T), factor)
    assert left_alone(program) == {
        "recurrent": "it is a GRU, whose weights aren't seen as matrices",
        "shape": "linear_1 doesn't use it as it is, or not alone",
        "table": "linear_2 doesn't use it as it is, or not alone",
    }


def test_patterns_name_layers_and_the_parts_around_them():
    found = {name: Matrix(name, f"{name}.weight", (1, 1)) for name in ("body.0", "body.1", "head")}
    assert list(chosen(found, ["body"])) == ["body.0", "body.1"]
    assert list(chosen(found, (), ["body.*"])) == ["head"]
    assert list(chosen(found, ["head.*"])) == ["head"]
    with pytest.raises(PassError, match="nothing is called 'haed'"):
        chosen(found, ["haed"])
