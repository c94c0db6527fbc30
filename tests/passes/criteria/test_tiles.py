"""Scores of tiles, against a loop; and which tiles survive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import scores

from prunec.passes.criteria.tiles import survivors, tile_scores


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 5), (7, 11), (9, 20)])
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_tile_scores_by_loop(tile, norm):
    matrix = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = tile_scores(matrix, *tile, norm)
    loop = {"l1": lambda t: t.abs().sum(), "l2": lambda t: t.norm(), "max": lambda t: t.abs().max()}[norm]
    for p, rows in enumerate(matrix.split(tile[0])):
        for q, block in enumerate(rows.split(tile[1], 1)):
            assert float(found[p, q]) == pytest.approx(float(loop(block)))
    if norm == "l1":
        assert float(found.sum()) == pytest.approx(float(matrix.abs().sum()))


def test_a_tile_of_one_row_and_all_columns_is_a_filter(program):
    for norm in ("l1", "l2"):
        one, other = scores(program, {"tile": {"norm": norm}}), scores(program, norm)
        np.testing.assert_allclose(one["conv1"], other["conv1"])


def test_rows_share_their_tiles(program):
    found = scores(program, {"tile": {"rows": 2, "columns": 4}})["conv1"]
    weight = program.tensors["conv1.weight"].detach().flatten(1).abs().sum(1).numpy()
    np.testing.assert_allclose(found, np.repeat([weight[:2].mean(), weight[2:4].mean(), weight[4]], [2, 2, 1]))


def test_surviving_tiles():
    marks = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    balanced, overall = survivors(marks, 0.3, "balanced"), survivors(marks, 0.3, "global")
    assert balanced.sum(1).tolist() == [7] * 6
    assert int(overall.sum()) == 42
    assert float(marks[~overall].max()) <= float(marks[overall].min())


def test_a_row_of_cut_tiles_counts_for_nothing(program):
    found = scores(program, {"tile": {"sparsity": 0.4}})["conv1"]
    l1 = scores(program, "l1")["conv1"]
    assert np.flatnonzero(found == 0).tolist() == sorted(np.argsort(l1)[:2])
