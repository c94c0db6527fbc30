"""Products over heads: whole heads, or the same positions of every head."""

from __future__ import annotations

import numpy as np
import pytest
from flowing import along, carried, empty_flow, joined, reasons

from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.labels.heads import by_width, divided, shared

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


@pytest.mark.parametrize("turned", [False, True], ids=["grid first", "line first"])
def test_heads_that_a_gate_of_heads_meets_go_as_a_whole(turned):
    """The gate is a parameter with one label a head: what it meets has no widths to choose from any more."""
    gate = along(1, 4, 6, 7)
    flow, node = empty_flow(12)
    operands = [((QUERY,), SHAPE), ((gate,), (4, 2, 5, 5))]
    found = divided(flow, node, operands[::-1] if turned else operands, INNER)
    assert joined(flow)[:6] == [0, 0, 0, 3, 3, 3]
    assert [fields[0].shape for fields, _ in found][turned] == (1, 2, 1, 1)
    assert [fields[0] is gate for fields, _ in found] == [turned, not turned]


def test_a_product_of_heads_that_meets_no_other_head_keeps_its_widths():
    flow, node = empty_flow(12)
    found = divided(flow, node, [((QUERY,), SHAPE), ((), (3, 5))], INNER)
    assert found[0][0][0] is QUERY
    assert flow.pairs == []


@pytest.mark.parametrize(
    ("labels", "dim", "heads"),
    [(QUERY, 3, "2 heads of 3"), (along(1, 4, 6, 7), 3, ""), (QUERY.swapaxes(2, 3), 2, "2 heads of 3"), (QUERY, 2, "")],
    ids=["heads and widths", "heads alone", "over tokens of each head", "pixels made of channels"],
)
def test_a_layer_that_heads_share(labels, dim, heads):
    """Only what varies over heads and over the dimension that the layer reads is divided by heads there."""
    flow, node = empty_flow(12)
    flow.program = flow.program.derive(granularity=Granularity(attention=(("here", "heads"),)))
    fields = shared(flow, node, carried(flow, SHAPE, labels), dim)
    assert [block.shape for block in flow.divided.values()] == ([heads] if heads else [])
    assert joined(flow)[:6] == ([0, 0, 0, 3, 3, 3] if heads else [0, 1, 2, 3, 4, 5])
    assert heads or fields[0] is labels
