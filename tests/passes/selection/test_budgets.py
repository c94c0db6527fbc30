"""Budgets are met from below and used, are shares of the traced model's, and say what would be in reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from selecting import METHODS, ZOO, bare, context, kept_of, selected
from torch import nn

from prunec.compiler.cost.model import cost
from prunec.compiler.cost.resources import resource
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace
from prunec.passes.select import Select

BUDGETS = ({"macs": 0.5}, {"params": 0.6}, {"macs": 0.7, "params": 0.6, "memory": 0.9, "file_size": 0.8})


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


class _Stuck(nn.Module):
    """Two pinned layers of different size, a third of which one half is pinned, and the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 8), nn.Linear(8, 8)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(self.b(self.a(x).sort(-1).values).softmax(-1))
        return self.fc(y[:, :4].softmax(-1) + y[:, 4:].tanh().mean(-1, keepdim=True))


def test_the_pins_that_stand_in_the_way_are_named_the_largest_first():
    program = trace(_Stuck().eval(), (torch.randn(2, 16),))
    scored = program.with_facts(
        scores={g.name: np.ones(g.size) for g in analyse(program).groups.values() if g.free.any()}
    )
    with pytest.raises(PassError) as raised:
        Select(budget={"macs": 0.1}).run(scored, Context(traced=program))
    pins = str(raised.value).partition("pins that stand in the way: ")[2]
    assert pins == (
        "'a' holds 496 (56.9%: is sorted over at sort), 'b' holds 224 (25.7%: is normalised over at softmax), "
        "'fc' holds 36 (4.1%: reaches the model's output), "
        "4 units of 'c' hold 32 (3.7%: is normalised over at softmax_1)"
    )


def test_where_nothing_is_pinned_no_pins_are_named():
    with pytest.raises(PassError) as raised:
        selected("chain", budget={"macs": 0.2}, keep_at_least=7)
    held = str(raised.value).partition("pins that stand in the way: ")[2]
    assert all(f"'{group.name}'" not in held for group in analyse(bare("chain")).groups.values() if group.free.all())
