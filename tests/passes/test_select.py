"""Budgets are met as the plan says, constraints hold, and the knapsack keeps the most."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import NETS
from selecting import ZOO, bare, best_kept, context, problem, scored

from prunec.compiler.cost.model import cost
from prunec.compiler.cost.resources import resource
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import matching
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.targets.base import TARGETS
from prunec.passes.select import Select
from prunec.passes.selection import knapsack
from prunec.passes.selection.amounts import amount
from prunec.passes.selection.limits import channels_of_a_unit
from prunec.passes.selection.problems import State
from prunec.passes.selection.selectors import SELECTORS

SMALL = ("chain", "residual", "concat", "shared_module", "zero_pad_shortcut")
METHODS = ("ranking", "greedy", "knapsack")
BUDGETS = ({"macs": 0.5}, {"params": 0.6}, {"macs": 0.7, "params": 0.6, "memory": 0.9, "file_size": 0.8})
SWEEP = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def kept_of(program, result):
    keep = np.ones(analyse(program).size, dtype=bool)
    for name, units in result.program.facts["selection"].items():
        keep[analyse(program).groups[name].start + units] = False
    return keep


def selected(name, seed=0, **options):
    return Select(**options).run(scored(name, seed), context(name))


def channels(name, result):
    """Channels that every group keeps."""
    program = bare(name)
    keep = kept_of(program, result)
    return {g.name: int(keep[g.where].sum()) * channels_of_a_unit(g) for g in analyse(program).groups.values()}


# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "budget"), [("greedy", BUDGETS[0]), ("ranking", BUDGETS[2])], ids=["macs", "four"])
@pytest.mark.parametrize("name", ZOO)
def test_budgets_are_met_and_used(name, method, budget):
    assert_met(name, method, budget)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", BUDGETS, ids=["macs", "params", "four"])
@pytest.mark.parametrize("name", ZOO)
def test_every_method_on_every_network(name, budget, seed):
    kept = {method: assert_met(name, method, budget, seed) for method in METHODS}
    assert kept["knapsack"] >= max(kept.values()) - 1e-9


def assert_met(name, method, budget, seed=0):
    result = selected(name, seed, budget=budget, method=method)
    program = bare(name)
    keep = kept_of(program, result)
    shares = {}
    for key, share in budget.items():
        found = resource(key, program, Context())
        shares[key] = found.of(keep) / found.now / share
        assert result.details["budget"][key]["reached"] == found.of(keep)
    assert max(shares.values()) <= 1 + 1e-9
    assert max(shares.values()) > 0.99, "met within one percent"
    legal = analyse(program)
    assert all(keep[units].any() for units in legal.covers)
    assert (keep | legal.free).all()
    return result.details["kept_score"]


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


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small"])
def test_the_knapsack_keeps_no_less_than_the_others(name):
    budget = {"macs": 0.5}
    kept = {m: selected(name, budget=budget, method=m).details["kept_score"] for m in METHODS}
    by_cost = selected(name, budget=budget, method="greedy", per_cost=True).details["kept_score"]
    assert kept["knapsack"] >= max(kept["ranking"], kept["greedy"], by_cost) - 1e-9
    assert kept["ranking"] == pytest.approx(kept["greedy"])


@pytest.mark.parametrize(("few", "misses"), [(knapsack._FEW, 0.0), (0, 0.015)], ids=["all", "searched"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [{"macs": 0.45}, {"macs": 0.6, "params": 0.5}, {"memory": 0.7}], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_the_knapsack_against_all_selections(name, budget, seed, few, misses, monkeypatch):
    monkeypatch.setattr(knapsack, "_FEW", few)
    select, program = Select(budget=budget, method="knapsack"), scored(name, seed)
    try:
        found = select.run(program, context(name)).details["kept_score"]
    except PassError:
        return
    best = best_kept(problem(program, select, context(name)))
    assert found <= best + 1e-9
    assert found >= (1 - misses) * best - 1e-9, "what is missed, of what is kept"


@pytest.mark.parametrize("name", SMALL)
def test_the_zero_of_scores_means_nothing(name):
    """Scores that are normalised around zero: no method takes more to be rid of negative ones."""
    plain, budget = scored(name), {"macs": 0.6}
    lowest = min(float(s.min()) for s in plain.facts["scores"].values())
    shifted, centred = (
        plain.with_facts(scores={k: s - by for k, s in plain.facts["scores"].items()}) for by in (lowest, 5.0)
    )
    for method in METHODS:
        options = {"budget": budget, "method": method, "per_cost": method == "greedy"}
        one, other = (Select(**options).run(p, context(name)) for p in (shifted, centred))
        np.testing.assert_array_equal(kept_of(bare(name), one), kept_of(bare(name), other))
        assert 0 <= other.details["kept_score"] <= other.details["whole_score"]
        assert other.details["kept_score"] == pytest.approx(one.details["kept_score"])


@pytest.mark.parametrize("method", METHODS)
def test_units_without_a_finite_score_stay(method):
    program = scored("chain")
    scores = {k: np.where(np.arange(s.size) % 3 == 0, np.inf, s) for k, s in program.facts["scores"].items()}
    scores = {k: np.where(np.arange(s.size) % 3 == 1, np.nan, s) for k, s in scores.items()}
    result = Select(budget={"macs": 0.8}, method=method).run(program.with_facts(scores=scores), context("chain"))
    gone = result.program.facts["selection"]
    assert gone
    assert all((units % 3 == 2).all() for units in gone.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_is_met_takes_nothing(method):
    budget = {"macs": "100%", "params": 1, "memory": 1.0, "file_size": "1GB"}
    result = selected("residual", budget=budget, method=method)
    assert not result.program.facts["selection"]
    assert result.details["kept_score"] == result.details["whole_score"]


@pytest.mark.parametrize("method", METHODS)
def test_shares_stay_those_of_the_traced_model(method):
    known = context("chain")
    once = selected("chain", budget={"macs": 0.7, "params": 0.7}, method=method)
    slim = remove_units(bare("chain"), kept_of(bare("chain"), once))
    rng = np.random.default_rng(1)
    again = slim.with_facts(scores={g.name: rng.random(g.size) for g in analyse(slim).groups.values() if g.free.any()})
    assert not Select(budget={"macs": 0.7}, method=method).run(again, known).program.facts["selection"]
    twice = Select(budget={"macs": 0.4}, method=method).run(again, known).details["budget"]["macs"]
    assert twice["limit"] == pytest.approx(0.4 * cost(bare("chain")).macs)
    assert twice["reached"] <= twice["limit"]


def test_a_search_sees_the_costs_of_what_it_moves():
    program, select = scored("mobilenet_v2"), Select(budget={"macs": 0.5, "memory": 0.5, "file_size": 0.5})
    found = problem(program, select, context("mobilenet_v2"))
    rng, state = np.random.default_rng(0), State(found, np.zeros_like(found.last))
    for _ in range(40):
        queue = int(rng.integers(found.last.size))
        level = int(rng.integers(found.last[queue] + 1))
        foreseen, before = state.trial(queue, level), np.concatenate(state.rows)
        others = np.array([level, int(state.levels[queue])])
        changes = state.changes(queue, others)
        np.testing.assert_allclose(before + changes[:, 0], np.concatenate(foreseen), rtol=1e-12)
        np.testing.assert_allclose(changes[:, 1], 0, atol=1e-9)
        state.move(queue, level)
        fresh = State(found, state.levels)
        for a, b, c in zip(foreseen, state.rows, fresh.rows, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
            np.testing.assert_allclose(b, c, rtol=1e-9)


# -- costs in the order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chain", "resnet18"])
def test_without_weights_greedy_is_the_ranking(name):
    for options in ({}, {"cost_weight": {"macs": 0.0}}):
        greedy = selected(name, budget={"macs": 0.5}, method="greedy", **options)
        ranking = selected(name, budget={"macs": 0.5})
        np.testing.assert_array_equal(kept_of(bare(name), greedy), kept_of(bare(name), ranking))


def test_larger_weights_take_costlier_layers_first():
    def score_given_up(weight):
        chosen = selected("resnet18", budget={"macs": 0.5}, method="greedy", cost_weight={"macs": weight})
        return sum(units.size for units in chosen.program.facts["selection"].values())

    counts = [score_given_up(weight) for weight in (0.0, 0.1, 1.0, 100.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1], "fewer, costlier units meet the budget"


# -- constraints -------------------------------------------------------------------------------------------------------


def test_limits_by_pattern():
    options = {"keep_at_least": {"layer1.*": 48, "*": 4}, "remove_at_most": {"layer2.*": 0.25, "*": 1.0}}
    result = selected("resnet18", budget={"macs": 0.5}, **options)
    left = channels("resnet18", result)
    groups = analyse(bare("resnet18")).groups
    means = matching(["layer1.*", "layer2.*"], groups)
    assert min(left[name] for name in means["layer1.*"]) >= 48
    assert all(left[n] >= 0.75 * groups[n].size for n in means["layer2.*"] if n not in means["layer1.*"])


@pytest.mark.parametrize("method", METHODS[:2])
def test_equal_widths(method):
    inner = [f"layer1.{i}.conv1" for i in (0, 1)]
    result = selected(
        "resnet18", budget={"macs": 0.5}, method=method, equal_widths=["layer1.?.conv1", "layer3.?.conv1"]
    )
    left = channels("resnet18", result)
    assert left[inner[0]] == left[inner[1]] < 64
    assert left["layer3.0.conv1"] == left["layer3.1.conv1"]
    apart = channels("resnet18", selected("resnet18", budget={"macs": 0.5}, method=method))
    assert apart[inner[0]] != apart[inner[1]]


def test_equal_widths_of_unequal_groups():
    with pytest.raises(PassError, match=r"can't be kept equal: 'conv1' has 64, 'layer2.0.conv1' has 128"):
        selected("resnet18", ratio=0.5, equal_widths=["*"])


def test_ratios_of_tied_groups():
    left = channels("resnet18", selected("resnet18", ratio={"layer1.0.conv1": 0.5}, equal_widths=["layer1.?.conv1"]))
    assert left["layer1.0.conv1"] == left["layer1.1.conv1"] == 32


def with_heads():
    """Small nets whose units are heads."""
    blocks = {name: analyse(bare(name)).flow.divided.values() for name in NETS if "attention" in name or "head" in name}
    return [name for name, found in blocks.items() if any(b.kind == "attention" and b.choice == "heads" for b in found)]


def test_heads_that_stay():
    names = with_heads()
    assert names, "there are nets with heads"
    for name in names:
        free, least = selected(name, ratio=0.99), selected(name, ratio=0.99, heads_at_least=2)
        for group in matching(["kind:heads"], analyse(bare(name)).groups)["kind:heads"]:
            before, after = free.details["widths"][group], least.details["widths"][group]
            assert after[1] >= max(before[1], min(2, before[0]))


def test_thresholds():
    program = scored("chain")
    scores = program.facts["scores"]
    result = Select(threshold=0.3).run(program, context("chain"))
    for name, score in scores.items():
        gone = set(np.flatnonzero(score < 0.3).tolist())
        assert set(result.program.facts["selection"].get(name, [])) == gone
    by_name = Select(threshold={"a": 0.3}).run(program, context("chain"))
    assert set(by_name.program.facts["selection"]) <= {"a"}


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        ("kind:Linear", {"classifier.1"}),
        ("kind:linear", {"classifier.1"}),
        ("kind:depthwise", {"features.0.0", "features.2.conv.0.0"}),
    ],
)
def test_patterns_of_kinds(pattern, means):
    found = set(matching([pattern], analyse(bare("mobilenet_v2")).groups)[pattern])
    assert means <= found
    assert "features.18.0" not in found


def test_a_skip_list_in_ratios():
    left = channels("resnet18", selected("resnet18", ratio={"layer1.0.*": 0.0, "layer1.*": 0.5, "*": 0.25}))
    assert left["layer1.0.conv1"] == 64
    assert left["layer1.1.conv1"] == 32
    assert left["layer4.1.conv1"] == 384


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"keep_at_least": 7}, "lift keep_at_least, without which"),
        ({"protect": ["b"], "multiple_of": 2}, "lift protect, without which"),
        ({"remove_at_most": 0.1}, "lift remove_at_most, without which"),
    ],
    ids=["least", "protect", "most"],
)
def test_the_constraint_that_stops_it_is_named(options, hint):
    with pytest.raises(PassError, match=r"the budget can't be met: macs 20\.0%") as raised:
        selected("chain", budget={"macs": 0.2}, **options)
    assert hint in str(raised.value)


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


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (1, (1.0, "share")),
        ("1", (1.0, "share")),
        ("0.5", (0.5, "share")),
        ("100%", (1.0, "share")),
        ("2", (2.0, "")),
        ("0.0005k", (0.5, "")),
        ("0.5k", (500.0, "")),
        ("1B", (1.0, "B")),
        ("500us", (5e-4, "s")),
    ],
    ids=str,
)
def test_what_amounts_mean(text, means):
    name = {"B": "file_size", "s": "latency"}.get(means[1], "macs")
    chosen = Select(budget={name: text})
    assert amount(chosen.budget[name]).unit == means[1]
    assert amount(chosen.budget[name]).value == pytest.approx(means[0])


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ({"params": "0.5k"}, 500),
        ({"file_size": "4KiB"}, 4096),
        ({"memory": 200}, 200),
        ({"memory": "2400B"}, 300),
        ({"macs": "20k"}, 20000),
    ],
    ids=str,
)
def test_amounts(budget, limit):
    (reached,) = selected("chain", budget=budget).details["budget"].values()
    assert reached["limit"] == limit >= reached["reached"]


def test_every_method_is_listed():
    assert set(SELECTORS.names()) >= set(METHODS)
