"""The knapsack keeps the most."""

from __future__ import annotations

import pytest
from selecting import METHODS, SMALL, best_kept, context, problem, scored, selected

from prunec.compiler.errors import PassError
from prunec.passes.select import Select
from prunec.passes.selection import knapsack


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
