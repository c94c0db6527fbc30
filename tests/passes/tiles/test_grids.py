"""Masks as a lock holds them: there and back, and what doesn't fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.errors import PassError
from prunec.compiler.tracing.trace import trace
from prunec.passes.tiles.grids import Grid, given, packed
from prunec.passes.tiles.patterns import spread


def program():
    return trace(nn.Sequential(nn.Conv2d(6, 8, 3)), (torch.ones(1, 6, 5, 5),))


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 9), (8, 54), (3, 4)])
def test_what_is_packed_comes_back(tile):
    rows, columns = tile
    grid = torch.rand(-(-8 // rows), -(-54 // columns), generator=torch.Generator().manual_seed(0)) < 0.5
    stays = spread(grid, (8, 54), rows, columns)
    found = given(program(), {"0": packed(stays)})
    assert torch.equal(found["0.weight"].reshape(8, 54), stays)


def test_rows_that_are_alike_are_written_once():
    stays = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    assert packed(stays) == Grid(tile=(1, 2), patterns=("01", "10"), rows=(1, 0, 1))


@pytest.mark.parametrize(
    ("layer", "grid", "message"),
    [
        ("1", Grid(tile=(1, 9), patterns=("1" * 6,), rows=(0,) * 8), "no layer is called '1'"),
        ("0", Grid(tile=(1, 9), patterns=("1" * 5,), rows=(0,) * 8), "patterns of 6 tiles, and 8 rows"),
        ("0", Grid(tile=(1, 9), patterns=("1" * 6,), rows=(0,) * 7), "patterns of 6 tiles, and 8 rows"),
        ("0", Grid(tile=(1, 9), patterns=("1" * 6,), rows=(1,) * 8), "patterns of 6 tiles, and 8 rows"),
        ("0", Grid(tile=(1, 9), patterns=("12" * 3,), rows=(0,) * 8), "patterns of 6 tiles, and 8 rows"),
    ],
)
def test_what_fits_no_layer_is_an_error(layer, grid, message):
    with pytest.raises(PassError, match=message):
        given(program(), {layer: grid})
