"""Dimensions that an operation takes together: pinned where order or number counts, free where zeros add nothing."""

from __future__ import annotations

import numpy as np
import pytest
from flowing import along, carried, empty_flow, joined, reasons

from prunec.compiler.labels.broadcast import combine
from prunec.compiler.labels.flow import FIXED
from prunec.compiler.labels.reduce import added_up, mixed

CHANNELS, GRID = along(1, 3, 0, 1, 2, 3), np.arange(4).reshape(2, 2, 1)
TABLE = {
    "along the channels": (CHANNELS, [1], [FIXED] * 4, [0, 1, 2, 3], 0),
    "counted from the back": (CHANNELS, [-2], [FIXED] * 4, None, 0),
    "beside the channels": (CHANNELS, [2], [0, 1, 2, 3], [0, 1, 2, 3], 1),
    "across a grid": (GRID, [1], [0, 0, 2, 2], [0, 0, 2, 2], 1),
    "along all of a grid": (GRID, [0, 1], [FIXED] * 4, [0, 1, 2, 3], 0),
}


@pytest.mark.parametrize(("labels", "dims", "expected", "_added", "left"), TABLE.values(), ids=TABLE)
def test_what_is_mixed(labels, dims, expected, _added, left):
    flow, node = empty_flow(4)
    found = mixed(flow, node, carried(flow, (2, 4, 5), labels), dims, "is sorted")
    assert joined(flow) == expected
    assert len(found) == left
    assert reasons(flow) == (["is sorted at here"] if FIXED in expected else [])


@pytest.mark.parametrize(
    ("labels", "dims", "expected", "left"),
    [(row[0], row[1], row[3], row[4]) for row in TABLE.values() if row[3]],
    ids=[name for name, row in TABLE.items() if row[3]],
)
def test_what_is_added_up(labels, dims, expected, left):
    flow, node = empty_flow(4)
    found = added_up(flow, node, carried(flow, (2, 4, 5), labels), dims)
    assert joined(flow) == expected
    assert len(found) == left
    taken = any(labels.shape[dim] > 1 for dim in dims)
    assert [pin.reason for pin in flow.counted] == (["is added up at here"] if taken else [])


def test_a_field_that_nothing_happens_to_stays_the_same_array():
    flow, node = empty_flow(4)
    value = carried(flow, (2, 4, 5), CHANNELS)
    assert mixed(flow, node, value, [0, 2], "is sorted")[0] is CHANNELS
    assert added_up(flow, node, value, [0, 2])[0] is CHANNELS


def test_copies_are_not_added_up():
    flow, node = empty_flow(4)
    flow.loosen(CHANNELS)
    added_up(flow, node, carried(flow, (2, 4, 5), CHANNELS), [1])
    assert reasons(flow) == ["is one of several copies that here adds up"]


def test_what_lies_beside_the_dimension_stays_behind_what_goes():
    """Of two kinds of channels, along two dimensions, the one that isn't taken together keeps its labels."""
    rows, columns = along(1, 3, 0, 1), along(2, 3, 2, 3)
    flow, node = empty_flow(4)
    (left,) = mixed(flow, node, carried(flow, (2, 2, 2), rows, columns), [1], "is sorted")
    assert left is columns
    assert joined(flow) == [FIXED, FIXED, 2, 3]
    flow, node = empty_flow(4)
    (left,) = added_up(flow, node, carried(flow, (2, 2, 2), rows, columns), [1])
    assert left is columns
    assert joined(flow) == [0, 1, 2, 3]


def test_what_a_whole_grid_has_become_stays():
    """Where rows of a grid go together, and columns do, a sum beside both is left with a single channel."""
    flow, node = empty_flow(4)
    (line,) = added_up(flow, node, carried(flow, (2, 2, 5), GRID), [0])
    (one,) = mixed(flow, node, carried(flow, (2, 2, 5), GRID), [1], "is sorted")
    assert (line.shape, one.shape) == ((1, 2, 1), (2, 1, 1))
    (left,) = combine(flow, node, [((GRID,), (2, 2, 5)), ((), (2, 2, 5))])
    assert left.size == 1
    assert added_up(flow, node, carried(flow, (2, 2, 5), left), [2]) == ()
    assert joined(flow) == [FIXED] * 4
    assert reasons(flow) == ["here picks a single channel"]
