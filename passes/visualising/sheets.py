"""The contact sheet of a layer: all its images, cluster by cluster, each with its unit's number and classes.

cluster 0: 41 units, for cat, dog
[ image ] [ image ] [ image ] ...
  3  cat    17 dog    21 cat
dead: 17 units
5, 19, 40, ...
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.passes.visualising.clusters import DEAD

COLOURS: Final = (
    "#2563a8",
    "#d9822b",
    "#1a7f4b",
    "#b3381f",
    "#7a4fb0",
    "#c9a400",
    "#3d8f9e",
    "#a8577e",
    "#5c6878",
    "#6b8e23",
)
"""Frames tell clusters apart; they come again where there are more."""
_DPI: Final = 100
_TILE: Final = 0.62
"""Inches of an image with the gap beside it."""
_TEXT: Final = 0.17
"""Inches of a line below an image."""
_LONGEST: Final = 13
"""Letters that fit below an image."""
_HEAD: Final = 0.32
"""Inches of a heading."""


@dataclass(frozen=True)
class Sheet:
    """What stands on the sheet of a layer."""

    title: str
    images: FloatArray
    """[units, channels, height, width], as the model takes them."""
    clusters: IntArray
    """[units]"""
    numbers: IntArray
    """[units]: what each unit is called."""
    labels: Sequence[str] = ()
    """What stands below each image; empty where nothing is known."""
    headings: Sequence[str] = ()
    """What is said of each cluster; empty where nothing is known."""

    def png(self) -> bytes:
        """The sheet as a PNG picture."""
        order = [(c, np.flatnonzero(self.clusters == c)) for c in range(int(self.clusters.max(initial=-1)) + 1)]
        dead = np.flatnonzero(self.clusters == DEAD)
        columns = max(8, min(24, math.ceil(math.sqrt(2.0 * max(len(self.images), 1)))))
        tile = _TILE + _TEXT * (2 if self.labels else 1)
        heights = [_HEAD + tile * math.ceil(len(units) / columns) for _, units in order]
        wide = columns * _TILE + 0.2
        lost = _wrapped(self.numbers[dead], int(wide * 11)) if dead.size else []
        tall = 0.45 + sum(heights) + (_HEAD + 0.17 * len(lost) if lost else 0.0) + 0.1
        figure = Figure(figsize=(wide, tall), dpi=_DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, wide)
        axes.set_ylim(tall, 0)
        axes.axis("off")
        axes.text(0.1, 0.28, self.title, fontsize=11, va="center", parse_math=False)
        y = 0.45
        shown = pictures(self.images)
        for (cluster, units), height in zip(order, heights, strict=True):
            heading = f"cluster {cluster}: {_units(len(units))}"
            if self.headings and self.headings[cluster]:
                heading += f", for {_told(self.headings[cluster])}"
            colour = COLOURS[cluster % len(COLOURS)]
            axes.text(
                0.1, y + _HEAD / 2, heading, fontsize=9, va="center", color=colour, weight="bold", parse_math=False
            )
            for index, unit in enumerate(units.tolist()):
                left, top = 0.1 + _TILE * (index % columns), y + _HEAD + tile * (index // columns)
                side = _TILE - 0.08
                box = (left, left + side, top + side, top)
                axes.imshow(
                    shown[unit], extent=box, interpolation="nearest", aspect="auto", cmap="gray", vmin=0, vmax=255
                )
                axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=1.2))
                below = str(self.numbers[unit]) + (f"\n{_short(_told(self.labels[unit]))}" if self.labels else "")
                where = (left + side / 2, top + side + 0.02)
                axes.text(*where, below, fontsize=6, va="top", ha="center", linespacing=1.1, parse_math=False)
            y += height
        if lost:
            axes.text(0.1, y + _HEAD / 2, f"dead: {_units(dead.size)}", fontsize=9, va="center", weight="bold")
            axes.text(0.1, y + _HEAD, "\n".join(lost), fontsize=7, va="top", linespacing=1.3)
        axes.set_xlim(0, wide)
        axes.set_ylim(tall, 0)
        found = io.BytesIO()
        figure.savefig(found, format="png", metadata={"Software": None})
        return found.getvalue()


def _told(classes: str) -> str:
    """`class 3` of a class without a name, which would look like a unit's number; `classes 3, 5` of several."""
    return f"class{'es' if ', ' in classes else ''} {classes}" if classes[:1].isdigit() else classes


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _units(count: int) -> str:
    return f"{count} unit{'' if count == 1 else 's'}"


def _wrapped(numbers: IntArray, width: int) -> list[str]:
    """Numbers in lines of about so many characters."""
    lines = [""]
    for number in map(str, numbers):
        if lines[-1] and len(lines[-1]) + len(number) + 2 > width:
            lines[-1] += ","
            lines.append("")
        lines[-1] += f", {number}" if lines[-1] else number
    return lines


def pictures(images: FloatArray) -> npt.NDArray[np.uint8]:
    """[images, channels, height, width] -> [images, height, width(, 3)] in bytes: of three channels colours, of any
    other number greys, the mean of the channels. Each image is stretched to the full range by itself."""
    shown = images if images.shape[1] == 3 else images.mean(1, keepdims=True)
    flat = shown.reshape(len(shown), -1)
    low, high = (x[:, None, None, None] for x in (flat.min(1), flat.max(1)))
    scaled = np.round(255 * (shown - low) / np.where(high > low, high - low, 1.0)).astype(np.uint8)
    return scaled[:, 0] if shown.shape[1] == 1 else np.moveaxis(scaled, 1, 3)
