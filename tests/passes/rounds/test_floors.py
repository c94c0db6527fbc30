"""Floors: how a plan writes them, and what they ask for."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from prunec.passes.rounds.floors import Bound, Floor, bound

FLOOR = TypeAdapter(Floor)


@pytest.mark.parametrize(
    ("written", "read"),
    [("-2pt", "-2pt"), (" - 0.5 pt", "-0.5pt"), ("-5%", "-5%"), ("90%", 0.9), (0.9, 0.9), ("0.25", 0.25), (12, 12.0)],
)
def test_what_may_be_written(written, read):
    assert FLOOR.validate_python(written) == read
    assert FLOOR.validate_python(read) == read


@pytest.mark.parametrize("written", ["2pt", "-2", -0.5, "much", "", None, True, [1], "1e-3", "-2pt%"])
def test_what_may_not(written):
    with pytest.raises(ValidationError, match="must be a loss such as -2pt or -5%"):
        FLOOR.validate_python(written)


@pytest.mark.parametrize(
    ("floor", "whole", "higher", "value"),
    [
        ("-2pt", 0.97, True, 0.95),
        ("-10%", 0.9, True, 0.81),
        ("-10%", 0.2, False, 0.22),
        ("-10%", -5.0, True, -5.5),
        (0.9, 0.5, True, 0.9),
        (3.0, 0.5, False, 3.0),
    ],
)
def test_what_a_floor_asks_for(floor, whole, higher, value):
    found = bound(floor, whole, higher_is_better=higher)
    assert found.value == pytest.approx(value)
    assert found.higher_is_better is higher


def test_what_holds_a_floor():
    assert [Bound(0.9).holds(value) for value in (0.95, 0.9, 0.89, math.nan)] == [True, True, False, False]
    least = [Bound(2.0, higher_is_better=False).holds(value) for value in (1.9, 2.0, 2.1, math.nan)]
    assert least == [True, True, False, False]
    assert bound("-2pt", 0.97).holds(0.95)
