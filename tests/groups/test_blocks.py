"""Values that vary along several dimensions stay rectangular, whatever is joined with what."""

from __future__ import annotations

import numpy as np
import pytest
from nets import program_of

from prunec.compiler.groups.blocks import components, first_along, square_blocks
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.labels.flow import FIXED, Flow


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
