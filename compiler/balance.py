"""Blocks of which every row must lose equally many channels, whichever these are in each.

    grouped convolution, 2 groups of 4      units of its inputs   0 1 2 3 | 4 5 6 7
    a legal selection                       removed               0   2   | 5 6

Several such blocks may share units: a convolution of two groups, then a norm of three. The units are sorted into
*cells*, those that lie in the same rows of all of them; a *balance* is a set of cells that blocks tie together. If
every cell loses the same share of its units, every row of every block loses equally many:

    2 groups and 3 groups of 12             cells  0-3 | 4-5 | 6-7 | 8-11
    leave together (a pack)                 units    2 |  1  |  1  |  2

That is a little less than what the blocks allow, and it is what can be counted in packs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

from prunec.compiler.ir import IntArray

BoolArray = npt.NDArray[np.bool_]

OUTSIDE = -1
"""A position of a block that belongs to no unit: it never goes."""


@dataclass(frozen=True)
class Balanced:
    """Units [rows, positions] of which every row must lose the same number, as a node asks."""

    units: IntArray
    node: str

    def lost(self, keep: BoolArray) -> IntArray:
        """How many positions each row loses."""
        gone = (self.units != OUTSIDE) & ~np.append(keep, True)[self.units]
        return np.asarray(gone.sum(axis=1), dtype=np.int64)

    @property
    def fits(self) -> bool:
        """Whether all rows hold equally many positions that belong to units."""
        inside = (self.units != OUTSIDE).sum(axis=1)
        return bool((inside == inside[0]).all())


@dataclass(frozen=True)
class Balance:
    """Cells of which equal shares leave: `each[c]` units of `cells[c]` at a time, `packs` times at most."""

    cells: tuple[IntArray, ...]
    each: tuple[int, ...]
    node: str

    @property
    def units(self) -> IntArray:
        """All units of the cells."""
        return np.concatenate(self.cells)

    @property
    def size(self) -> int:
        """How many units leave together."""
        return sum(self.each)

    def packs(self, free: BoolArray) -> int:
        """How many packs may leave when the units in `free` [units] may; one has to stay."""
        each = zip(self.cells, self.each, strict=True)
        whole = self.cells[0].size // self.each[0]
        return min(whole - 1, *(int(free[cell].sum()) // count for cell, count in each))


def balances(blocks: Sequence[Balanced], size: int) -> tuple[Balance, ...]:
    """The balances that blocks over `size` units ask for. Units that every row of a block holds alike aren't bound."""
    seen = {(block.units.shape, block.units.tobytes()): block for block in blocks}
    rows = {unit: tuple(found) for unit, found in _rows_of(list(seen.values()), size).items()}
    cells: dict[tuple[tuple[int, int, int], ...], list[int]] = {}
    for unit in sorted(rows):
        cells.setdefault(rows[unit], []).append(unit)
    names = [block.node for block in seen.values()]
    return tuple(_balance(family, names[family[0][0][0][0]]) for family in _families(cells))


def _balance(family: Sequence[tuple[tuple[tuple[int, int, int], ...], list[int]]], node: str) -> Balance:
    cells = tuple(np.array(units, dtype=np.int64) for _, units in family)
    share = gcd(*(cell.size for cell in cells))
    return Balance(cells, tuple(cell.size // share for cell in cells), node)


def _rows_of(blocks: Sequence[Balanced], size: int) -> dict[int, list[tuple[int, int, int]]]:
    """unit -> (block, row, how often) for every row of every block that doesn't hold it as often as all others do."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, block in enumerate(blocks):
        count, _ = block.units.shape
        codes = np.arange(count)[:, None] * (size + 1) + np.where(block.units == OUTSIDE, size, block.units)
        table = np.bincount(codes.ravel(), minlength=count * (size + 1)).reshape(count, -1)[:, :size]
        uneven = np.flatnonzero((table != table[:1]).any(axis=0))
        for unit, row in np.argwhere(table[:, uneven].T):
            place = int(uneven[unit])
            found.setdefault(place, []).append((number, int(row), int(table[row, place])))
    return found


def _families(
    cells: dict[tuple[tuple[int, int, int], ...], list[int]],
) -> Iterable[list[tuple[tuple[tuple[int, int, int], ...], list[int]]]]:
    """The cells that a chain of blocks ties together, by their first unit."""
    family_of: dict[int, int] = {}
    families: dict[int, list[tuple[tuple[tuple[int, int, int], ...], list[int]]]] = {}
    for number, (places, units) in enumerate(cells.items()):
        blocks = {block for block, _, _ in places}
        joined = {family_of[block] for block in blocks if block in family_of}
        families[number] = [cell for old in sorted(joined) for cell in families.pop(old)] + [(places, units)]
        moved = {block for cell, _ in families[number] for block, _, _ in cell}
        family_of.update(dict.fromkeys(moved, number))
    return families.values()
