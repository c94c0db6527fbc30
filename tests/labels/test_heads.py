"""Products over heads: whole heads, or the same positions of every head."""

from __future__ import annotations

import numpy as np
import pytest
from flowing import along, empty_flow, joined, reasons

from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.labels.heads import by_width

QUERY, SHAPE = np.arange(6).reshape(1, 2, 1, 3), (4, 2, 5, 3)  # [n, heads, tokens, width]
KEY = (QUERY + 6).swapaxes(2, 3)
INNER = (-1, -2)


def product(choice: str, *operands):
    flow, node = empty_flow(12)
    if choice:
        said = Granularity(attention=(("here", choice),))
        flow.program = flow.program.derive(granularity=said)
    return flow, by_width(flow, node, operands, INNER)


@pytest.mark.parametrize("choice", ["", "heads"])
def test_by_heads_the_factors_stay_as_they_are(choice):
    flow, (query, key) = product(choice, ((QUERY,), SHAPE), ((KEY,), (4, 2, 3, 5)))
    assert query[0][0] is QUERY
    assert key[0][0] is KEY
    assert flow.pairs == []
    assert flow.divided["here"].choice == "heads"
    assert flow.divided["here"].shape == "2 heads of 3"


def test_by_width_the_same_position_of_every_head_goes():
    flow, (query, key) = product("head_width", ((QUERY,), SHAPE), ((KEY,), (4, 2, 3, 5)))
    assert joined(flow) == [0, 1, 2, 0, 1, 2, 6, 7, 8, 6, 7, 8]
    assert [fields[0].shape for fields, _ in (query, key)] == [(1, 1, 1, 3), (1, 1, 3, 1)]
    assert [shape for _, shape in (query, key)] == [SHAPE, (4, 2, 3, 5)]


def test_heads_that_another_factor_fixes_leave_the_width_to_choose():
    flow, (query, _) = product("heads", ((QUERY,), SHAPE), ((), (4, 2, 3, 5)))
    assert joined(flow)[:6] == [0, 1, 2, 0, 1, 2]
    assert flow.divided["here"].choice == "head_width", "what holds, not what was asked for"
    assert query[0][0].shape == (1, 1, 1, 3)


def test_one_factor_for_all_heads_fixes_none():
    flow, (query, _) = product("", ((QUERY,), SHAPE), ((), (3, 5)))
    assert query[0][0] is QUERY
    assert flow.pairs == []


def test_what_varies_over_heads_alone_stays_where_widths_go():
    gate = along(1, 4, 6, 7)
    flow, (_, (fields, _)) = product("head_width", ((QUERY,), SHAPE), ((gate,), (4, 2, 5, 5)))
    assert fields == ()
    assert joined(flow)[6:8] == [-1, -1]
    assert reasons(flow) == ["varies over heads, which stay at here"]


def test_a_product_without_heads_is_not_divided():
    flow, operands = product("", ((along(1, 2, 0, 1, 2),), (5, 3)), ((), (3, 5)))
    assert len(operands) == 2
    assert flow.divided == {}
