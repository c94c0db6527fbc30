"""The results of `prunec sensitivity` and `prunec rank` as pictures.

Above, lines or bars that show the few extremes; below, a grid with a column for each group in the order of the model,
which is as legible with sixty groups as with six.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from prunec.compiler.ir.program import FloatArray
from prunec.passes.selection.curves import Curve
from prunec.passes.studies.rank import ALL, Row
from prunec.passes.studies.sensitivity import most_sensitive_first
from prunec.passes.studies.tables import summary

NAMED: Final = 6
"""How many of the most sensitive groups have a colour and a name of their own."""

COLOURS: Final = ("#b3381f", "#d9822b", "#c9a400", "#1a7f4b", "#2563a8", "#7a4fb0")
GREY: Final = "#b9c1cc"
_COLUMN: Final = 0.2
"""Inches that a group takes in a grid."""
_BESIDE: Final = 1.9
"""Inches for legends."""
_DPI: Final = 130


def draw_curves(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Draw each group's curve, and a grid of what it loses at each ratio."""
    paper = _Paper.of(title, len(curves), rows=len(curves[0].points) - 1, tall=3.6)
    _lines(paper.above, curves)
    _legend(paper.beside, [curve.group for curve in most_sensitive_first(curves)])
    judged = curves[0].judged
    drops = np.array([curve.drops[1:] for curve in curves]).T * (100 if judged.share else 1)
    finite = drops[np.isfinite(drops)]
    highest = max(float(finite.max(initial=0.0)), 1.0 if judged.share else 1e-3)
    shown = np.nan_to_num(drops, nan=highest).clip(0.0, highest)
    lost = f"{'points of ' if judged.share else ''}{judged.name} lost"
    label = lost if judged.higher_is_better else f"rise of the {judged.name}"
    paper.grid(shown, [curve.group for curve in curves], Scale("YlOrRd", (0.0, highest), label))
    ratios = [f"{point.ratio:.0%}" for point in curves[0].points[1:]]
    paper.below.set_yticks(range(len(ratios)), ratios, fontsize=8)
    paper.below.invert_yaxis()
    paper.below.set_ylabel("share removed")
    paper.figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def draw_ranks(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draw each criterion's correlations over all units, and a grid of those within each group."""
    names = list(summary(rows, "spearman"))
    groups = list(dict.fromkeys(row.group for row in rows if row.group != ALL))
    paper = _Paper.of(title, max(len(groups), 5 * len(names)), rows=len(names), tall=3.0)
    _bars(paper.above, rows)
    paper.beside.axis("off")
    known = {(row.criterion, row.group): row.spearman for row in rows if row.group != ALL}
    table = np.array([[known.get((name, group), np.nan) for group in groups] for name in names])
    paper.grid(table, groups, Scale("RdBu", (-1.0, 1.0), "Spearman within the group"))
    paper.below.set_yticks(range(len(names)), names, fontsize=8)
    paper.figure.savefig(path, dpi=_DPI, metadata={"Software": None})


@dataclass(frozen=True)
class Scale:
    """The colours of a grid, the values at their ends, and what these count."""

    colours: str
    limits: tuple[float, float]
    label: str


@dataclass(frozen=True)
class _Paper:
    """A figure with a picture above and a grid below, and room for a legend beside each."""

    figure: Figure
    above: Axes
    beside: Axes
    below: Axes
    scale: Axes

    @staticmethod
    def of(title: str, columns: int, rows: int, tall: float) -> _Paper:
        """The grid has so many columns and rows; the picture is `tall` inches high."""
        low = 1.2 + 0.22 * rows
        width = max(8.0, _COLUMN * columns)
        figure = Figure(figsize=(width + _BESIDE, tall + low), layout="constrained")
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        axes = figure.subplots(2, 2, height_ratios=(tall, low), width_ratios=(width, _BESIDE))
        return _Paper(figure, *axes.flat)

    def grid(self, table: FloatArray, groups: Sequence[str], scale: Scale) -> None:
        """Draw the table, [rows, groups]; NaN stays white."""
        low, high = scale.limits
        image = self.below.imshow(
            table, aspect="auto", cmap=scale.colours, vmin=low, vmax=high, interpolation="nearest"
        )
        self.below.set_xticks(
            range(len(groups)), groups, rotation=90 if len(groups) > 6 else 0, fontsize=7 if len(groups) > 20 else 8
        )
        self.below.tick_params(length=0)
        self.below.spines[:].set_visible(False)
        self.scale.axis("off")
        bar = self.figure.colorbar(image, cax=self.scale.inset_axes((0.0, 0.0, 0.09, 1.0)))
        bar.set_label(scale.label, fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)


def _lines(axes: Axes, curves: Sequence[Curve]) -> None:
    ordered = most_sensitive_first(curves)
    judged = curves[0].judged
    for curve in reversed(ordered):
        place = ordered.index(curve)
        named = place < NAMED
        points = [(point.ratio, point.value) for point in curve.points if math.isfinite(point.value)]
        style = {"color": COLOURS[place], "linewidth": 1.8, "zorder": 3} if named else {"color": GREY, "linewidth": 0.9}
        axes.plot(*zip(*points, strict=True), marker="o" if named else None, markersize=3, **style)
    whole = curves[0].points[0].value
    axes.axhline(whole, color="#5c6878", linewidth=0.8, linestyle="--", zorder=1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of the group's units removed")
    axes.set_ylabel(judged.name)
    if judged.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(axes)


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """The names of the coloured lines, the most sensitive first."""
    shown = [Line2D([], [], color=colour, marker="o", markersize=3) for _, colour in zip(names, COLOURS, strict=False)]
    labels = list(names[: len(shown)])
    if len(names) > NAMED:
        shown.append(Line2D([], [], color=GREY))
        labels.append(f"{len(names) - NAMED} others")
    axes.axis("off")
    legend = axes.legend(shown, labels, loc="upper left", frameon=False, fontsize=8, borderaxespad=0, borderpad=0)
    legend.set_title("most sensitive first", FontProperties(size=8))
    legend.set_alignment("left")


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    found = summary(rows, "spearman")
    kinds = ("mean within groups", "all units, raw", "all units, l2-normalised by group")
    places = np.arange(len(found))
    for number, (kind, colour) in enumerate(zip(kinds, ("#2563a8", "#9fb9d8", "#d9822b"), strict=True)):
        heights = [0.0 if math.isnan(values[number]) else values[number] for values in found.values()]
        axes.bar(places + 0.27 * (number - 1), heights, 0.25, color=colour, label=kind)
    axes.axhline(0, color="#5c6878", linewidth=0.8)
    axes.set_xticks(places, [name.replace("_", "_\n") for name in found], fontsize=8)
    axes.set_ylim(min(-0.2, axes.get_ylim()[0]), 1.0)
    axes.set_ylabel("Spearman with the oracle")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#e3e7ed", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
