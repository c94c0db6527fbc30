"""Plans of `select`: random budgets and constraints hold, and what a plan may not say is told."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import NETS
from selecting import METHODS, bare, channels, kept_of, selected

from prunec.compiler.cost.model import cost
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.targets.base import TARGETS
from prunec.passes.select import Select
from prunec.passes.selection.limits import channels_of_a_unit

SWEEP = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@given(
    st.sampled_from(sorted(NETS)),
    st.integers(0, 99),
    st.floats(0.3, 1),
    st.floats(0.3, 1),
    st.sampled_from([1, 2, 4, "mnn"]),
    st.integers(1, 4),
    st.sampled_from([None, 0.4, 0.75]),
    st.sampled_from(METHODS),
)
@SWEEP
def test_random_budgets_and_constraints(name, seed, macs, params, multiple, least, most, method):
    options = {"multiple_of": multiple, "keep_at_least": least, "remove_at_most": most, "method": method}
    try:
        result = selected(name, seed, budget={"macs": macs, "params": params}, **options)
    except PassError as error:
        if "the budget can't be met" not in str(error):
            raise
        return
    program = bare(name)
    slim = remove_units(program, kept_of(program, result))
    assert cost(slim).macs <= macs * cost(program).macs + 1
    assert cost(slim).params <= params * cost(program).params + 1
    number = TARGETS.named(multiple).multiple if isinstance(multiple, str) else multiple
    for group in analyse(program).groups.values():
        left, each = channels(name, result)[group.name], channels_of_a_unit(group)
        if left < group.size * each:
            assert left % number == 0
            assert left >= least
            assert group.size - left // each <= group.size * (most or 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": {"mac": 0.5}}, "must be one of macs, params, file_size, memory, latency"),
        ({"budget": {"macs": "5 parsecs"}}, "must be a share such as 50%"),
        ({"budget": {"macs": "150%"}}, "must be a share of at most 100%, or an amount"),
        ({"budget": {"macs": 0}}, "more than nothing, and finite"),
        ({"budget": {"macs": float("nan")}}, "more than nothing, and finite"),
        ({"budget": {"macs": float("inf")}}, "more than nothing, and finite"),
        ({"budget": {"macs": "2MB"}}, "must name for macs a share, or a plain number such as 1.2M; it says 2MB"),
        ({"budget": {"params": "5ms"}}, "must name for params a share, or a plain number such as 1.2M; it says 5ms"),
        ({"budget": {"memory": "5ms"}}, "for memory a share, or a plain number such as 1.2M or bytes such as 2MB"),
        ({"budget": {"latency": "5MB"}}, "must name for latency a share, or a time such as 5ms; it says 5MB"),
        ({"budget": {"latency": 5}}, "must name for latency a share, or a time such as 5ms; it says 5"),
        ({"budget": {"macs": 0.5}, "method": "best"}, "must be one of greedy, knapsack, ranking"),
        ({"ratio": 0.5, "multiple_of": "abacus"}, "or a target: coreml"),
        ({"ratio": 0.5, "method": "greedy"}, "must not name 'method' without 'budget'"),
        ({"budget": {"macs": 0.5}, "per_cost": True}, "for a method other than greedy"),
        ({"ratio": 0.5, "threshold": 1.0}, "got ratio and threshold"),
        ({}, "must say exactly one of ratio, widths, threshold, budget, from, units; got none of them"),
    ],
)
def test_what_a_plan_may_not_say(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Select(**options)
