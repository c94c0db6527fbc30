"""The outcome of `prunec sensitivity` and `prunec rank` as pictures.

Above, lines or bars that tell the few extremes; below, a grid with a column for each group in the order of the model,
which is read as well with sixty groups as with six.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from prunec.passes.curves import Curve
from prunec.passes.rank import ALL, Row
from prunec.passes.sensitivity import most_sensitive_first
from prunec.passes.tables import summary
from prunec.compiler.units import FloatArray

NAMED: Final = 6
"""How many of the most sensitive groups have a colour and a name of their own."""

COLOURS: Final = ("#b3381f", "#d9822b", "#c9a400", "#1a7f4b", "#2563a8", "#7a4fb0")
GREY: Final = "#b9c1cc"
_COLUMN: Final = 0.2
"""Inches that a group takes in a grid."""
_DPI: Final = 130


def draw_curves(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Draw each group's curve, and a grid of what it loses at each ratio."""
    figure, (above, below) = _paper(title, len(curves), rows=len(curves[0].points) - 1, tall=3.6)
    _lines(above, curves)
    drops = np.array([curve.drops[1:] for curve in curves]).T
    accurate = not math.isnan(curves[0].points[0].accuracy)
    shown = np.nan_to_num(100 * drops if accurate else drops, nan=np.inf)
    finite = shown[np.isfinite(shown)]
    image = _grid(below, np.minimum(shown, finite.max(initial=0.0)).clip(min=0), [c.group for c in curves], "YlOrRd")
    below.set_yticks(range(len(shown)), [f"{point.ratio:.0%}" for point in curves[0].points[1:]], fontsize=8)
    below.invert_yaxis()
    below.set_ylabel("share removed")
    label = "points of accuracy lost" if accurate else "rise of the loss"
    figure.colorbar(image, ax=below, label=label, pad=0.01, aspect=12)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def draw_ranks(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draw each criterion's correlations over all units, and a grid of those within each group."""
    names = list(summary(rows, "spearman"))
    groups = list(dict.fromkeys(row.group for row in rows if row.group != ALL))
    figure, (above, below) = _paper(title, max(len(groups), 4 * len(names)), rows=len(names), tall=3.0)
    _bars(above, rows)
    known = {(row.criterion, row.group): row.spearman for row in rows if row.group != ALL}
    table = np.array([[known.get((name, group), np.nan) for group in groups] for name in names])
    image = _grid(below, table, groups, "RdBu", limits=(-1, 1))
    below.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(image, ax=below, label="Spearman", pad=0.01, aspect=12)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _paper(title: str, columns: int, rows: int, tall: float) -> tuple[Figure, Any]:
    """A figure with two axes, one above the other; the lower one has so many columns and rows."""
    low = 1.6 + 0.2 * rows
    width = max(9.0, 2.5 + _COLUMN * columns)
    figure = Figure(figsize=(width, tall + low), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure, figure.subplots(2, 1, height_ratios=(tall, low))


def _lines(axes: Axes, curves: Sequence[Curve]) -> None:
    ordered = most_sensitive_first(curves)
    accurate = not math.isnan(curves[0].points[0].accuracy)
    for curve in reversed(ordered):
        place = ordered.index(curve)
        named = place < NAMED
        points = [(point.ratio, point.value) for point in curve.points if math.isfinite(point.value)]
        style = {"color": COLOURS[place], "linewidth": 1.8, "zorder": 3} if named else {"color": GREY, "linewidth": 0.9}
        axes.plot(*zip(*points, strict=True), marker="o" if named else None, markersize=3, **style)  # type: ignore[arg-type]
    whole = curves[0].points[0].value
    axes.axhline(whole, color="#5c6878", linewidth=0.8, linestyle="--", zorder=1)
    _legend(axes, [curve.group for curve in ordered])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of the group's units removed")
    axes.set_ylabel("accuracy" if accurate else "loss")
    if accurate:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _plain(axes)


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """Names beside the lines, the most sensitive first."""
    from matplotlib.lines import Line2D
    shown = [Line2D([], [], color=colour, marker="o", markersize=3) for _, colour in zip(names, COLOURS, strict=False)]
    labels = list(names[: len(shown)])
    if len(names) > NAMED:
        shown.append(Line2D([], [], color=GREY))
        labels.append(f"{len(names) - NAMED} others")
    axes.legend(shown, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8,
        title="most sensitive first", title_fontsize=8, alignment="left")


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    found = summary(rows, "spearman")
    kinds = ("mean within groups", "all units, raw", "all units, l2-normalised by group")
    places = np.arange(len(found))
    for number, (kind, colour) in enumerate(zip(kinds, ("#2563a8", "#9fb9d8", "#d9822b"), strict=True)):
        heights = [0.0 if math.isnan(values[number]) else values[number] for values in found.values()]
        axes.bar(places + 0.27 * (number - 1), heights, 0.25, color=colour, label=kind)
    axes.axhline(0, color="#5c6878", linewidth=0.8)
    axes.set_xticks(places, list(found), fontsize=8)
    axes.set_ylim(min(-0.2, axes.get_ylim()[0]), 1.0)
    axes.set_ylabel("Spearman with the oracle")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=8)
    _plain(axes)


def _grid(axes: Axes, table: FloatArray, groups: Sequence[str], colours: str, limits: tuple[float, float] | None = None) -> Any:
    low, high = limits or (0.0, max(float(table.max(initial=0.0)), 1e-9))
    image = axes.imshow(table, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks(range(len(groups)), groups, rotation=90, fontsize=7 if len(groups) > 20 else 8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return image


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#e3e7ed", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
