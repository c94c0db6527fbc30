"""The remaining error of each group as a picture: what a width costs, whatever width a budget chooses then."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Final

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from prunec.compiler.ir.program import FloatArray

_NAMED: Final = 12
"""Up to so many groups have a name of their own in the legend; of more, colours tell the order in the model."""
_LEAST: Final = 1e-6
"""What is drawn for errors below it."""


def draw_remaining(curves: Mapping[str, FloatArray]) -> bytes:
    """A PNG picture of group -> [units + 1]: the error that remains once 0, 1, 2, ... units are gone."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0.0, 0.92, max(len(curves), 2)))
    for colour, (name, error) in zip(colours, curves.items(), strict=False):
        left = 1 - np.arange(error.size) / (error.size - 1)
        axes.plot(left, np.maximum(error, _LEAST), color=colour, linewidth=1.4, label=name)
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("width: share of the group's removable units that is left")
    axes.set_ylabel("remaining error, share of the variance")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    if len(curves) <= _NAMED:
        axes.legend(fontsize=8, frameon=False)
    else:
        names = list(curves)
        axes.set_title(f"dark: {names[0]} ... light: {names[-1]}, in the order of the model", fontsize=9, loc="left")
    content = BytesIO()
    figure.savefig(content, dpi=130, metadata={"Software": None})
    return content.getvalue()
