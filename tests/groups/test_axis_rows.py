"""What is removed with each position of an axis: against a loop over single positions."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import program_of
from torch import nn

from prunec.compiler.groups import axis_rows as module
from prunec.compiler.groups.axis_rows import axis_rows, axis_sums, zero_rows
from prunec.compiler.ir.program import Axis, Program

LAYERS = {
    "conv": nn.Conv2d(6, 4, (3, 1)),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "transposed": nn.ConvTranspose2d(6, 4, 2),
    "transposed and grouped": nn.ConvTranspose2d(6, 4, 2, groups=2),
    "linear": nn.Linear(6, 4),
    "square": nn.Linear(4, 4),
    "norm": nn.BatchNorm1d(5),
}
AXES = [
    (name, dim) for name, layer in LAYERS.items() for dim in range(min(layer.weight.ndim, 3)) if layer.weight.shape[dim]
]


def loop(layer: nn.Module, dim: int) -> list[torch.Tensor]:
    """The elements of every position, read off a copy of the weight in which a position is marked."""
    weight, groups = layer.weight.detach(), getattr(layer, "groups", 1) if dim == 1 else 1
    found = []
    for position in range(weight.shape[dim] * groups):
        group, column = divmod(position, weight.shape[dim])
        marked = torch.zeros_like(weight, dtype=torch.bool)
        part = marked.view(groups, -1, *weight.shape[1:])[group] if groups > 1 else marked
        part.select(dim, column if groups > 1 else position).fill_(True)
        found.append(weight[marked])
    return found


@pytest.mark.parametrize(("name", "dim"), AXES)
def test_rows_are_those_of_a_loop(name, dim):
    layer = LAYERS[name]
    program = Program(program_of("chain").graph, {"a": layer}, ())
    axis = Axis("a.weight", dim)
    rows = axis_rows(program, axis)
    expected = loop(layer, dim)
    assert len(rows) == len(expected)
    for row, elements in zip(rows, expected, strict=True):
        assert sorted(row.tolist()) == sorted(elements.tolist())
    assert torch.equal(axis_rows(program, axis, layer.weight.detach() * 2), rows * 2)


@pytest.mark.parametrize("scratch", [1, 10, 2**18])
@pytest.mark.parametrize(("name", "dim"), AXES)
def test_sums_are_those_of_the_rows(name, dim, scratch, monkeypatch):
    monkeypatch.setattr(module, "SCRATCH", scratch)
    program = Program(program_of("chain").graph, {"a": LAYERS[name]}, ())
    axis = Axis("a.weight", dim)
    memo: dict = {}
    for _ in range(2):  # the second time from the memo
        found = axis_sums(program, axis, torch.abs, memo)
        torch.testing.assert_close(found, axis_rows(program, axis).abs().sum(1))


def test_sums_are_taken_in_single_precision_at_least():
    layer = nn.Linear(3000, 2).half()
    layer.weight.data.fill_(100)
    program = Program(program_of("chain").graph, {"a": layer}, ())
    found = axis_sums(program, Axis("a.weight", 0), torch.abs, {})
    assert found.dtype == torch.float32
    assert found.tolist() == [300_000, 300_000]


@pytest.mark.parametrize("scratch", [1, 2**18])
@pytest.mark.parametrize("both", [False, True])
def test_sums_of_rows_and_columns_are_found_as_they_are_asked_for(both, scratch, monkeypatch):
    monkeypatch.setattr(module, "SCRATCH", scratch)
    program = Program(program_of("chain").graph, {"a": nn.Conv2d(3, 5, 2)}, ())
    passes: list[int] = []

    def counted(rows: torch.Tensor, **out: torch.Tensor) -> torch.Tensor:
        passes.append(len(rows))
        return torch.abs(rows, **out)

    memo: dict = {}
    for dim in (1, 0, 1, 0):
        axis = Axis("a.weight", dim)
        found = axis_sums(program, axis, counted, memo, both=both)
        torch.testing.assert_close(found, axis_rows(program, axis).abs().sum(1))
    assert sum(passes) == (5 if both else 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("name", "dim"), AXES)
def test_rows_of_zeros_are_found(name, dim, dtype):
    layer = copy.deepcopy(LAYERS[name]).to(dtype)
    program = Program(program_of("chain").graph, {"a": layer}, ())
    axis = Axis("a.weight", dim)
    assert not zero_rows(program, axis).any()
    with torch.no_grad():
        for some in (layer.weight.flatten()[:1], layer.weight.select(0, 0), layer.weight.select(0, 1)):
            some.zero_()
            expected = (axis_rows(program, axis) == 0).all(1)
            assert zero_rows(program, axis).tolist() == expected.tolist()
    assert expected.any() or dim, "two rows were zero in the end"
