"""Curves: where their points lie, what is marked, and what can't be drawn."""

from __future__ import annotations

import math

import pytest

from prunec.compiler.report.curves import DOTS, MARGIN, PICTURE, curve


def told(value):
    return f"{value:g} m"


def test_ends_lie_at_the_edges_and_values_go_upwards():
    found = curve("height", [0, 1, 4], [10.0, 30.0, 20.0], told)
    width, tall = PICTURE
    assert [dot.x for dot in found.dots] == pytest.approx([MARGIN, MARGIN + (width - 2 * MARGIN) / 4, width - MARGIN])
    assert [dot.y for dot in found.dots] == pytest.approx([tall - MARGIN, MARGIN, tall / 2])
    assert (found.title, found.top, found.bottom, found.bound) == ("height", "30 m", "10 m", None)
    assert found.line == " ".join(f"{dot.x:.2f},{dot.y:.2f}" for dot in found.dots)
    assert [dot.note for dot in found.dots] == ["round 0: 10 m", "round 1: 30 m", "round 4: 20 m"]


def test_the_picture_reaches_what_it_is_held_against():
    found = curve("share", [0, 1], [1.0, 0.5], told, least=0.0)
    assert found.bottom == "0 m"
    assert found.dots[1].y == pytest.approx(PICTURE[1] / 2)
    held = curve("share", [0, 1], [1.0, 0.5], told, bound=0.25)
    assert (held.bottom, held.held) == ("0.25 m", "0.25 m")
    assert held.bound == pytest.approx(PICTURE[1] - MARGIN)


def test_what_was_given_up_is_marked_and_not_part_of_the_line():
    found = curve("share", [0, 1, 2], [3.0, 2.0, 1.0], told, lost={2})
    assert [dot.lost for dot in found.dots] == [False, False, True]
    assert len(found.line.split()) == 2


def test_of_many_points_only_the_line_is_drawn():
    count = DOTS + 1
    found = curve("share", range(count), [float(i) for i in range(count)], told, lost={count - 1})
    assert [dot.note for dot in found.shown] == [f"round {count - 1}: {count - 1} m"]
    assert len(found.line.split()) == count - 1


def test_what_was_not_measured_has_no_point():
    assert len(curve("x", [0, 1, 2], [1.0, None, 2.0], told).dots) == 2
    assert len(curve("x", [0, 1, 2], [1.0, math.nan, 2.0], told).dots) == 2
    assert curve("x", [0, 1], [1.0, None], told) is None
    assert curve("x", [], [], told) is None


def test_a_flat_curve_lies_in_the_middle():
    assert {dot.y for dot in curve("x", [0, 1], [5.0, 5.0], told).dots} == {PICTURE[1] / 2}
