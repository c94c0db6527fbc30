"""Which tiles of a matrix stay.

matrix [5, 6], tiles of 2 x 3        grid [3, 2]; beyond the edge there are zeros

global      the smallest tiles of the matrix go (or of all matrices together)
balanced    equally many stay in every row of tiles
tile        in each tile, the weakest rows or columns go, whichever loses less
rows        a tile is as wide as the matrix: with one row, a filter
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SUMS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "l1": lambda elements: elements.sum(-1),
    "l2": lambda elements: elements.square().sum(-1).sqrt(),
    "max": lambda elements: elements.amax(-1),
    "sum": lambda elements: elements.sum(-1),
}
"""From figures of elements, [..., elements], to the score of all of them together. `sum` is for second order."""


def tile_sums(matrix: Tensor, rows: int, columns: int, norm: str) -> Tensor:
    """The score of every tile, [ceil(R / rows), ceil(C / columns)], of figures of elements, [R, C]."""
    return SUMS[norm](_tiles(matrix, rows, columns).flatten(2))


def _tiles(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """[P, Q, rows, columns], with zeros beyond the edge."""
    padded = F.pad(matrix, (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows))
    return padded.reshape(padded.shape[0] // rows, rows, -1, columns).transpose(1, 2)


def spread(grid: Tensor, shape: Sequence[int], rows: int, columns: int) -> Tensor:
    """A value for each tile, [P, Q], laid over the matrix, [R, C]."""
    whole = grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return whole[: shape[0], : shape[1]]


def largest(scores: Tensor, keep: float) -> Tensor:
    """Which of the scores, [lines, n], stay: in each line the share `keep`, rounded to the nearest and one at least.

    Of equal scores the later ones stay.
    """
    cut = min(scores.shape[1] - 1, scores.shape[1] - round(scores.shape[1] * keep))
    left = torch.ones_like(scores, dtype=torch.bool)
    return left.scatter_(1, scores.argsort(dim=1, stable=True)[:, :cut], False)


def global_tiles(scores: Sequence[Tensor], keep: float) -> list[Tensor]:
    """Which tiles stay, [P, Q] for each matrix, when all are compared; the best one of each matrix does in any case."""
    flat = torch.cat([grid.flatten() for grid in scores])[None]
    parts = torch.split(largest(flat, keep)[0], [grid.numel() for grid in scores])
    found = []
    for grid, part in zip(scores, parts, strict=True):
        left = part.reshape(grid.shape).clone()
        if not left.any():
            left.view(-1)[grid.argmax()] = True
        found.append(left)
    return found


def balanced_tiles(scores: Tensor, keep: float) -> Tensor:
    """Which tiles stay, [P, Q]: equally many in every row of tiles."""
    return largest(scores, keep)


def within_tiles(matrix: Tensor, rows: int, columns: int, keep: float, norm: str) -> Tensor:
    """Which elements stay, [R, C]: in each tile the best columns, or the best rows where that loses less an element."""
    tiles = _tiles(matrix, rows, columns)
    count = tiles.shape[0] * tiles.shape[1]
    by_column = SUMS[norm](tiles.transpose(2, 3)).reshape(count, columns)
    by_row = SUMS[norm](tiles).reshape(count, rows)
    left_columns, left_rows = largest(by_column, keep), largest(by_row, keep)
    lost_columns, lost_rows = _lost(by_column, left_columns, rows), _lost(by_row, left_rows, columns)
    better = (lost_rows < lost_columns)[:, None, None]
    left = torch.where(better, left_rows[:, :, None], left_columns[:, None, :])
    whole = left.reshape(tiles.shape).transpose(1, 2).reshape(tiles.shape[0] * rows, -1)
    return whole[: matrix.shape[0], : matrix.shape[1]]


def _lost(scores: Tensor, left: Tensor, each: int) -> Tensor:
    """[tiles]: what goes with each element that goes; infinite where nothing does."""
    gone = (~left).sum(1) * each
    return torch.where(gone > 0, (scores * ~left).sum(1) / gone.clamp(min=1), float("inf"))


def tile_mask(
    weight: Tensor,
    tile: tuple[int, int],
    keep: float,
    mode: Literal["global", "balanced", "tile"] = "global",
    norm: str = "l1",
) -> Tensor:
    """True where elements of a weight, [out, in, ...], stay: for a loop of one's own. It has the weight's shape."""
    matrix = weight.detach().flatten(1).abs()
    if mode == "tile":
        return within_tiles(matrix, *tile, keep, norm).reshape(weight.shape)
    scores = tile_sums(matrix, *tile, norm)
    left = balanced_tiles(scores, keep) if mode == "balanced" else global_tiles([scores], keep)[0]
    return spread(left, matrix.shape, *tile).reshape(weight.shape)
