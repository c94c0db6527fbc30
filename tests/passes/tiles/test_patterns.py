"""Which tiles stay: scores add up, rows are balanced, and a tile as wide as the matrix is a filter."""

from __future__ import annotations

import pytest
import torch

from prunec.passes.tiles.patterns import (
    balanced_tiles,
    global_tiles,
    largest,
    spread,
    tile_mask,
    tile_sums,
    within_tiles,
)


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 4), (5, 9), (3, 18)])
@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2), ("sum", 1)])
def test_scores_of_tiles_sum_to_that_of_the_matrix(tile, norm, power):
    matrix = drawn(10, 18)
    total = tile_sums(matrix, *tile, norm).pow(power).sum()
    assert float(total) == pytest.approx(float(matrix.pow(power).sum()), rel=1e-12)


def test_a_tile_beyond_the_edge_has_zeros_there():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert tile_sums(matrix, 2, 2, "l1").tolist() == [[8.0, 7.0]]
    assert tile_sums(matrix, 2, 2, "max").tolist() == [[4.0, 5.0]]
    assert spread(torch.tensor([[True, False]]), (2, 3), 2, 2).tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9])
def test_balanced_tiles_leave_equally_many_in_every_row(keep):
    scores = drawn(7, 20)
    left = balanced_tiles(scores, keep)
    assert left.sum(1).tolist() == [round(20 * keep)] * 7
    for row, stays in zip(scores, left, strict=True):
        assert row[stays].min() > row[~stays].max()


def test_global_tiles_are_the_largest_of_all_matrices_and_each_keeps_one():
    small, large = drawn(4, 5) * 1e-3, drawn(3, 10) + 1
    kept_small, kept_large = global_tiles([small, large], 0.4)
    assert int(kept_large.sum()) == 20
    assert kept_small.nonzero().tolist() == [list(divmod(int(small.argmax()), 5))]


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_one_stays_at_least_and_of_equal_ones_the_later(keep):
    assert largest(torch.ones(1, 4), keep).tolist()[0] == [i >= 4 - max(1, round(4 * keep)) for i in range(4)]


def test_a_tile_loses_its_weakest_columns_or_rows_whichever_loses_less():
    weak_column = torch.tensor([[1.0, 9, 9, 1], [1, 9, 9, 1]])
    weak_row = torch.tensor([[1.0, 1, 1, 1], [9, 9, 9, 9]])
    left = within_tiles(torch.cat([weak_column, weak_row], 1), 2, 4, 0.5, "l1")
    assert left[:, :4].tolist() == [[False, True, True, False]] * 2
    assert left[:, 4:].tolist() == [[False] * 4, [True] * 4]


def test_within_tiles_at_the_edge():
    left = within_tiles(drawn(5, 7), 2, 3, 0.5, "l1")
    assert left.shape == (5, 7)
    assert 0 < int(left.sum()) < left.numel()


@pytest.mark.parametrize("mode", ["global", "balanced", "tile"])
def test_a_mask_has_the_shape_of_its_weight(mode):
    weight = drawn(8, 4, 3, 3)
    stays = tile_mask(weight, (2, 9), 0.5, mode)
    assert stays.shape == weight.shape
    if mode != "tile":
        assert stays.double().mean() == 0.5
        assert torch.equal(stays[::2], stays[1::2])
        assert stays[:, :, 0, 0].sum(1).tolist() == [2] * 8 or mode == "global"
