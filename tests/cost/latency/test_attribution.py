"""The time of a network, shared out among its layers and values: nothing gets lost."""

from __future__ import annotations

import math

import pytest
from timing import NODES

from prunec.compiler.cost.latency.attribution import DISPATCH, Part, share_out
from prunec.compiler.cost.latency.table import NetworkTime
from prunec.compiler.targets.base import BETWEEN, NodeTime


def test_shares_add_up_to_the_network():
    shares = share_out(NetworkTime(NODES, 6.0), [Part(100, 1.0), Part(100, 1.0), Part(10, 2.0)], [100, 10, 30])
    assert shares.parts == pytest.approx((2.0, 2.0, 1.0))
    assert shares.values == pytest.approx((0.5 + 0.5 * 100 / 140, 0.5 * 10 / 140, 0.5 * 30 / 140))
    assert shares.fixed == 0.0


@pytest.mark.parametrize(
    ("parts", "values"),
    [
        ([], []),
        ([], [100]),
        ([Part(100, 1.0)], []),
        ([Part(55, 1.0)], [55]),
        ([Part(55, 1.0), Part(100, 3.0)], [55, 3]),
        ([Part(10, 1.0)], [10]),
    ],
)
@pytest.mark.parametrize("seconds", [3.0, 6.0, 6.00005, 60.0])
def test_nothing_gets_lost(parts, values, seconds):
    shares = share_out(NetworkTime(NODES, seconds), parts, values)
    assert math.fsum((*shares.parts, *shares.values, shares.fixed)) == pytest.approx(seconds)
    assert min((*shares.parts, *shares.values, shares.fixed)) >= 0


def test_going_from_node_to_node_stays():
    assert share_out(NetworkTime(NODES, 6.00005), [Part(100, 1.0)], [7]).fixed == pytest.approx(5e-5)
    assert share_out(NetworkTime(NODES, 9.0), [Part(100, 1.0)], [7]).fixed == pytest.approx(4 * DISPATCH)


def test_what_goes_by_between_nodes_is_what_the_runtime_says():
    told = (*NODES, NodeTime(BETWEEN, 0, 2.0))
    shares = share_out(NetworkTime(told, 4.0), [Part(100, 1.0), Part(10, 1.0)], [100])
    assert shares.fixed == pytest.approx(1.0), "a quarter of these runs, and so of any"
    assert shares.parts == pytest.approx((2.0, 0.5))
    assert shares.values == pytest.approx((0.5,))
    assert share_out(NetworkTime(told[-1:], 4.0), [], []).fixed == 4.0


def test_laying_out_an_input_stays():
    nodes = (NodeTime("Reorder", 100, 0.25), NodeTime("Cast", 30, 0.25), *NODES, NodeTime("Reorder", 100, 0.5))
    shares = share_out(NetworkTime(nodes, 7.0), [Part(100, 1.0), Part(10, 1.0)], [100, 30, 7], {100, 3})
    assert shares.fixed == pytest.approx(0.25), "what comes later is a value of that size"
    assert shares.values == pytest.approx((1.0, 0.25, 0.5))
    assert share_out(NetworkTime(nodes, 7.0), [Part(100, 1.0), Part(10, 1.0)], [100, 30, 7]).fixed == 0.0
