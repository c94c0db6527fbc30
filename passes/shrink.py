"""`shrink`: the selected units are removed from the program.

%conv1 = conv1(%x) : f32[1, 8, 6, 6]      conv1 = Conv2d(3, 8, ...)
%relu  = F.relu(%conv1)                   fc    = Linear(288, 10)
selection conv1 = [2, 5]
                 |
                 v
%conv1 = conv1(%x) : f32[1, 6, 6, 6]      conv1 = Conv2d(3, 6, ...)
%relu  = F.relu(%conv1)                   fc    = Linear(216, 10)

What a unit gives that doesn't depend on the input goes into its readers' biases (`constants/absorbing.py`): such a
unit, for example a filter of zeros behind a batch norm's shift, is removed exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import BoolArray, IntArray, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.verify.reference import Masked, MaskedOutputs, Reference
from prunec.passes.constants.absorbing import Absorbed, absorbed
from prunec.passes.constants.constant_units import by_group, constant_units, constants


class Shrink(Pass):
    """Remove the selected units: parameters, module attributes and literal sizes follow."""

    name: ClassVar[str] = "shrink"
    rewrites: ClassVar[bool] = True
    removes: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"selection"})

    constants: Literal["exact", "map", "approximate", "drop"] = Field(
        default="exact",
        description="constants that removed units give: into their readers' biases where that is exact; `map`: what a "
        "reader makes of them place by place is added behind it where zeros around the image make biases inexact, the "
        "image has one size, and it costs less than it saves; `approximate`: into biases there, too; or nowhere",
    )

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program without the units in the fact `selection`."""
        analysis = analyse(program)
        keep = kept_units(analysis, program.facts["selection"])
        left = analysis.settled(keep)
        removed = {g.name: int((~left[g.where]).sum()) for g in analysis.groups.values()}
        details = {"removed_units": {name: n for name, n in removed.items() if n}}
        constant = constant_units(analysis, keep)
        if not constant.any():
            return PassResult(remove_units(program, keep), details=details)
        taken = self._taken(analysis, keep, constant)
        details["constant_units"] = by_group(analysis, constant)
        details["absorbed_units"] = by_group(analysis, taken.units)
        warnings = _told(analysis, constant & ~taken.units, taken.reasons)
        if self.constants == "approximate":
            warnings += _told_inexact(analysis, taken.units & ~self._exact(analysis, keep, constant).units)
        if taken.maps:
            details["maps"] = {each.node: each.values.numel() for each in taken.maps}
        return PassResult(taken.without(keep), details=details, warnings=warnings)

    def _taken(self, analysis: Analysis, keep: BoolArray, constant: BoolArray) -> Absorbed:
        """The program with constants of units that go in their readers, as the plan says."""
        if self.constants == "drop":
            return Absorbed(analysis.program, np.zeros_like(constant), {}, np.zeros(constant.size))
        found = self._exact(analysis, keep, constant)
        if self.constants == "approximate" and (constant & ~found.units).any():
            return absorbed(analysis, constant, constants(analysis, keep)[1], border=False)
        return found

    def _exact(self, analysis: Analysis, keep: BoolArray, constant: BoolArray) -> Absorbed:
        return absorbed(analysis, constant, constants(analysis, keep)[1], maps=self.constants == "map")

    def lost(self, analysis: Analysis, keep: BoolArray) -> BoolArray:
        """[units]: those that would go whose constants their readers would lose."""
        constant = constant_units(analysis, keep)
        return constant & ~self._taken(analysis, keep, constant).units if constant.any() else constant

    def expected(self, program: Program) -> Mapping[str, Any]:
        """`expected_left`, [units]: which stay at least, after this and earlier removals."""
        found = program.facts.get("expected_selection")
        left = ~analyse(program).free if found is None else found
        before = program.facts.get("expected_left")
        return {"expected_left": left if before is None else left & before, "expected_selection": None}

    def reference(self, before: Program, after: Program) -> Reference:
        """The old program with the removed channels masked where they are read; of a unit whose constant has gone into
        its readers exactly, nothing is masked."""
        analysis = analyse(before)
        keep = kept_units(analysis, before.facts["selection"])
        constant = constant_units(analysis, keep)
        taken = self._taken(analysis, keep, constant) if constant.any() else None
        if taken is None or not taken.units.any():
            return Masked(before, removed_positions(analysis, keep))
        exact = self._exact(analysis, keep, constant)
        if (taken.units & ~exact.units).any():  # inexact by request: what was written is taken for granted
            return Masked(taken.program, removed_positions(analysis, keep))
        return MaskedOutputs(before, removed_positions(analysis, keep | exact.units))


