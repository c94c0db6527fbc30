"""Schedules: both ends are hit, what is left never grows, and amounts keep their units."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.passes.rounds.schedules import SCHEDULES, allowed, used
from prunec.passes.selection.amounts import amount

share = st.floats(0.01, 1.0)


@pytest.mark.parametrize("name", SCHEDULES)
@given(share, share, st.integers(1, 40))
def test_both_ends_are_hit_and_what_is_left_never_grows(name, one, other, total):
    start, end = max(one, other), min(one, other)
    left = [SCHEDULES[name](start, end, t / total) for t in range(total + 1)]
    assert left[0] == pytest.approx(start)
    assert left[-1] == pytest.approx(end)
    assert all(b <= a + 1e-12 for a, b in pairwise(left))


@given(share, share, st.integers(1, 40))
def test_cubic_is_the_formula_for_what_is_gone(one, other, total):
    s_0, s_f = 1 - max(one, other), 1 - min(one, other)
    for t in range(total + 1):
        s_t = s_f + (s_0 - s_f) * (1 - t / total) ** 3
        assert 1 - SCHEDULES["cubic"](1 - s_0, 1 - s_f, t / total) == pytest.approx(s_t)


def test_geometric_takes_the_same_share_each_time():
    left = [SCHEDULES["geometric"](0.8, 0.1, t / 5) for t in range(6)]
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.125**0.2] * 5)


def test_linear_takes_the_same_amount_each_time():
    assert [SCHEDULES["linear"](1, 0.5, t / 4) for t in range(5)] == pytest.approx([1, 0.875, 0.75, 0.625, 0.5])


def test_the_last_round_may_leave_what_the_plan_says_to_the_letter():
    to = {"macs": 0.3, "file_size": "20kB"}
    start = {"macs": 1.0, "file_size": 40000.0}
    assert allowed("geometric", start, to, 4, 5) == to
    assert allowed("cubic", start, to, 0, 1) == to


def test_amounts_are_those_of_the_resource_in_the_plans_unit():
    to = {"params": 1000.0, "file_size": "20kB", "latency": "1ms", "macs": 0.5}
    start = {"params": 3000.0, "file_size": 40000.0, "latency": 0.003, "macs": 1.0}
    found = {name: amount(text) for name, text in allowed("linear", start, to, 0, 2).items()}
    assert found["params"] == (2000, "")
    assert found["file_size"] == pytest.approx((30000, "B"))
    assert (found["latency"].unit, found["latency"].value) == ("s", pytest.approx(0.002))
    assert found["macs"] == (0.75, "share")


def test_what_is_met_already_isnt_asked_for():
    assert allowed("linear", {"macs": 0.2}, {"macs": 0.5}, 0, 4) == {"macs": 0.5}


def test_what_is_used_is_told_in_the_plans_unit():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    program = trace(net.eval(), (torch.zeros(1, 3, 6, 6),))
    params = 8 * 3 * 9 + 8 + 4 * 8 * 9 + 4
    found = used(program, {"params": 100.0, "macs": 0.5, "file_size": "1kB"}, Context(traced=program))
    assert found["params"] == params
    assert found["macs"] == 1
    assert found["file_size"] > 4 * params
