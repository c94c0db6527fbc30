"""Blocks of which every row must lose equally many channels, though not the same positions: the granularity `equal`.

    grouped convolution, 2 groups of 4      units of its inputs   0 1 2 3 | 4 5 6 7
    a legal selection                       removed               0   2   | 5 6

Several such blocks may share units: a convolution of two groups, then a norm of three. The units are sorted into
*cells*, those that lie in the same rows of all blocks; a *balance* is a set of cells that blocks tie together. If every
cell loses the same share of its units, every row of every block loses equally many:

    2 groups and 3 groups of 12             cells  0-3 | 4-5 | 6-7 | 8-11
    leave together (a pack)                 units    2 |  1  |  1  |  2

That allows a little less than the blocks do, but a selection can count in packs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from prunec.compiler.ir.program import BoolArray, IntArray

Place = tuple[int, int, int]
"""(block, row, how often in that row): where a unit lies."""
Cell = tuple[tuple[Place, ...], list[int]]
"""The places of its units, and the units."""

NO_UNIT = -1
"""The unit of a position that belongs to none, and so stays: FIXED, or written by no parameter."""


@dataclass(frozen=True)
class Balanced:
    """Units [rows, positions] of which every row must lose the same number, since `node` needs rows of one width."""

    units: IntArray
    node: str

    def lost(self, keep: BoolArray) -> IntArray:
        """How many positions each row loses when the units in `keep` stay, [rows]."""
        gone = (self.units != NO_UNIT) & ~np.append(keep, True)[self.units]
        return np.asarray(gone.sum(axis=1), dtype=np.int64)

    @property
    def fits(self) -> bool:
        """Whether all rows hold equally many positions that belong to units."""
        inside = (self.units != NO_UNIT).sum(axis=1)
        return bool((inside == inside[0]).all())


@dataclass(frozen=True)
class Balance:
    """Cells that lose equal shares: a pack is `each[c]` units of every cell `cells[c]`, any of them."""

    cells: tuple[IntArray, ...]
    each: tuple[int, ...]
    nodes: tuple[str, ...]
    """The nodes whose blocks are balanced so."""

    @property
    def units(self) -> IntArray:
        """All units of the cells."""
        return np.concatenate(self.cells)

    @property
    def size(self) -> int:
        """How many units a pack has."""
        return sum(self.each)

    def packs(self, free: BoolArray) -> int:
        """How many packs may leave at most when the units in `free` [units] may. One pack has to stay."""
        each = zip(self.cells, self.each, strict=True)
        whole = self.cells[0].size // self.each[0]
        return min(whole - 1, *(int(free[cell].sum()) // count for cell, count in each))


def balances(blocks: Sequence[Balanced]) -> tuple[Balance, ...]:
    """The balances of all blocks. Units that every row of a block holds equally often aren't bound by that block."""
    places = _places(blocks)
    cells: dict[tuple[Place, ...], list[int]] = {}
    for unit in sorted(places):
        cells.setdefault(tuple(places[unit]), []).append(unit)
    names = [block.node for block in blocks]
    return tuple(_balance(family, names) for family in _families(cells))


def _balance(family: Sequence[Cell], names: Sequence[str]) -> Balance:
    cells = tuple(np.array(units, dtype=np.int64) for _, units in family)
    share = gcd(*(cell.size for cell in cells))
    asking = sorted({block for places, _ in family for block, _, _ in places})
    return Balance(cells, tuple(cell.size // share for cell in cells), tuple(names[block] for block in asking))


def _places(blocks: Sequence[Balanced]) -> dict[int, list[Place]]:
    """unit -> its places, in the blocks whose rows don't all hold it equally often."""
    found: dict[int, list[Place]] = {}
    for number, block in enumerate(blocks):
        rows = len(block.units)
        units, place = np.unique(block.units, return_inverse=True)
        codes = np.arange(rows)[:, None] * units.size + place.reshape(rows, -1)
        often = np.bincount(codes.ravel(), minlength=rows * units.size).reshape(rows, -1)
        uneven = (often != often[:1]).any(axis=0) & (units != NO_UNIT)
        for column, row in np.argwhere((often > 0).T & uneven[:, None]):
            found.setdefault(int(units[column]), []).append((number, int(row), int(often[row, column])))
    return found


def _families(cells: Mapping[tuple[Place, ...], list[int]]) -> Iterable[list[Cell]]:
    """Lists of cells that blocks tie together, directly or through other cells, by their first units."""
    family_of: dict[int, int] = {}
    families: dict[int, list[Cell]] = {}
    for number, cell in enumerate(cells.items()):
        joined = sorted({family_of[block] for block, _, _ in cell[0] if block in family_of})
        families[number] = [known for old in joined for known in families.pop(old)] + [cell]
        family_of.update({block: number for places, _ in families[number] for block, _, _ in places})
    return families.values()
