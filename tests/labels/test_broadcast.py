"""Operands that are broadcast against each other: what goes together, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flowing import along, carried, empty_flow, joined, reasons
from torch import nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.labels.broadcast import combine, is_loose, pin_loose, whole, with_picks
from prunec.compiler.tracing.trace import trace

GRID = np.arange(8).reshape(1, 2, 1, 4)  # [n, heads, tokens, width]
SHAPE = (3, 2, 5, 4)
TOGETHER = [0, 0, 0, 0, 4, 4, 4, 4]

MEETINGS = {
    "a number": ([((along(1, 2, 0, 1),), (3, 2)), ((), ())], [0, 1], []),
    "channel by channel": ([((along(1, 2, 0, 1),), (3, 2)), ((along(1, 2, 2, 3),), (3, 2))], [0, 1, 0, 1], []),
    "a vector": ([((along(1, 2, 0, 1),), (3, 2)), ((along(0, 1, 2, 3),), (2,))], [0, 1, 0, 1], []),
    "the image": ([((along(1, 2, 0, 1),), (3, 2)), ((), (3, 2))], [-1, -1], ["meets positions that are fixed at here"]),
    "one column": ([((along(1, 2, 0, 1),), (3, 2)), ((), (3, 1))], [0, 1], []),
    "rows and columns": ([((along(0, 2, 0, 1),), (2, 1)), ((along(1, 2, 2, 3),), (1, 2))], [0, 1, 2, 3], []),
    "angles over widths": ([((GRID,), SHAPE), ((), (5, 4))], TOGETHER, []),
    "a gate of heads": ([((GRID,), SHAPE), ((along(0, 3, 8, 9),), (2, 1, 1))], [*range(10)], []),
    "two grids": ([((GRID,), SHAPE), ((GRID + 8,), SHAPE)], [*range(8), *range(8)], []),
    "all of it is fixed": ([((GRID,), SHAPE), ((), SHAPE)], [-1] * 8, ["meets positions that are fixed at here"]),
}


@pytest.mark.parametrize(("operands", "expected", "why"), MEETINGS.values(), ids=MEETINGS)
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_what_meets_goes_together(operands, expected, why, turned):
    flow, node = empty_flow(len(expected))
    combine(flow, node, operands[::-1] if turned else operands)
    assert joined(flow) == expected
    assert reasons(flow) == why


def test_the_result_varies_along_what_any_operand_does():
    flow, node = empty_flow(4)
    columns, rows = along(1, 2, 0, 1), along(0, 2, 2, 3)
    found = combine(flow, node, [((columns,), (2, 2)), ((rows,), (2, 1))])
    assert [labels.shape for labels in found] == [(1, 2), (2, 1)]
    (alone,) = combine(flow, node, [((columns,), (2, 2)), ((), ())])
    assert alone is columns, "the very same array: that keeps long chains cheap"


@pytest.mark.parametrize(
    "line", [along(0, 3, 8, 9), along(2, 3, 10, 11, 12, 13)], ids=["a gate of heads", "a table of widths"]
)
def test_a_grid_meets_a_line_and_stays(line):
    """What the grid loses is decided later, by all that is known of it."""
    flow, node = empty_flow(14)
    (found,) = combine(flow, node, [((GRID,), SHAPE), ((line,), (2, 1, 4))])
    assert found is GRID
    [meeting] = flow.meetings
    assert meeting.grid is GRID
    assert meeting.line.tolist() == line[None].tolist()
    assert joined(flow) == [*range(14)]


def test_a_grid_whose_widths_go_together_is_met_as_a_line():
    flow, node = empty_flow(10)
    whole(flow, GRID, 3, node)
    (found,) = combine(flow, node, [((GRID,), SHAPE), ((along(0, 3, 8, 9),), (2, 1, 1))])
    assert found.shape == (1, 2, 1, 1)
    assert joined(flow) == [*TOGETHER, 0, 4]
    assert flow.meetings == []


def test_whole_unifies_all_that_differs_along_a_dimension():
    flow, node = empty_flow(8)
    assert whole(flow, GRID, 3, node).tolist() == [[[[0]], [[4]]]]
    assert joined(flow) == TOGETHER


def test_copies_are_pinned_where_they_are_loose():
    flow, _ = empty_flow(6)
    labels = along(1, 2, 0, 1, 2, 3)
    pin_loose(flow, [labels], "is a copy")
    assert not is_loose(flow, labels)
    assert reasons(flow) == []
    flow.loosen(np.array([2, 3]))
    pin_loose(flow, [labels, along(0, 2, 4, 5)], "is a copy")
    assert is_loose(flow, labels)
    assert not is_loose(flow, along(0, 2, 4, 5))
    assert [pin.labels.tolist() for pin in flow.pins] == [[2, 3]]


@pytest.mark.parametrize(
    ("shape", "free", "picks"),
    [((4,), True, [0]), ((3, 4), True, [1]), ((3, 4), False, []), ((1,), True, []), ((3, 1), True, [])],
    ids=["a vector", "a table", "a parameter's", "a number", "a column"],
)
def test_what_no_parameter_writes_is_picked(shape, free, picks):
    flow, _ = empty_flow(4)
    channels, waves = carried(flow, (3, 4), along(1, 2, 0, 1, 2, 3)), carried(flow, shape)
    vars(flow)["parameter_free"] = {waves} if free else set()
    node = flow.program.graph.call_method("add", (channels, waves))
    operands = with_picks(flow, node)
    assert [pick.dim for pick in flow.picks.get(node, ())] == picks
    assert len(operands[1][0]) == len(picks)
    assert len(flow.counted) == len(picks)
    combine(flow, node, operands)
    if picks:
        assert joined(flow) == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_column_of_waves_goes_with_each_copy_of_a_channel():
    """Channels that are repeated along their dimension meet waves: a channel's copies go together, and so do theirs."""
    flow, _ = empty_flow(2)
    channels, waves = carried(flow, (3, 4), along(1, 2, 0, 1, 0, 1)), carried(flow, (3, 4))
    vars(flow)["parameter_free"] = {waves}
    node = flow.program.graph.call_method("add", (channels, waves))
    combine(flow, node, with_picks(flow, node))
    assert [pick.dim for pick in flow.picks[node]] == [1]
    assert joined(flow) == [0, 1, 0, 1, 0, 1]
    assert reasons(flow) == []


