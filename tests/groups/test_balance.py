"""Balances: cells of which equal shares leave, so that every row of every block loses equally many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prunec.compiler.groups.balance import NO_UNIT, Balanced, balances


def rows(size: int, count: int) -> Balanced:
    """Units 0 to `size - 1` in so many rows."""
    return Balanced(np.arange(size).reshape(count, -1), f"{count} rows")


CELLS = {
    "two groups": ([rows(8, 2)], [[[0, 1, 2, 3], [4, 5, 6, 7]]], [(1, 1)]),
    "two and three": (
        [rows(12, 2), rows(12, 3)],
        [[[0, 1, 2, 3], [4, 5], [6, 7], [8, 9, 10, 11]]],
        [(2, 1, 1, 2)],
    ),
    "apart": (
        [rows(4, 2), Balanced(np.arange(4, 8).reshape(2, 2), "b")],
        [[[0, 1], [2, 3]], [[4, 5], [6, 7]]],
        [(1, 1), (1, 1)],
    ),
    "in every row": ([Balanced(np.array([[0, 1], [0, 2]]), "a")], [[[1], [2]]], [(1, 1)]),
    "one row": ([rows(4, 1)], [], []),
    "outside": ([Balanced(np.array([[0, 1, NO_UNIT], [2, 3, NO_UNIT]]), "a")], [[[0, 1], [2, 3]]], [(1, 1)]),
}


@pytest.mark.parametrize(("blocks", "cells", "each"), CELLS.values(), ids=CELLS)
def test_units_of_the_same_rows_are_a_cell(blocks, cells, each):
    found = balances(blocks)
    assert [[cell.tolist() for cell in balance.cells] for balance in found] == cells
    assert [balance.each for balance in found] == each
    for balance, expected in zip(found, cells, strict=True):
        assert balance.units.tolist() == [unit for cell in expected for unit in cell]


def test_a_pack_leaves_every_row_of_every_block_as_long():
    blocks = [rows(12, 2), rows(12, 3)]
    (balance,) = balances(blocks)
    assert balance.nodes == ("2 rows", "3 rows")
    assert balance.size == 6
    choices = [itertools.combinations(cell, count) for cell, count in zip(balance.cells, balance.each, strict=True)]
    for pack in itertools.islice(itertools.product(*choices), 0, None, 7):
        keep = np.ones(12, dtype=bool)
        keep[[unit for part in pack for unit in part]] = False
        for block in blocks:
            assert len(set(block.lost(keep).tolist())) == 1


@pytest.mark.parametrize(("pinned", "packs"), [([], 3), ([0], 3), ([0, 1], 2), ([0, 5], 3), ([0, 1, 2, 3], 0)], ids=str)
def test_how_many_packs_may_leave(pinned, packs):
    (balance,) = balances([rows(8, 2)])
    free = np.ones(8, dtype=bool)
    free[pinned] = False
    assert balance.packs(free) == packs


@pytest.mark.parametrize(("pinned", "packs"), [([], 1), ([0], 1), ([4], 1), ([0, 1, 2], 0), ([4, 5], 0)], ids=str)
def test_a_pack_of_several_of_each_cell_stays(pinned, packs):
    """Two groups and three groups of twelve: two packs, of which one has to stay."""
    (balance,) = balances([rows(12, 2), rows(12, 3)])
    free = np.ones(12, dtype=bool)
    free[pinned] = False
    assert balance.packs(free) == packs


def test_positions_outside_never_go():
    block = Balanced(np.array([[0, NO_UNIT], [1, 2]]), "a")
    assert block.lost(np.array([False, True, False])).tolist() == [1, 1]
    assert not block.fits
    assert rows(8, 2).fits
