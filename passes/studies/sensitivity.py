"""How much each group alone may lose: accuracy, or loss, against the share of its units that is gone.

    group,units,ratio,removed,accuracy,loss,criterion,samples,split
    conv1,32,0,0,0.9833,0.0712,l1,1024,val           the whole model
    conv1,32,0.1,4,0.9817,0.0760,l1,1024,val         conv1 without its four least important units, nothing else cut
    conv1,32,0.2,7,0.9722,0.1008,l1,1024,val

That is the sensitivity analysis of Li et al., "Pruning Filters for Efficient ConvNets" (2017). `measured` makes such
curves, and `kept_within` is what `select: {from: sensitivity.csv, floor: -1pt}` reads out of them: for each group the
largest ratio that was measured whose accuracy, and that of all smaller ones, is no more than a point below the model's.
Nothing is read between two points: a curve may fall off a cliff there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from pydantic import BeforeValidator

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Group, analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.options import wrong
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.calibration.trials import Trial, measure
from prunec.passes.selection.curves import Curve, Point, read_curves

Removed = Mapping[str, Mapping[float, Trial]]
"""For each group, each ratio and the units of the group that go."""

_FLOOR: Final = re.compile(r"\s*-\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(pt|%)\s*")


def _floor(value: object) -> object:
    match = _FLOOR.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        hint = "-1pt is one point of accuracy, as from 97% to 96%; -2% is 2% of what it is"
        raise wrong("must be a loss such as -1pt or -2%", hint=hint)
    return f"-{match[1]}{match[2]}"


Floor = Annotated[str, BeforeValidator(_floor)]
"""How much may be lost: `-1pt`, a point of accuracy, or `-2%` of what it is. A loss may rise by as many percent."""


def measured(
    program: Program, removed: Removed, calibration: Calibration, context: Context
) -> tuple[list[Curve], float, float, int]:
    """The curve of every group; and of the whole model accuracy (NaN where there is none), loss and samples.

    Ratios at which the same units go are measured once. Raises what `measure` raises.
    """
    groups = analyse(program).groups
    distinct = {
        (name, units.size): units for name, ratios in removed.items() for units in ratios.values() if units.size
    }
    trials = [units + groups[name].start for (name, _), units in distinct.items()]
    found = measure(program, trials, calibration, context, "sensitivity")
    figures = dict(zip(distinct, zip(found.accuracies.tolist(), found.losses.tolist(), strict=True), strict=True))
    whole = (found.accuracy, found.loss)
    curves = [
        Curve(
            name,
            groups[name].size,
            tuple(
                Point(ratio, units.size, *figures.get((name, units.size), whole))
                for ratio, units in sorted({0.0: np.zeros(0, dtype=np.int64), **ratios}.items())
            ),
        )
        for name, ratios in removed.items()
    ]
    return curves, *whole, found.samples


def held(curve: Curve, floor: str) -> Point:
    """The last point up to which the curve stays above the floor. Raises `PassError` for points of accuracy of a curve
    that has none."""
    least, sign = _least(curve, floor)
    last = curve.points[0]
    for point in curve.points:
        if not sign * point.value >= least - 1e-9:
            break
        last = point
    return last


def _least(curve: Curve, floor: str) -> tuple[float, int]:
    """What must be reached, and whether more (1) or less (-1) is better: then both are negated."""
    match = _FLOOR.fullmatch(floor)
    assert match is not None, "a floor is checked when the plan is loaded"
    amount, relative, whole = float(match[1]) / 100, match[2] == "%", curve.points[0].value
    if math.isnan(curve.points[0].accuracy):
        if not relative:
            message = f"floor: {floor} is of accuracy, and the file has losses alone"
            raise PassError(message, keys=("floor",), hint="-2% lets the loss rise by 2%")
        return -whole * (1 + amount), -1
    return (whole * (1 - amount) if relative else whole - amount), 1


def kept_within(path: Path, floor: str, groups: Mapping[str, Group], only: Iterable[str]) -> dict[str, int]:
    """How many units each of these groups keeps, by the curves in a file; a group without a curve isn't cut.

    Raises `PassError` with its place in the file where that can't be read or is another model's.
    """
    wanted = set(only)
    points = {curve.group: (curve.units, held(curve, floor)) for curve in read_curves(path, groups)}
    return {name: units - point.removed for name, (units, point) in points.items() if name in wanted and point.removed}


def most_sensitive_first(curves: Sequence[Curve]) -> list[Curve]:
    """The curves by what a group loses on average over the ratios that were tried; equal ones by their loss."""
    return sorted(curves, key=lambda curve: (-curve.mean_drop, -curve.mean_loss))
