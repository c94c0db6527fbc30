"""How much each group alone may lose: the metric, or the loss, against the share of its units that is gone.

    group,units,ratio,removed,accuracy,loss,criterion,samples,split
    conv1,32,0,0,0.9833,0.0712,l1,1024,val           the whole model
    conv1,32,0.1,4,0.9817,0.0760,l1,1024,val         conv1 without its four least important units, nothing else cut
    conv1,32,0.2,7,0.9722,0.1008,l1,1024,val

That is the sensitivity analysis of Li et al., "Pruning Filters for Efficient ConvNets" (2017). `measured` makes such
curves; `passes/selection/curves.py` writes them to a file, reads them, and chooses by them how far each group is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.calibration.trials import Trial, judge, measure
from prunec.passes.selection.curves import Curve, Judged, Point

Removed = Mapping[str, Mapping[float, Trial]]
"""Group -> ratio -> the units of the group that go."""


def measured(
    program: Program, removed: Removed, calibration: Calibration, context: Context
) -> tuple[list[Curve], float, float, int]:
    """(the curve of every group, the whole model's metric, its loss, the number of samples); the metric is NaN where
    there is none.

    Ratios at which the same units go are measured once. Raises what `measure` raises.
    """
    groups = analyse(program).groups
    distinct = {
        (name, units.size): units for name, ratios in removed.items() for units in ratios.values() if units.size
    }
    trials = [units + groups[name].start for (name, _), units in distinct.items()]
    found = measure(program, trials, calibration, context, "sensitivity")
    figures = dict(zip(distinct, zip(found.metrics.tolist(), found.losses.tolist(), strict=True), strict=True))
    whole = (found.metric, found.loss)
    metric = judge(context.metric)
    judged = Judged(metric.title, metric.higher_is_better, metric.share) if metric else Judged()
    curves = [
        Curve(
            name,
            groups[name].size,
            tuple(
                Point(ratio, units.size, *figures.get((name, units.size), whole))
                for ratio, units in sorted({0.0: np.zeros(0, dtype=np.int64), **ratios}.items())
            ),
            judged,
        )
        for name, ratios in removed.items()
    ]
    return curves, *whole, found.samples


def most_sensitive_first(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, sorted by the group's mean drop over the ratios that were tried; equal ones by their loss."""
    return sorted(curves, key=lambda curve: (-curve.mean_drop, -curve.mean_loss))
