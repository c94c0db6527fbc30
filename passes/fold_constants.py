"""Remove units that give a constant: it goes into the biases of those who read it, and nothing else changes.

    conv1.weight[3] = 0, bn1 shifts it to 0.5     ->     conv2 reads 0.5 there, whatever the image is
    after: conv1, bn1 without unit 3, conv2.bias += 0.5 * sum of conv2.weight[:, 3]

Such units are those that network slimming or a training with sparsity has shut, filters of zeros, and whatever reads
these alone. Units of zeros go, too. What isn't exact is left alone, and a note says why: a convolution that pads with
zeros sees the constant inside of the image alone. There another constant unit of the group can stand for all, so that
one of them stays.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import BoolArray, Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.verify.reference import Reference, Same
from prunec.passes.calibration.constant_units import constants
from prunec.passes.repairing.absorbing import absorbed, is_same
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink


class FoldConstants(Pass):
    """Remove units whose outputs are constant; their readers' biases take the constants in."""

    name: ClassVar[str] = "fold_constants"
    rewrites: ClassVar[bool] = True
    removes: ClassVar[bool] = True
    shorthand: ClassVar[str | None] = "padded"

    padded: Literal["keep", "approximate"] = Field(
        default="keep",
        description="constants that a convolution pads with zeros: one unit stays for all, or they go, and the values "
        "at the borders change",
    )

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program without the units that give constants; notes tell of those that stay."""
        found, notes = self._selection(program)
        details: dict[str, Any] = {"units": found}
        if not found:
            return PassResult(program, notes, details)
        result = self._shrink.run(program.with_facts(selection=found), context)
        return PassResult(result.program, notes, {**details, **result.details}, result.warnings)

    @property
    def _shrink(self) -> Shrink:
        return Shrink(constants="exact" if self.padded == "keep" else "approximate")

    def reference(self, before: Program, after: Program) -> Reference:
        """The old program itself, where nothing is approximated: nothing of it is masked."""
        if self.padded == "keep":
            return Same(before)
        return self._shrink.reference(before.with_facts(selection=self._selection(before)[0]), after)

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The units spelled out, and the removal."""
        units = result.details["units"]
        return (Select(units=units), self._shrink) if units else ()

    def _selection(self, program: Program) -> tuple[dict[str, list[int]], tuple[Note, ...]]:
        """Group -> the units that go, and notes on those that could not."""
        analysis = analyse(program)
        zero, other = constants(analysis, _loose(analysis))
        zero = _unnoticed(analysis, zero)
        gone, reasons = other, {}
        if other.any():
            taken = absorbed(analysis, other, np.zeros_like(other), border=self.padded == "keep")
            left = other & ~taken.units
            stay = _first_of_each(analysis, left)
            gone, reasons = taken.units, dict(taken.reasons)
            if (left & ~stay).any():
                more = absorbed(analysis, gone | (left & ~stay), stay)
                gone, reasons = more.units, {**reasons, **more.reasons}
        gone = _one_stays(analysis, gone | zero)
        notes = []
        for group in analysis.groups.values():
            mine = np.flatnonzero((other & ~gone)[group.where])
            why = sorted({reasons[group.start + unit] for unit in mine.tolist() if group.start + unit in reasons})
            if mine.size:
                units = "1 constant unit stays" if mine.size == 1 else f"{mine.size} constant units stay"
                notes.append(Note(group.name, "; ".join([units, *why[:3]])))
        found = {
            g.name: np.flatnonzero(gone[g.where]).tolist() for g in analysis.groups.values() if gone[g.where].any()
        }
        return found, tuple(notes)


def _loose(analysis: Analysis) -> BoolArray:
    """[units]: those that may go one by one: free, and of no set of units of which some have to stay."""
    bound = [*analysis.covers, *(part.units for part in analysis.least), *(b.units for b in analysis.balances)]
    loose = analysis.free.copy()
    loose[np.concatenate([*bound, np.zeros(0, dtype=np.int64)])] = False
    return loose


def _unnoticed(analysis: Analysis, zero: BoolArray) -> BoolArray:
    """[units]: those of these units of zeros that nothing else depends on, unlike what a norm over channels counts."""
    program = analysis.program
    if not zero.any() or is_same(program, remove_units(program, ~_one_stays(analysis, zero))):
        return zero
    found = np.zeros_like(zero)
    for group in analysis.groups.values():
        mine = np.zeros_like(zero)
        mine[group.where] = zero[group.where]
        if mine.any() and is_same(program, remove_units(program, ~_one_stays(analysis, mine))):
            found |= mine
    return found


def _first_of_each(analysis: Analysis, units: BoolArray) -> BoolArray:
    """[units]: the first of these in each group."""
    found = np.zeros_like(units)
    for group in analysis.groups.values():
        mine = np.flatnonzero(units[group.where])
        found[group.start + mine[:1]] = True
    return found


def _one_stays(analysis: Analysis, gone: BoolArray) -> BoolArray:
    """`gone` without the last unit of groups that would lose all."""
    gone = gone.copy()
    for group in analysis.groups.values():
        if gone[group.where].all():
            gone[group.start + group.size - 1] = False
    return gone
