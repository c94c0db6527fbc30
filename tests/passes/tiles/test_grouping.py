"""Groups of rows and columns that keep the most: what is planted is found, and shares are even."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from prunec.passes.tiles.grouping import balanced_groups, by_appearance, group_mask, kept_score


def planted(rows: int, columns: int, groups: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    of_row = rng.permutation(np.repeat(np.arange(groups), rows // groups))
    of_column = rng.permutation(np.repeat(np.arange(groups), columns // groups))
    scores = (of_row[:, None] == of_column[None, :]) + noise * rng.random((rows, columns))
    return scores.astype(float), of_row, of_column


@pytest.mark.parametrize(("rows", "columns", "groups"), [(8, 8, 2), (64, 32, 4), (24, 96, 8), (2048, 8, 2)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_planted_groups_are_found(rows, columns, groups, noise):
    scores, of_row, of_column = planted(rows, columns, groups, noise, seed=rows)
    found = balanced_groups(scores, groups, np.random.default_rng(0))
    assert kept_score(scores, *found) == pytest.approx(kept_score(scores, of_row, of_column), rel=1e-12)
    assert np.bincount(found[0]).tolist() == [rows // groups] * groups
    assert np.bincount(found[1]).tolist() == [columns // groups] * groups


@pytest.mark.parametrize("seed", range(5))
def test_little_ones_are_as_good_as_the_best_of_all(seed):
    scores = np.random.default_rng(seed).random((6, 6))
    found = balanced_groups(scores, 2, np.random.default_rng(0))
    halves = [np.isin(np.arange(6), half).astype(int) for half in combinations(range(6), 3)]
    best = max(kept_score(scores, rows, columns) for rows in halves for columns in halves)
    assert kept_score(scores, *found) >= 0.97 * best


def test_the_same_seed_gives_the_same_groups():
    scores = np.random.default_rng(1).random((32, 32))
    first, second = (balanced_groups(scores, 4, np.random.default_rng(5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_uneven_shares_are_an_error():
    with pytest.raises(ValueError, match="6 rows and 9 columns make no 2 groups"):
        balanced_groups(np.ones((6, 9)), 2, np.random.default_rng(0))


def test_groups_are_numbered_as_they_appear():
    first, second = by_appearance(np.array([2, 0, 2, 1]), np.array([1, 2, 0]))
    assert first.tolist() == [0, 1, 0, 2]
    assert second.tolist() == [2, 0, 1]


def test_a_mask_for_groups_is_of_whole_kernels():
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    stays = group_mask(weight, 2)
    assert stays.shape == weight.shape
    kernels = stays.flatten(2)
    assert torch.equal(kernels.all(2), kernels.any(2))
    assert kernels[:, :, 0].sum(1).tolist() == [2] * 8
    assert kernels[:, :, 0].sum(0).tolist() == [4] * 4
