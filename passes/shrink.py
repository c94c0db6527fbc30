"""`shrink`: the selected units are removed from the program.

%conv1 = conv1(%x) : f32[1, 8, 6, 6]      conv1 = Conv2d(3, 8, ...)
%relu  = F.relu(%conv1)                   fc    = Linear(288, 10)
selection conv1 = [2, 5]
                 |
                 v
%conv1 = conv1(%x) : f32[1, 6, 6, 6]      conv1 = Conv2d(3, 6, ...)
%relu  = F.relu(%conv1)                   fc    = Linear(216, 10)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import BoolArray, IntArray, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.verify.reference import Masked, Reference
from prunec.passes.calibration.constant_units import constant_units


class Shrink(Pass):
    """Remove the selected units: parameters, module attributes and literal sizes follow."""

    name: ClassVar[str] = "shrink"
    rewrites: ClassVar[bool] = True
    removes: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"selection"})

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program without the units in the fact `selection`."""
        analysis = analyse(program)
        keep = kept_units(analysis, program.facts["selection"])
        left = analysis.settled(keep)
        removed = {g.name: int((~left[g.where]).sum()) for g in analysis.groups.values()}
        details = {"removed_units": {name: n for name, n in removed.items() if n}}
        constant = constant_units(analysis, keep)
        if constant:
            details["constant_units"] = constant
        return PassResult(remove_units(program, keep), details=details, warnings=_told(constant))

    def expected(self, program: Program) -> Mapping[str, Any]:
        """`expected_left`, [units]: which stay at least, after this and earlier removals."""
        found = program.facts.get("expected_selection")
        left = ~analyse(program).free if found is None else found
        before = program.facts.get("expected_left")
        return {"expected_left": left if before is None else left & before, "expected_selection": None}

    def reference(self, before: Program, after: Program) -> Reference:
        """The old program with the removed channels masked where they are read."""
        analysis = analyse(before)
        keep = kept_units(analysis, before.facts["selection"])
        return Masked(before, removed_positions(analysis, keep))


def _told(constant: Mapping[str, int]) -> tuple[str, ...]:
    """The warning about removed units that give a constant."""
    if not constant:
        return ()
    total = sum(constant.values())
    units = "1 unit that is" if total == 1 else f"{total} units that are"
    where = ", ".join(f"{count} of '{name}'" for name, count in constant.items())
    return (
        f"shrink removes {units} constant but not zero ({where}): their readers lose these constants, so the slim "
        "model gives other values than the model with these units in it",
    )


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
