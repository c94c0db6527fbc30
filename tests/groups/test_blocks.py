"""Values that vary along several dimensions stay rectangular, whatever is joined with what."""

from __future__ import annotations

import numpy as np
import pytest
from nets import program_of

from prunec.compiler.groups.blocks import components, first_along, square_blocks
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.labels.flow import FIXED, Flow, Meeting


def flow_of(*blocks: np.ndarray, choice: str = "") -> Flow:
    """A flow whose values are these blocks, at nodes `v0`, `v1`, ..."""
    said = Granularity(grouped=(("*", choice),)) if choice else Granularity()
    flow = Flow(program_of("chain").derive(granularity=said))
    flow.own(int(max(block.max() for block in blocks)) + 1)
    flow.blocks = [(block, f"v{number}") for number, block in enumerate(blocks)]
    return flow


def squared(flow: Flow) -> list[int]:
    return square_blocks(flow, np.arange(flow.count))[0].tolist()


GRID = np.arange(8).reshape(2, 4)
SAME, ROWS = [0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 0, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("choice", "expected"), [("", SAME), ("same", SAME), ("equal", SAME), ("free", SAME), ("whole", ROWS)]
)
def test_a_block_is_divided_as_the_plan_says(choice, expected):
    flow = flow_of(GRID, choice=choice)
    assert squared(flow) == expected
    assert [block.choice for block in flow.divided.values()] == (
        [{"equal": "same", "free": "same"}.get(choice, choice)] if choice else []
    )


def test_what_leaves_more_units_is_taken():
    assert squared(flow_of(GRID.T)) == SAME
    tall = np.arange(8).reshape(4, 2)
    assert squared(flow_of(tall)) == [0, 0, 2, 2, 4, 4, 6, 6], "four rows, not two positions"


def test_one_block_disturbs_another():
    """The first joins 0 with 4; that takes the second along."""
    other = np.array([[0, 8], [4, 9]])
    assert squared(flow_of(GRID, other))[8:] == [8, 8]


def test_a_rectangular_block_is_left_alone():
    same = np.array([[0, 1], [0, 1]])
    assert squared(flow_of(same, choice="whole")) == [0, 1]


def test_a_block_behind_a_rectangular_one_is_divided_as_the_plan_says():
    same = np.array([[8, 9], [8, 9]])
    assert squared(flow_of(same, GRID, choice="whole"))[:8] == ROWS


def test_what_shares_a_block_with_fixed_positions_is_pinned():
    block = np.array([[0, FIXED, 1], [2, 3, 4]])
    component, pins = square_blocks(flow_of(block), np.arange(5))
    assert component[0] == component[2]
    assert {int(label) for pin in pins for label in pin.labels} >= {3}
    assert {pin.reason for pin in pins} == {"shares a block with fixed positions at v0"}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [([], [0, 1, 2, 3]), ([(3, 1)], [0, 1, 2, 1]), ([(3, 2), (2, 1)], [0, 1, 1, 1]), ([(0, 0)], [0, 1, 2, 3])],
    ids=["none", "one", "chain", "itself"],
)
def test_components_are_named_by_their_smallest_label(pairs, expected):
    left, right = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    assert components(4, left, right).tolist() == expected


def test_the_edge_along_a_dimension():
    assert first_along(GRID, 0).tolist() == [[0], [4]]
    assert first_along(GRID, 1).tolist() == [[0, 1, 2, 3]]


# -- grids and lines -------------------------------------------------------------------------------------------------

FIXED_LINE = "meets positions that are fixed at here"
HEADS, WIDTHS = np.array([[8], [9]]), np.array([[10, 11, 12, 13]])


def met(*lines: np.ndarray, known: list[int] | None = None) -> tuple[list[int], list[str]]:
    """The components and reasons after `GRID` met these lines; `known` is what its labels were joined to before."""
    flow = flow_of(GRID)
    flow.own(6)
    flow.meetings = [Meeting(GRID, line, "here") for line in lines]
    found, pins = square_blocks(flow, np.array([*(known or range(8)), *range(8, 14)]))
    return found.tolist(), [f"{pin.labels.ravel().tolist()} {pin.reason}" for pin in pins]


def test_a_grid_that_loses_rows_leaves_a_line_of_widths_alone():
    found, pins = met(WIDTHS, known=ROWS)
    assert found == [*ROWS, *range(8, 14)]
    assert pins == ["[10, 11, 12, 13] crosses what goes as a whole at here"]


def test_a_grid_that_loses_positions_takes_a_line_of_widths_along():
    found, pins = met(WIDTHS, known=SAME)
    assert found == [*SAME, 8, 9, 0, 1, 2, 3]
    assert pins == []


def test_a_grid_that_loses_positions_leaves_a_line_of_rows_alone():
    found, pins = met(HEADS, known=SAME)
    assert found == [*SAME, *range(8, 14)]
    assert pins == ["[8, 9] crosses what goes as a whole at here"]


def test_of_two_lines_the_first_decides_where_nothing_is_known():
    assert met(HEADS, WIDTHS)[0] == [*ROWS, 0, 4, *range(10, 14)]
    assert met(WIDTHS, HEADS)[0] == [*SAME, 8, 9, 0, 1, 2, 3]


def test_a_line_with_a_fixed_position_pins_what_goes_with_it():
    found, pins = met(np.array([[10, FIXED, 12, 13]]), known=SAME)
    assert pins == [f"[1, 5] {why}" for why in (FIXED_LINE, "shares a block with fixed positions at v0")]
    assert found[0] == found[10]