class Degrees(nn.Module):
    """Sums over neighbours, divided by how many there are; both are added up onto zeros."""

    def __init__(self, made):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.made = nn.Linear(5, 8), nn.Linear(8, 4), made

    def forward(self, x, edges):
        y = self.a(x)
        sums = self.made(y).index_add_(0, edges[1], y[edges[0]])
        degrees = torch.zeros(len(x)).index_add_(0, edges[1], torch.ones(edges.shape[1])).clamp(min=1)
        return self.b(sums / degrees[:, None])


@pytest.mark.parametrize("made", [torch.zeros_like, lambda y: y.new_zeros(y.shape), lambda y: torch.zeros(len(y), 8)])
def test_zeros_that_channels_are_written_into_go_with_these(made):
    inputs = (torch.randn(6, 5), torch.randint(0, 6, (2, 9)))
    assert analyse(trace(Degrees(made).eval(), inputs)).groups["a"].free.sum() == 8


def test_zeros_that_are_half_written_into_stay_where_constants_meet_them():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(8, 3)

        def forward(self, x):
            zeros, ones = torch.zeros(len(x), 8), torch.zeros(len(x), 8) + 1
            zeros[:, :4] = self.a(x)
            return self.b(zeros * 2 + ones)

    x = torch.randn(6, 5)
    program = trace(Half().eval(), (x,))
    found = analyse(program).groups["a"]
    assert not found.free.any()
    assert any("copies" in reason for reason in found.pinned)
