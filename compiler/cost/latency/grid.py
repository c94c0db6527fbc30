"""At which widths a layer is measured, and what lies between.

A layer's time is no smooth function of its widths: vector units and cache blocks make a staircase, and a width that is
no multiple of four may run in another, slower kernel. A grid that showed all of this for both widths at once would have
thousands of points. So there is a coarse grid over both, refined along each width by a fine line that is measured at
the full other one:

    time(i, o) = coarse(i, o) * line(i) / coarse line(i) * line(o) / coarse line(o)

which is exact on the coarse grid and on both lines. Widths that are no multiples of four are a few *strays* on each
line: between them, the ratio to their neighbours is interpolated, for odd ones and for even ones apart. A width that
can't change has one point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from prunec.compiler.cost.latency.layers import Layer
from prunec.compiler.ir.program import FloatArray

Point = tuple[int, int]
"""Inner and outer width."""
Times = Mapping[Point, float]

ALIGNED: Final = 4
"""Runtimes keep channels in blocks of four or more; other widths take other ways."""
VECTOR: Final = 16
"""The most float32 numbers that one instruction takes: steps of the staircase are as wide, or an even part of it."""
SHARES: Final = (1.0, 0.75, 0.5, 0.25, 0.125)
"""The coarse grid, as shares of the full width."""
STRAYS: Final = (1.0, 0.5, 0.25)
"""Near these shares of the full width, widths that are no multiples of four are measured, too."""


@dataclass(frozen=True)
class Line:
    """One width of a layer, from 1 to `full`: where it is measured."""

    full: int
    step: int
    """Widths are multiples of this: the number of groups, say."""
    open: bool
    """Whether the width may change; else `full` is the one width that is measured."""
    stairs: bool
    """Whether the width behind each step of the staircase is measured, too: for output channels alone."""

    @property
    def _align(self) -> int:
        return ALIGNED if self.full >= 2 * ALIGNED else 1

    @property
    def top(self) -> int:
        """The largest width that is a multiple of four: the other width's line is measured at it."""
        return self.full - self.full % self._align if self.open else self.full

    @cached_property
    def coarse(self) -> tuple[int, ...]:
        """The widths of the coarse grid, rising."""
        if not self.open:
            return (self.full,)
        grain = VECTOR if self.full >= 4 * VECTOR else self._align
        return self._sorted([self.top, *(int(self.full * share) // grain * grain for share in SHARES[1:])])

    @cached_property
    def base(self) -> tuple[int, ...]:
        """The aligned widths of the line, rising; the coarse ones are among them."""
        if not self.open:
            return (self.full,)
        wanted = [*self.coarse, self._align, *range(VECTOR, min(self.full, 256) + 1, VECTOR)]
        if self.stairs:
            wanted += range(VECTOR + ALIGNED, min(self.full, 128) + 1, VECTOR)
        # Kernels take four vectors of channels at once: between them the staircase repeats.
        for edge in range(256, min(self.full, 512) + 1, 4 * VECTOR):
            wanted += [edge, edge - VECTOR]
        wanted += range(512, self.full + 1, max(128, self.full // 16 // 64 * 64))
        return self._sorted(wanted)

    @cached_property
    def strays(self) -> tuple[int, ...]:
        """Widths of the line that are no multiples of four; the full one may be among them."""
        if not self.open or self._align == 1 or self.step % ALIGNED == 0:
            return ()
        near = [int(self.full * share) for share in STRAYS]
        wanted = [self.full, *(w // ALIGNED * ALIGNED + more for w in near for more in (2, 3)), 1, 2, 5]
        snapped = {w // self.step * self.step for w in wanted}
        return tuple(sorted(w for w in snapped if 0 < w <= self.full and w % ALIGNED))

    def _sorted(self, widths: Sequence[int]) -> tuple[int, ...]:
        """The widths as multiples of the step, rising, without repeats and what is out of range."""
        snapped = {w // self.step * self.step for w in widths}
        return tuple(sorted(w for w in snapped if 0 < w <= self.full)) or (self.full,)

    def weights(self, times: Mapping[int, float]) -> FloatArray:
        """[full + 1, coarse widths]: how each width is interpolated from the coarse ones, given the line's times."""
        widths = np.arange(self.full + 1)
        hats = np.stack([np.interp(widths, self.coarse, row) for row in np.eye(len(self.coarse))], axis=1)
        coarse = hats @ np.array([times[w] for w in self.coarse])
        line = _through(self.base, [times[w] for w in self.base], widths)
        return np.asarray(hats * (line * self._astray(times, line) / coarse)[:, None])

    def _astray(self, times: Mapping[int, float], line: FloatArray) -> FloatArray:
        """[full + 1]: how many times slower each width is than a multiple of four of its size would be."""
        ratio = np.ones(self.full + 1)
        widths = np.arange(self.full + 1)
        for odd in (True, False):
            known = [w for w in self.strays if w % 2 == odd]
            mine = (widths % ALIGNED != 0) & (widths % 2 == odd)
            if known:
                ratio[mine] = np.interp(widths, known, [times[w] / line[w] for w in known])[mine]
        return ratio


def _through(known: Sequence[int], times: Sequence[float], widths: npt.NDArray[np.int64]) -> FloatArray:
    """The line through the known times, at `widths`; beyond its ends it goes on in the same direction."""
    line = np.interp(widths, known, times)
    if len(known) > 1:
        for end, other, beyond in ((0, 1, widths < known[0]), (-1, -2, widths > known[-1])):
            slope = (times[end] - times[other]) / (known[end] - known[other])
            line[beyond] = np.maximum(times[end] + slope * (widths[beyond] - known[end]), times[end] / 10)
    return np.asarray(line)


@dataclass(frozen=True)
class Grid:
    """The pairs of widths at which a layer is measured."""

    inner: Line
    outer: Line

    @staticmethod
    def of(layer: Layer, open_: tuple[bool, bool]) -> Grid:
        """The grid of a layer; `open_` says which of its widths, inner and outer, may change. Where groups leave as a
        whole, the outer width decides the inner one."""
        inner, outer = layer.steps
        follows = layer.whole
        return Grid(
            Line(layer.inner, inner, open_[0] and not follows, stairs=False),
            Line(layer.outer, outer, open_[1], stairs=not follows),
        )

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """All pairs that are measured: the coarse grid, and both lines."""
        found = [(i, o) for i in self.inner.coarse for o in self.outer.coarse]
        found += [(i, self.outer.top) for i in (*self.inner.base, *self.inner.strays)]
        found += [(self.inner.top, o) for o in (*self.outer.base, *self.outer.strays)]
        return tuple(dict.fromkeys(found))

    def surface(self, times: Times) -> Surface:
        """The measured times as a function of any widths."""
        inner = {i: times[i, self.outer.top] for i in (*self.inner.base, *self.inner.strays)}
        outer = {o: times[self.inner.top, o] for o in (*self.outer.base, *self.outer.strays)}
        values = np.array([[times[i, o] for o in self.outer.coarse] for i in self.inner.coarse])
        return Surface(self.inner.weights(inner), self.outer.weights(outer), values)


@dataclass(frozen=True)
class Surface:
    """A layer's time at every pair of widths: `inner[i] @ values @ outer[o]` seconds."""

    inner: FloatArray
    """[inner width + 1, coarse widths]"""
    outer: FloatArray
    """[outer width + 1, coarse widths]"""
    values: FloatArray
    """[coarse inner widths, coarse outer widths]: seconds."""

    def at(self, inner: int, outer: int) -> float:
        """Seconds at these widths."""
        return float(self.inner[inner] @ self.values @ self.outer[outer])
