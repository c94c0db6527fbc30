"""Plans of `select`: random budgets and constraints hold, and what a plan may not say is told."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import NETS
from selecting import METHODS, bare, channels, kept_of, scored, selected
from torch import nn

from prunec.compiler import compile
from prunec.compiler.cost.model import cost
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.targets.base import TARGETS
from prunec.models.data import random
from prunec.passes.criteria.aggregates import Scores
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
        (
            {"budget": {"macs": 0.5}, "method": "knapsack", "scope": "local"},
            "must not name 'scope: local' for the method",
        ),
        ({"budget": {"macs": 0.5}, "scope": "isomorph"}, "Input should be 'global', 'local' or 'isomorphic'"),
        ({"threshold": 0.5, "scope": "global"}, "must not name 'scope' without 'budget' or 'ratio'"),
        ({"ratio": {"*": 0.5}, "scope": "global"}, "must not name 'scope' with ratios by pattern"),
        ({"ratio": 0.5, "threshold": 1.0}, "got ratio and threshold"),
        ({"ratio": 0.5, "at_most": 4}, "must not name 'at_most' without 'budget'"),
        ({"ratio": 0.5, "may_fall_short": True}, "must not name 'may_fall_short' without 'budget'"),
        ({"budget": {"macs": 0.5}, "at_most": 0}, "Input should be greater than or equal to 1"),
        (
            {"budget": {"macs": 0.5}, "at_most": 4, "method": "knapsack"},
            "must not name 'at_most' for the method knapsack, which doesn't go step by step",
        ),
        ({}, "must say exactly one of ratio, widths, threshold, budget, from, units; got none of them"),
    ],
)
def test_what_a_plan_may_not_say(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Select(**options)


# -- scores that don't add up --------------------------------------------------------------------------------------

# -- in rounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ranking", "greedy"])
@pytest.mark.parametrize("name", ["chain", "residual", "resnet18"])
def test_at_most_takes_the_lowest_of_all_groups(name, method):
    program = scored(name)
    analysis = analyse(program)
    found = kept_of(program, selected(name, budget={"macs": 0.2}, method=method, at_most=5))
    score = np.full(analysis.size, np.inf)
    for group in analysis.groups.values():
        if group.name in program.facts["scores"]:
            score[group.where] = np.where(group.free, program.facts["scores"][group.name], np.inf)
    assert set(np.flatnonzero(~found)) == set(np.argsort(score)[:5])


@pytest.mark.parametrize("method", ["ranking", "greedy"])
@pytest.mark.parametrize("name", ["chain", "residual", "resnet18"])
def test_at_most_stops_at_the_budget(name, method):
    free = selected(name, budget={"macs": 0.6}, method=method)
    held = selected(name, budget={"macs": 0.6}, method=method, at_most=10**6)
    assert (kept_of(bare(name), free) == kept_of(bare(name), held)).all()
    assert kept_of(bare(name), selected(name, budget={"macs": 1.0}, method=method, at_most=3)).all()


@pytest.mark.parametrize("method", ["ranking", "greedy"])
def test_at_most_takes_one_step_in_any_case(method):
    found = kept_of(
        bare("resnet18"), selected("resnet18", budget={"macs": 0.6}, method=method, at_most=1, multiple_of=8)
    )
    assert (~found).sum() == 8
    assert not found.all()


def test_at_most_leaves_widths_alone_that_a_runtime_prefers():
    known = Context(traced=bare("resnet18"), runtime="onnxruntime")
    result = Select(budget={"macs": 0.6}, at_most=3).run(scored("resnet18"), known)
    assert (~kept_of(bare("resnet18"), result)).sum() == 3
    assert "multiple_of" not in result.details


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["chain", "residual", "concat"])
def test_a_budget_out_of_reach_may_be_missed(name, method):
    options = {"method": method, "keep_at_least": 3}
    with pytest.raises(PassError) as caught:
        selected(name, budget={"params": 0.05}, **options)
    result = selected(name, budget={"params": 0.05}, may_fall_short=True, **options)
    assert result.warnings == (f"select: {caught.value.message}; {caught.value.hint}",)
    program, keep = bare(name), kept_of(bare(name), result)
    least = re.search(r"may go ([0-9,]+) are left", caught.value.message)
    assert cost(remove_units(program, keep)).params == int(least[1].replace(",", ""))
    within = selected(name, budget={"params": 0.8}, may_fall_short=True, method=method)
    assert within.warnings == ()
    assert (kept_of(program, within) == kept_of(program, selected(name, budget={"params": 0.8}, method=method))).all()


def test_the_check_tells_that_a_budget_will_be_missed():
    select = Select(budget={"params": 0.01}, may_fall_short=True)
    select.check(bare("chain"))
    (note,) = select.remarks(bare("chain"))
    assert str(note).startswith("budget: the budget can't be met: params 1.0% is ")
    assert not list(Select(budget={"params": 0.9}, may_fall_short=True).remarks(bare("chain")))


KNAPSACK = {"budget": {"macs": 0.6}, "method": "knapsack"}
DIAGONAL = {"criterion": {"obd_fisher": {"diagonal": True}}, "axes": "all", "aggregate": "mean"}
PER_COST = {"budget": {"macs": 0.6}, "method": "greedy", "per_cost": True}


def warnings_of(score, select) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 10))
    plan = {"plan": 1, "passes": [{"score": score}, {"select": select}, "shrink"]}
    data = random((1, 8, 8), classes=10, samples=16, batch_size=8)
    return compile(model.eval(), plan, (torch.zeros(1, 1, 8, 8),), data=data).report["warnings"]


@pytest.mark.parametrize("select", [KNAPSACK, PER_COST], ids=["knapsack", "per_cost"])
@pytest.mark.parametrize(
    ("score", "why"),
    [
        ("l1", "l1 is no loss"),
        ("l2", "l2 is no loss"),
        ("random", "random is no loss"),
        ({"criterion": "apoz"}, "apoz is no loss"),
        ({"criterion": "fisher_gate", "normalize": "mean"}, "'normalize: mean' takes their unit from them"),
        ("obs", "obs is no loss"),
        (DIAGONAL, "'aggregate: mean' adds up no unit's losses"),
    ],
    ids=str,
)
def test_a_sum_of_what_is_no_loss_is_told(score, why, select):
    (warning,) = warnings_of(score, select)
    assert f"these don't add up to a loss ({why})" in warning
    assert ("'per_cost' divides" if select is PER_COST else "'method: knapsack' adds") in warning


@pytest.mark.parametrize("score", ["fisher_gate", "gate", "oracle", "obd_fisher", "taylor_weight", "obd"])
def test_losses_add_up(score):
    assert warnings_of(score, KNAPSACK) == warnings_of(score, PER_COST) == []


@pytest.mark.parametrize("score", ["taylor", "taylor_signed", {"criterion": "taylor", "normalize": "none"}])
def test_the_losses_behind_scores_are_added_up(score):
    assert warnings_of(score, KNAPSACK) == warnings_of(score, PER_COST) == []
    (warning,) = warnings_of({"criterion": "taylor", "normalize": "l2"}, KNAPSACK)
    assert "taylor is no loss" in warning


def test_who_adds_up_works_on_the_losses_that_scores_come_of():
    program = bare("chain")
    groups = [group for group in analyse(program).groups.values() if group.free.any()]
    rng = np.random.default_rng(0)
    losses = {group.name: rng.random(group.size) for group in groups}
    scores = Scores({name: found[::-1] for name, found in losses.items()})
    scores.losses, known = losses, Context(traced=program)
    for options in (KNAPSACK, PER_COST):
        found = Select(**options).run(program.with_facts(scores=scores), known).program
        plain = Select(**options).run(program.with_facts(scores=losses), known).program
        assert found.facts["scores"] is scores
        assert {k: v.tolist() for k, v in found.facts["selection"].items()} == {
            k: v.tolist() for k, v in plain.facts["selection"].items()
        }
    ranked = Select(budget={"macs": 0.6}).run(program.with_facts(scores=scores), known).program
    plain = Select(budget={"macs": 0.6}).run(program.with_facts(scores=dict(scores)), known).program
    assert str(ranked.facts["selection"]) == str(plain.facts["selection"])


@pytest.mark.parametrize("select", [{"budget": {"macs": 0.6}}, {"budget": {"macs": 0.6}, "method": "greedy"}, "50%"])
def test_who_only_orders_needs_no_losses(select):
    assert warnings_of("l1", select) == []


def test_scores_of_unknown_kind_are_taken_as_they_are():
    """A pass of another package, or a program's text, may give plain scores."""
    assert selected("chain", **KNAPSACK).warnings == ()
