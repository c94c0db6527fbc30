"""Channels that zeros have cut off."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.tracing.trace import trace
from prunec.passes.tiles.dead_units import masks_of_units, may_go, removable, unwritten
from prunec.passes.tiles.matrices import matrices


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.inner(x)).mean((2, 3)))


def analysed(model: nn.Module):
    return analyse(trace(model, (torch.ones(1, 3, 4, 4),)))


def rows_gone(weight: torch.Tensor, *rows: int) -> torch.Tensor:
    stays = torch.ones(weight.shape, dtype=torch.bool)
    stays[list(rows)] = False
    return stays


def test_a_coupled_channel_is_unwritten_where_all_its_writers_are():
    model = Residual()
    analysis = analysed(model)
    masks = {
        "stem.weight": rows_gone(model.stem.weight, 1, 2),
        "inner.weight": rows_gone(model.inner.weight, 2, 3),
        "head.weight": rows_gone(model.head.weight, 0),
    }
    cut_off = unwritten(analysis, masks)
    [group] = [group for group in analysis.groups.values() if group.size == 6]
    assert cut_off.nonzero()[0].tolist() == [group.start + 2]  # a class of the head may not go
    vectors = masks_of_units(analysis, cut_off)
    assert set(vectors) == {"stem.bias", "inner.bias", "norm.weight", "norm.bias"}
    assert all((~stays).nonzero().flatten().tolist() == [2] for stays in vectors.values())
    assert {name: units.tolist() for name, units in removable(analysis, cut_off).items()} == {group.name: [2]}


def test_a_channel_is_unread_where_no_reader_has_a_column_for_it():
    model = Residual()
    with torch.no_grad():
        model.head.weight[:, [1, 4]] = 0
        model.inner.weight[:, [1]] = 0
    analysis = analysed(model)
    nothing = unwritten(analysis, {})
    assert [units.tolist() for units in removable(analysis, nothing).values()] == [[1]]


def test_one_channel_of_a_group_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    nn.init.zeros_(model[1].weight)
    analysis = analysed(model)
    assert {name: units.tolist() for name, units in removable(analysis, unwritten(analysis, {})).items()} == {
        "0": [1, 2, 3]
    }


def test_outputs_of_the_model_may_not_go():
    analysis = analysed(Residual())
    found = matrices(analysis.program)
    assert [name for name, matrix in found.items() if may_go(analysis, matrix.writes)] == ["stem", "inner"]
