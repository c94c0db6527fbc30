"""Where a layer is measured, and how its time is read off at every width between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from timing import CONV

from prunec.compiler.cost.latency.grid import Grid, Line

LINES = [(full, step) for full in (1, 3, 7, 8, 10, 24, 64, 96, 144, 512, 960, 1000, 4096) for step in (1, 2, 4)]


LINES = [(full, step) for full, step in LINES if full % step == 0]


@pytest.mark.parametrize("stairs", [True, False])
@pytest.mark.parametrize(("full", "step"), LINES)
def test_a_line_lies_in_its_range(full, step, stairs):
    line = Line(full, step, True, stairs)
    for widths in (line.coarse, line.base, line.strays):
        assert list(widths) == sorted(set(widths))
        assert all(0 < width <= full and width % step == 0 for width in widths)
    assert set(line.coarse) <= set(line.base)
    assert line.top == max(line.coarse) == max(line.base)
    assert full in (*line.base, *line.strays)
    assert len(line.base) + len(line.strays) < 64


def test_a_width_that_cannot_change_has_one_point():
    assert Grid.of(CONV, (False, False)).points == ((8, 16),)
    assert {inner for inner, _ in Grid.of(CONV, (False, True)).points} == {8}


def at_every_width(grid, formula):
    surface = grid.surface({point: formula(*point) for point in grid.points})
    inner = range(4, grid.inner.full + 1) if grid.inner.open else [grid.inner.full]
    outer = range(4, grid.outer.full + 1) if grid.outer.open else [grid.outer.full]
    return [(surface.at(i, o), formula(i, o), i, o) for i in inner for o in outer]


SMOOTH = {
    "product": lambda i, o: i * o,
    "line_by_line": lambda i, o: (3 + i) * (7 + o),
    "constant": lambda i, o: 2.0,
}


@pytest.mark.parametrize("formula", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("widths", [(48, 80), (64, 10), (30, 100)])
def test_what_grows_evenly_is_read_exactly(formula, widths):
    grid = Grid.of(replace(CONV, inner=widths[0], outer=widths[1]), (True, True))
    for got, want, *_ in at_every_width(grid, formula):
        assert got == pytest.approx(want, rel=1e-9)


def stairs(i, o):
    """Sixteen channels leave at once, and a fourth block of them costs less than the third."""
    blocks = -(-o // 16)
    return i * (blocks // 4 * 4 + (0, 1, 2, 3.6)[blocks % 4])


def test_steps_are_seen():
    grid = Grid.of(replace(CONV, inner=64, outer=128), (True, True))
    errors = [abs(got / want - 1) for got, want, _, o in at_every_width(grid, stairs) if o % 16 in (0, 4, 8, 12)]
    assert max(errors) < 1e-9


def test_slow_widths_are_seen():
    grid = Grid.of(replace(CONV, inner=64, outer=96), (True, True))

    def slow(i, o):
        return i * o * (3.0 if i % 2 else 1.5 if i % 4 else 1.0) * (2.0 if o % 4 else 1.0)

    for got, want, *_ in at_every_width(grid, slow):
        assert got == pytest.approx(want, rel=1e-9)


def test_every_point_is_read_as_it_was_measured():
    rng = np.random.default_rng(0)
    grid = Grid.of(replace(CONV, inner=60, outer=70), (True, True))
    times = {point: float(rng.uniform(1, 2)) for point in grid.points}
    surface = grid.surface(times)
    for inner, outer in grid.points:
        assert surface.at(inner, outer) == pytest.approx(times[inner, outer])