def _told(analysis: Analysis, units: BoolArray, reasons: Mapping[int, str]) -> tuple[str, ...]:
    """The warning about removed units that give a constant, which their readers lose."""
    if not units.any():
        return ()
    why = sorted({reasons[unit] for unit in np.flatnonzero(units).tolist() if unit in reasons})
    because = f"; {'; '.join(why[:3])}" if why else ""
    return (
        f"shrink removes {_counted(units)} constant but not zero ({_where(analysis, units)}): their readers "
        f"lose these constants, so the slim model gives other values than the model with these units in it{because}",
    )


def _told_inexact(analysis: Analysis, units: BoolArray) -> tuple[str, ...]:
    """The warning about constants that are in biases, though zeros around the image aren't the constant."""
    if not units.any():
        return ()
    return (
        f"shrink removes {_counted(units)} constant ({_where(analysis, units)}), and adds these constants to "
        "biases, as the plan says: values at the borders of images differ from the model's",
    )


def _counted(units: BoolArray) -> str:
    total = int(units.sum())
    return "1 unit that is" if total == 1 else f"{total} units that are"


def _where(analysis: Analysis, units: BoolArray) -> str:
    return ", ".join(f"{count} of '{name}'" for name, count in by_group(analysis, units).items())


def kept_units(analysis: Analysis, selection: Mapping[str, IntArray | Sequence[int]]) -> BoolArray:
    """[units of all groups]: which stay. Raises `PassError` where the selection names what can't go."""
    keep = np.ones(analysis.size, dtype=bool)
    if not isinstance(selection, Mapping):
        raise PassError("the selection must be lists of units by group")
    for name, found in selection.items():
        group, units = analysis.groups.get(name), np.asarray(found)
        if units.ndim != 1 or (units.size and units.dtype.kind not in "iu"):
            raise PassError(f"the selection of '{name}' must be a list of units")
        if group is None:
            raise PassError(
                f"the selection names group '{name}', which isn't there", hint=nearest(name, analysis.groups)
            )
        if not units.size:
            continue
        units = units.astype(np.int64, copy=False)
        low, high = int(units.min()), int(units.max())
        if low < 0 or high >= group.size:
            odd = low if low < 0 else high
            raise PassError(f"the selection names unit {odd} of '{name}', which has units 0 to {group.size - 1}")
        free = group.free[units]
        if not free.all():
            bound = int(units[np.argmin(free)])
            raise PassError(f"unit {bound} of '{name}' may not be removed: it {group.pinned[bound]}")
        keep[group.start + units] = False
        if not keep[group.where].any():
            raise PassError(f"the selection removes all {group.size} units of '{name}'", hint="one has to stay")
    for block in analysis.balanced:
        lost = block.lost(keep)
        if lost.min() != lost.max():
            raise PassError(
                f"the selection takes {lost.min()} channels of one and {lost.max()} of another of the {lost.size} "
                f"rows that {block.node} divides",
                hint="every row has to lose as many; 'select' by a ratio, widths or a budget sees to that",
            )
    for units in analysis.covers:
        if not keep[units].any():
            raise PassError("the selection empties one piece of a split", hint="keep a channel in every piece")
    for part in analysis.least:
        left = int(keep[part.units].sum())
        if left < part.count:
            name = next(g.name for g in analysis.groups.values() if g.start <= part.units[0] < g.start + g.size)
            raise PassError(
                f"the selection leaves {left} units of '{name}', where {part.count} have to stay: "
                f"each of these {part.reason}"
            )
    return keep
