"""How well criteria order units: their rank correlation with the oracle, the loss's change when a unit really goes.

    units of conv1      0     1     2     3
    oracle, |change|  .02   .31   .04   .11
    taylor            .01   .20   .05   .09       Spearman 1.0, Kendall 1.0
    l1                1.9   1.2   2.2   1.4       Spearman -.8, Kendall -.67

The measure of Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (2017): within
each group, and over all groups, with the figures as they are and with each group's divided by their l2 norm, those of
the oracle too. Equal figures get the mean of their ranks (Spearman), and count for neither order (Kendall's tau-b).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import kendalltau, spearmanr

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import FloatArray, IntArray, Program
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.calibration.trials import measure
from prunec.passes.criteria.aggregates import normalised

Figures = Mapping[str, FloatArray]
"""Group -> one figure for each of the units that were tried."""

ALL: Final = ""
"""The group's name in a row about all groups together."""

FEWEST: Final = 3
"""An order of fewer units says nothing."""


@dataclass(frozen=True)
class Row:
    """A criterion's correlation with the oracle; NaN where one of them gives all units the same figure."""

    criterion: str
    group: str
    """`ALL` for the units of all groups together."""
    normalize: str
    units: int
    spearman: float
    kendall: float


def tried_units(program: Program, groups: Sequence[str], most: int | None, context: Context) -> dict[str, IntArray]:
    """Group -> the units that are tried: all that may go, or `most` of them, drawn by the seed."""
    known, found = analyse(program).groups, {}
    for name in groups:
        units = np.flatnonzero(known[name].free)
        if most is not None and units.size > most:
            units = np.sort(context.rng("rank", name).choice(units, most, replace=False))
        if units.size:
            found[name] = units
    return found


def oracle(
    program: Program, tried: Mapping[str, IntArray], calibration: Calibration, context: Context
) -> tuple[Figures, int]:
    """(the absolute change of the mean loss without each unit alone, the number of samples). Raises what `measure`
    raises."""
    groups = analyse(program).groups
    trials = [np.array([groups[name].start + unit]) for name, units in tried.items() for unit in units.tolist()]
    found = measure(program, trials, calibration, context, "oracle")
    edges = np.cumsum([units.size for units in tried.values()])[:-1]
    changes = np.split(np.abs(found.losses - found.loss), edges)
    return dict(zip(tried, changes, strict=True)), found.samples


def correlations(criterion: str, figures: Figures, truth: Figures) -> Iterator[Row]:
    """A row for each group that the criterion has figures for, and two for all groups together."""
    told = [name for name in truth if name in figures]
    for name in told:
        yield _row((criterion, name, "none"), figures[name], truth[name])
    told = [name for name in told if not np.isnan([figures[name], truth[name]]).any()]
    for how in ("none", "l2"):
        yield _row((criterion, ALL, how), _joined(figures, told, how), _joined(truth, told, how))


def _joined(figures: Figures, groups: Sequence[str], how: str) -> FloatArray:
    with np.errstate(invalid="ignore"):  # of infinite figures the norm is infinite too, and their share no number
        return np.concatenate([np.zeros(0), *(normalised(figures[name], how) for name in groups)])


def _row(said: tuple[str, str, str], figures: FloatArray, truth: FloatArray) -> Row:
    """Infinite figures are the largest there are; figures that are no numbers can't be ranked."""
    told = figures.size >= FEWEST and not np.isnan(figures).any() and not np.isnan(truth).any()
    if not told or np.ptp(_ranked(figures)) == 0 or np.ptp(_ranked(truth)) == 0:
        return Row(*said, figures.size, math.nan, math.nan)
    spearman, kendall = (float(measure(figures, truth).statistic) for measure in (spearmanr, kendalltau))
    return Row(*said, figures.size, spearman, kendall)


def _ranked(figures: FloatArray) -> IntArray:
    """The rank of each figure among the distinct ones; infinite ones have one too."""
    return np.asarray(np.unique(figures, return_inverse=True)[1], dtype=np.int64)


def within_groups(rows: Sequence[Row], kind: str) -> float:
    """The mean of the correlations within groups; NaN where there are none."""
    found = [getattr(row, kind) for row in rows if row.group != ALL]
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
