"""The plans of docs/repair.md run as they stand there; a lock with a repair gives the same weights again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from prunec.compiler import compile
from prunec.passes.repair import Repair

PAGE = (Path(__file__).parents[2] / "docs/repair.md").read_text()


def _block(name: str) -> Any:
    found = re.search(rf"<!-- {name} -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def _net() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(12 * 16, 5)).eval()


def _compiled(passes: list[Any]) -> Any:
    data = list(torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0)).split(32))
    return compile(
        _net(), {"plan": 1, "passes": passes}, example_inputs=(data[0][:2],), data={"train": data, "val": data}
    )


def _error(found: nn.Module) -> float:
    x = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((found(x) - _net()(x)).square().mean())


def test_the_plan_repairs():
    plan = _block("plan")
    found = _compiled(plan)
    assert _error(found.module) < 0.8 * _error(_compiled(plan[:-1]).module)
    (record,) = (each for each in found.report["passes"] if each["pass"] == "repair")
    assert set(record["details"]["repaired"]) == {"3", "6"}
    assert record["details"]["samples"] == 96


def test_the_plan_without_data_repairs():
    plan = _block("free")
    found = compile(_net(), {"plan": 1, "passes": plan}, example_inputs=(torch.zeros(2, 3, 6, 6),))
    assert set(found.report["passes"][3]["details"]["repaired"]) == {"3", "6"}


def test_the_plan_that_learns_from_the_dense_network_ends_no_farther_away():
    plan = _block("distilled")
    found, before = _compiled(plan), _compiled(plan[:-1])
    (*_, record) = found.report["passes"]
    assert record["details"]["best"]["value"] <= min(row["distance"] for row in record["history"])
    assert _error(found.module) < 1.2 * _error(before.module)


def test_the_choice_is_better_than_by_norms():
    plan = _block("choice")
    by_norms = [{"score": "l1"}, {"select": {"budget": {"macs": "35%"}}}, *plan[2:]]
    assert _error(_compiled(plan).module) < _error(_compiled(by_norms).module)


def test_constants_go_and_what_is_left_is_folded():
    assert [each["pass"] for each in _compiled(_block("constants")).report["passes"]] == ["fold_constants", "fold_bn"]


def test_constants_go_at_borders():
    (record,) = _compiled(_block("borders")).report["passes"]
    assert (record["pass"], record["details"]) == ("fold_constants", {"units": {}})


def test_channels_are_combined():
    found = _compiled(_block("merged"))
    dropped = [{"score": "random"}, {"select": "40%"}, "shrink"]
    assert _error(found.module) < 0.7 * _error(_compiled(dropped).module)


def test_layers_become_thin():
    cost = _compiled(_block("thin")).report["cost"]
    assert cost["after"]["macs"] <= 0.6 * cost["before"]["macs"]


@pytest.mark.parametrize("entry", _block("options"), ids=str)
def test_the_options_are_options(entry):
    found = _compiled([*_block("plan")[:-1], entry])
    assert [each["pass"] for each in found.report["passes"]][-1] == "repair"


def test_it_gives_the_same_weights_again():
    first, second = (_compiled(_block("plan")).module.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_rounds_repair_after_each_cut():
    steps = [{"score": "l1"}, {"select": 0.2}, "shrink", {"repair": "least_squares"}]
    found = _compiled([{"repeat": {"steps": 2, "passes": steps}}])
    assert [each["pass"] for each in found.report["passes"]].count("repair") == 2


def test_all_methods_are_told():
    named = Repair.model_fields["method"].annotation.__args__
    assert all(f"| `{name}` |" in PAGE for name in named)
