"""Masks of matrices as a lock holds them: the rows of tiles that differ, and which row has which.

masks: {conv2: {tile: [1, 9], patterns: ["1010", "0101"], rows: [0, 1, 1, 0]}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from torch import Tensor

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.ir.program import Program
from prunec.passes.tiles.matrices import matrices
from prunec.passes.tiles.patterns import spread

Count = Annotated[StrictInt, Field(ge=1)]


class Grid(BaseModel):
    """Which tiles of a matrix stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: tuple[Count, Count] = Field(description="rows and columns of a tile")
    patterns: tuple[str, ...] = Field(description="different rows of tiles: 1 for one that stays, 0 for one that goes")
    rows: tuple[StrictInt, ...] = Field(description="for every row of tiles, its pattern")


def packed(stays: Tensor) -> Grid:
    """A mask, [rows, columns], as the rows that differ, in tiles as wide as fits all of them."""
    different, rows = torch.unique(stays, dim=0, return_inverse=True)
    edges = (different[:, 1:] != different[:, :-1]).any(0).nonzero().flatten() + 1
    width = int(np.gcd.reduce(np.array([stays.shape[1], *edges.tolist()])))
    patterns = tuple("".join("1" if stay else "0" for stay in line) for line in different[:, ::width].tolist())
    return Grid(tile=(1, width), patterns=patterns, rows=tuple(rows.tolist()))


def given(program: Program, said: Mapping[str, Grid]) -> dict[str, Tensor]:
    """Weight -> which of its elements stay, by what a lock says. Raises `PassError` where that doesn't fit."""
    every = matrices(program)
    found = {}
    for layer, grid in said.items():
        matrix = every.get(layer)
        if matrix is None:
            message = f"masks: no layer is called '{layer}' whose weight is a matrix"
            raise PassError(message, keys=("masks", layer), hint=nearest(layer, every))
        rows, width = -(-matrix.rows // grid.tile[0]), -(-matrix.inputs * matrix.kernel // grid.tile[1])
        fits = all(len(line) == width and set(line) <= {"0", "1"} for line in grid.patterns)
        if not fits or len(grid.rows) != rows or not all(0 <= row < len(grid.patterns) for row in grid.rows):
            message = f"masks: '{layer}' must have patterns of {width} tiles, and {rows} rows of tiles"
            raise PassError(message, keys=("masks", layer))
        lines = torch.tensor([[tile == "1" for tile in line] for line in grid.patterns], dtype=torch.bool)
        shape = (matrix.rows, matrix.inputs * matrix.kernel)
        found[matrix.tensor] = matrix.back(spread(lines[list(grid.rows)], shape, *grid.tile))
    return found
