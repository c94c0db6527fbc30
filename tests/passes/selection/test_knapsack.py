"""The knapsack keeps the most."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from selecting import METHODS, SMALL, best_kept, context, problem, scored, selected

from prunec.compiler import compile
from prunec.compiler.errors import PassError
from prunec.models import data as datasets
from prunec.models import digits
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


def test_what_the_solver_prints_is_not_shown(monkeypatch, capfd):
    solve = knapsack.milp

    def loud(*args: Any, **options: Any) -> Any:
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution")
        return solve(*args, **options)

    monkeypatch.setattr(knapsack, "_FEW", 0)
    monkeypatch.setattr(knapsack, "milp", loud)
    select, program = Select(budget={"macs": 0.45}, method="knapsack"), scored(SMALL[0], 0)
    assert select.run(program, context(SMALL[0])).details["kept_score"] > 0
    assert capfd.readouterr().out == ""


# -- losses and norms on trained networks --------------------------------------------------------------------------

DATA = datasets.digits(batch_size=256)
EMBEDDED = {"digits": digits.cnn, "digits_mlp": digits.mlp, "digits_resnet": digits.resnet}


def kept_accuracy(name: str, score: Mapping[str, Any], method: str, budget: float) -> float:
    """In per cent, of what isn't trained on, without any training after the cut."""
    model = EMBEDDED[name]()
    model.load_state_dict(load_file(digits.WEIGHTS / f"{name}.safetensors"))
    select = {"budget": {"macs": budget}, "method": method}
    plan = {"plan": 1, "passes": [{"score": score}, {"select": select}, "shrink"]}
    result = compile(model.eval(), plan, (torch.zeros(1, 1, 8, 8),), data=DATA)
    assert any("don't add up" in w for w in result.report["warnings"]) == (method == "knapsack" and score is NORM)
    images, labels = (torch.cat(parts) for parts in zip(*DATA.val(), *DATA.test(), strict=True))
    with torch.no_grad():
        return 100 * float((result.module(images).argmax(1) == labels).float().mean())


LOSS, NORM = {"criterion": "fisher_gate", "samples": 256}, {"criterion": "l1"}
TAYLOR = {"criterion": "taylor", "samples": 256}


@pytest.mark.parametrize(
    ("name", "budgets", "gain"),
    [("digits", (0.35, 0.25), 5), ("digits_mlp", (0.5, 0.35), -1), ("digits_resnet", (0.75, 0.5), 10)],
)
def test_with_losses_the_knapsack_keeps_no_less_than_ranking(name, budgets, gain):
    """Measured: 79 to 96, 82 to 82, 33 to 63 per cent in the mean of the budgets."""
    ranking, knapsack = (sum(kept_accuracy(name, LOSS, m, b) for b in budgets) / 2 for m in ("ranking", "knapsack"))
    assert knapsack >= ranking + gain


def test_of_taylor_the_knapsack_takes_the_losses():
    """Measured: 69 by ranking, 87 by the knapsack, in the mean of two budgets."""
    methods, budgets = ("ranking", "knapsack"), (0.35, 0.25)
    ranking, knapsack = (sum(kept_accuracy("digits", TAYLOR, m, b) for b in budgets) / 2 for m in methods)
    assert knapsack > ranking + 5


def test_with_norms_the_knapsack_empties_layers():
    """Measured: 92 by ranking, 17 by the knapsack, which is warned of."""
    ranking, knapsack = (kept_accuracy("digits", NORM, method, 0.5) for method in ("ranking", "knapsack"))
    assert knapsack < ranking - 30
