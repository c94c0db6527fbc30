"""Curves for the page, in the units of its pictures: a figure against rounds, epochs or updates.

PICTURE = (960, 150)    x from the first to the last step, y from the lowest to the highest value, upwards
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

PICTURE: Final = (960.0, 150.0)
"""Width and height of a curve's picture, in its own units."""
MARGIN: Final = 8.0
"""What is left free around a curve, so that its ends can be seen."""
DOTS: Final = 120
"""With more points, only the line is drawn."""


@dataclass(frozen=True)
class Dot:
    """A point of a curve; `note` is what is told where one points at it."""

    x: float
    y: float
    note: str
    lost: bool = False
    """Whether what it stands for was given up."""


@dataclass(frozen=True)
class Curve:
    """A curve, and the words beside it."""

    title: str
    line: str
    """The points of a polyline; only those that are kept."""
    dots: tuple[Dot, ...]
    top: str
    bottom: str
    """The highest and the lowest value."""
    bound: float | None = None
    """The height of a line that the curve may not cross."""
    held: str = ""
    """Its value."""

    @property
    def shown(self) -> tuple[Dot, ...]:
        """The dots that are drawn: all of a few, of many those that were given up."""
        return self.dots if len(self.dots) <= DOTS else tuple(dot for dot in self.dots if dot.lost)


def curve(
    title: str,
    steps: Sequence[int],
    values: Sequence[float | None],
    told: Callable[[float], str],
    *,
    step: str = "round",
    least: float | None = None,
    bound: float | None = None,
    lost: Collection[int] = (),
) -> Curve | None:
    """The curve of the values that there are; None where there are fewer than two.

    `told` says a value in words; the picture reaches down to `least`, where that is given, and to the `bound`; steps in
    `lost` are marked, and the line doesn't lead to them.
    """
    found = [
        (number, value)
        for number, value in zip(steps, values, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if len(found) < 2:
        return None
    known = [value for _, value in found]
    reach = [*known, *(each for each in (least, bound) if each is not None)]
    low, high = min(reach), max(reach)
    first, last = found[0][0], found[-1][0]

    def across(number: int) -> float:
        return MARGIN + (PICTURE[0] - 2 * MARGIN) * (number - first) / (last - first)

    def up(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return PICTURE[1] - MARGIN - (PICTURE[1] - 2 * MARGIN) * share

    dots = tuple(
        Dot(across(number), up(value), f"{step} {number}: {told(value)}", number in lost) for number, value in found
    )
    line = " ".join(f"{dot.x:.2f},{dot.y:.2f}" for dot in dots if not dot.lost)
    if bound is None:
        return Curve(title, line, dots, told(high), told(low))
    return Curve(title, line, dots, told(high), told(low), up(bound), told(bound))
