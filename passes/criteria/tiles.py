"""`tile`: scores of the tiles of a weight matrix, and what they say about its rows.

    M = W.reshape(C_out, -1)      tiles of 2 x 3      grid [ceil(C_out / 2), ceil(columns / 3)], zeros beyond the edge

A row's figure is its share of the tiles that it crosses. With `sparsity`, tiles that would be cut count for nothing: a
row all of whose tiles are cut has figure 0 and can be removed. A tile of one row and all columns is a filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from prunec.compiler.groups.analysis import Member
from prunec.compiler.groups.axis_rows import axis_rows
from prunec.compiler.ir.program import FloatArray
from prunec.compiler.plan.options import Fraction01
from prunec.passes.criteria.base import AxisCriterion, Setting, is_weight, numbers

NORMS: Final[Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "l1": lambda tiles: tiles.abs().sum(-1),
    "l2": lambda tiles: tiles.square().sum(-1).sqrt(),
    "max": lambda tiles: tiles.abs().amax(-1),
}
"""From the elements of each tile, [..., elements], to a number a tile."""


class Tile(AxisCriterion):
    """A row's share of the scores of the tiles that it crosses."""

    name: ClassVar[str] = "tile"

    rows: Annotated[int, Field(ge=1)] = Field(default=1, description="rows of a tile: channels")
    columns: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="columns of a tile: weights of a channel; all of them where it isn't given"
    )
    norm: Literal["l1", "l2", "max"] = Field(default="l1", description="what a tile's score is")
    sparsity: Fraction01 = Field(default=0.0, description="the share of tiles that count for nothing, the smallest")
    mode: Literal["global", "balanced"] = Field(
        default="global", description="cut the smallest tiles of the matrix, or as many of every row of tiles"
    )

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]: the row's share of its tiles' scores; None for a vector."""
        if not is_weight(setting.program, member):
            return None
        matrix = axis_rows(setting.program, member.axis).double()
        scores = tile_scores(matrix, self.rows, self.columns or matrix.shape[1], self.norm)
        scores = scores * survivors(scores, self.sparsity, self.mode)
        counts = scores.new_full((len(scores),), self.rows)
        counts[-1] = len(matrix) - self.rows * (len(scores) - 1)
        return numbers((scores.sum(1) / counts).repeat_interleave(self.rows)[: len(matrix)])


def tile_scores(matrix: torch.Tensor, rows: int, columns: int, norm: str) -> torch.Tensor:
    """The score of every tile of a matrix, [ceil(R / rows), ceil(C / columns)]."""
    down, right = -matrix.shape[0] % rows, -matrix.shape[1] % columns
    padded = F.pad(matrix, (0, right, 0, down))
    tiles = padded.reshape(padded.shape[0] // rows, rows, -1, columns).transpose(1, 2)
    return NORMS[norm](tiles.flatten(2))


def survivors(scores: torch.Tensor, sparsity: float, mode: str) -> torch.Tensor:
    """Which tiles are left when the share `sparsity` of them is cut: [P, Q]; `balanced` leaves as many in each row."""
    lines = scores.reshape(1, -1) if mode == "global" else scores
    cut = int(lines.shape[1] * sparsity + 1e-9)
    left = torch.ones_like(lines, dtype=torch.bool)
    left.scatter_(1, lines.argsort(dim=1, stable=True)[:, :cut], False)
    return left.reshape(scores.shape)
