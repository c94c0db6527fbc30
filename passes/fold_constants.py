"""Remove units that give a constant: it goes into the biases of those who read it, and nothing else changes.

    conv1.weight[3] = 0, bn1 shifts it to 0.5     ->     conv2 reads 0.5 there, whatever the image is
    after: conv1, bn1 without unit 3, conv2.bias += 0.5 * sum of conv2.weight[:, 3]

Such units are those that network slimming or a training with sparsity has shut, filters of zeros, and whatever reads
these alone. Units of zeros go, too. What isn't exact is left alone, and a note says why: a convolution that pads with
zeros sees the constant inside of the image alone. There another constant unit of the group can stand for all, so that
one of them stays.

Every plan that doesn't name the pass has it behind its last one (`by_default`), for units that the weights alone prove
constant. There groups keep the widths that the plan's selection asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.patterns import matching
from prunec.compiler.ir.program import BoolArray, FloatArray, Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.verify.reference import Reference, Same
from prunec.passes.constants.absorbing import absorbed, is_same
from prunec.passes.constants.constant_units import constants, proven_constants
from prunec.passes.select import Select
from prunec.passes.selection.amounts import Multiple, multiple
from prunec.passes.selection.limits import channels_of_a_unit
from prunec.passes.selection.paying import halved
from prunec.passes.shrink import Shrink


class FoldConstants(Pass):
    """Remove units whose outputs are constant; their readers' biases take the constants in."""

    name: ClassVar[str] = "fold_constants"
    rewrites: ClassVar[bool] = True
    removes: ClassVar[bool] = True
    shorthand: ClassVar[str | None] = "padded"

    padded: Literal["keep", "map", "approximate", "none"] = Field(
        default="keep",
        description="constants that a convolution pads with zeros: one unit stays for all; `map`: what the "
        "convolution makes of them is added behind it, where the image has one size and it costs less than it saves; "
        "`approximate`: they go, and the values at the borders change; `none`: no constant is removed, and none by "
        "default behind the last pass",
    )
    proven: bool = Field(
        default=False, description="only units that the weights alone prove constant, not those that trials show to be"
    )
    multiple_of: Multiple | None = Field(
        default=None, description="a group whose width is a multiple of so many channels, or half as many, keeps one"
    )
    protect: tuple[str, ...] = Field(default=(), description="glob patterns of groups that keep all their units")

    @classmethod
    def by_default(cls, passes: Sequence[Pass], runtime: str) -> Pass | None:
        """The pass for what is proven; where the plan asked for widths, groups keep these."""
        if any(isinstance(each, cls) for each in passes):
            return None
        selects = [each for each in passes if isinstance(each, Select)]
        kept = {*(name for each in selects for name in (*each.protect, *each.equal_widths, *(each.widths or ())))}
        said = [most for each in selects if (most := _multiple(each, runtime)) is not None]
        return cls(proven=True, multiple_of=max(said, default=None), protect=tuple(sorted(kept)))

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program without the units that give constants; notes tell of those that stay."""
        if self.padded == "none":
            return PassResult(program)
        found, notes = self._selection(program)
        details: dict[str, Any] = {"units": found}
        if not found:
            return PassResult(program, notes, details)
        result = self._shrink.run(program.with_facts(selection=found), context)
        return PassResult(result.program, notes, {**details, **result.details}, result.warnings)

    @property
    def _shrink(self) -> Shrink:
        return Shrink(constants="map" if self.padded == "map" else "approximate" if self._inexact else "exact")

    @property
    def _inexact(self) -> bool:
        return self.padded == "approximate"

    def reference(self, before: Program, after: Program) -> Reference:
        """The old program itself, where nothing is approximated: nothing of it is masked."""
        if not self._inexact:
            return Same(before)
        return self._shrink.reference(before.with_facts(selection=self._selection(before)[0]), after)

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The units spelled out, and the removal."""
        units = result.details.get("units")
        return (Select(units=units), self._shrink) if units else ()

    def _selection(self, program: Program) -> tuple[dict[str, list[int]], tuple[Note, ...]]:
        """Group -> the units that go, and notes on those that could not."""
        analysis = analyse(program)
        if self.proven and program.deployed is not program:
            return {}, ()  # what holds in eval mode needn't in train mode
        zero, other = (proven_constants if self.proven else constants)(analysis, self._loose(analysis))
        zero = _unnoticed(analysis, zero)
        gone, reasons, maps = other, dict[int, str](), self.padded == "map"
        if other.any():
            taken = absorbed(analysis, other, np.zeros_like(other), border=not self._inexact, maps=maps)
            left = other & ~taken.units
            stay = _largest_of_each(analysis, left, taken.sizes)
            gone, reasons = taken.units, dict(taken.reasons)
            if (left & ~stay).any():
                more = absorbed(analysis, gone | (left & ~stay), stay, maps=maps)
                gone, reasons = more.units, {**reasons, **more.reasons}
        gone, kept = self._wide(analysis, _one_stays(analysis, gone | zero))
        reasons |= kept
        while not self._inexact and (lost := self._shrink.lost(analysis, ~gone)).any():
            gone &= ~lost  # what stays has changed meanwhile
        notes = []
        for group in analysis.groups.values():
            mine = np.flatnonzero(((other | zero) & ~gone)[group.where])
            why = sorted({reasons[group.start + unit] for unit in mine.tolist() if group.start + unit in reasons})
            if mine.size:
                units = "1 constant unit stays" if mine.size == 1 else f"{mine.size} constant units stay"
                notes.append(Note(group.name, "; ".join([units, *why[:3]])))
        found = {
            g.name: np.flatnonzero(gone[g.where]).tolist() for g in analysis.groups.values() if gone[g.where].any()
        }
        return found, tuple(notes)

    def _loose(self, analysis: Analysis) -> BoolArray:
        """[units]: those that may go one by one: free, and of no set of units of which some have to stay."""
        bound = [*analysis.covers, *(part.units for part in analysis.least), *(b.units for b in analysis.balances)]
        loose = analysis.free.copy()
        loose[np.concatenate([*bound, np.zeros(0, dtype=np.int64)])] = False
        for names in matching(self.protect, analysis.groups, option="protect").values():
            for name in names:
                loose[analysis.groups[name].where] = False
        return loose

    def _wide(self, analysis: Analysis, gone: BoolArray) -> tuple[BoolArray, Mapping[int, str]]:
        """`gone` without as many units as keep each group's width a multiple; and a reason for each that stays."""
        if self.multiple_of is None:
            return gone, {}
        gone, reasons, wanted = gone.copy(), dict[int, str](), multiple(self.multiple_of)
        for group in analysis.groups.values():
            each = channels_of_a_unit(group)
            number = next((n for n in (wanted, *halved(wanted)) if group.size * each % n == 0), 1)
            mine = group.start + np.flatnonzero(gone[group.where])
            stay = mine[: mine.size % (number // int(np.gcd(number, each)))]
            gone[stay] = False
            reasons |= dict.fromkeys(stay.tolist(), f"the width stays a multiple of {number}")
        return gone, reasons


def _multiple(select: Select, runtime: str) -> int | None:
    """What the widths that a selection leaves are multiples of; None where they may be any."""
    if select.multiple_of is None:
        return multiple(runtime) if select.budget is not None and select.at_most is None else None
    said = select.multiple_of
    return max(multiple(each) for each in (said.values() if isinstance(said, dict) else [said]))


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


def _largest_of_each(analysis: Analysis, units: BoolArray, sizes: FloatArray) -> BoolArray:
    """[units]: of these in each group the one that gives the largest constant: weights grow least by it."""
    found = np.zeros_like(units)
    for group in analysis.groups.values():
        mine = group.start + np.flatnonzero(units[group.where])
        found[mine[np.argsort(-sizes[mine], kind="stable")[:1]]] = True
    return found


def _one_stays(analysis: Analysis, gone: BoolArray) -> BoolArray:
    """`gone` without the last unit of groups that would lose all."""
    gone = gone.copy()
    for group in analysis.groups.values():
        if gone[group.where].all():
            gone[group.start + group.size - 1] = False
    return gone
