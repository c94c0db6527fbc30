"""The plans in `plans/train`: each holds a paper's settings, and its sibling in `short` runs here as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from prunec.compiler import Plan, compile

TRAIN = Path(__file__).parents[2] / "plans" / "train"
TRAINS = ("finetune", "slim_train")


class Reached(NamedTuple):
    """The share of the MACs that may be left at most, and the accuracy on the test split that is left at least."""

    macs: float
    accuracy: float


SHORT = {
    "mlp_50_100": Reached(0.17, 0.94),
    "convnet_8_16_32": Reached(0.10, 0.90),
    "vgg16_a": Reached(0.66, 0.93),
    "resnet56_a": Reached(0.92, 0.93),
    "resnet56_b": Reached(0.70, 0.93),
    "slimming_vgg19": Reached(0.5, 0.93),
    "slimming_resnet164": Reached(0.6, 0.93),
    "slimming_densenet40": Reached(0.6, 0.93),
    "taylor_vgg16": Reached(0.3, 0.97),
}
QUICK = ("mlp_50_100", "convnet_8_16_32", "taylor_vgg16")
"""Those that run in seconds."""

PAPERS = {"vgg16_a": 206_279_680, "resnet56_a": 112_435_840, "resnet56_b": 90_907_264, "convnet_8_16_32": 523_712}
"""The MACs that the papers' settings leave, of plans whose widths are fixed."""


def test_every_plan_has_a_short_one_and_is_tested():
    for folder in (TRAIN, TRAIN / "short"):
        assert {path.stem for path in folder.glob("*.yaml")} == SHORT.keys()


def run(name: str, *overrides: str) -> dict[str, Any]:
    return compile(None, Plan.load(TRAIN / "short" / f"{name}.yaml", overrides)).report


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.sweep) for name in SHORT]
)
def test_short_plans_reach_what_they_say(name):
    report = run(name)
    assert report["cost"]["after"]["macs"] <= SHORT[name].macs * report["cost"]["before"]["macs"]
    assert report["accuracy"]["after"] >= SHORT[name].accuracy


@pytest.mark.parametrize("name", [name for name in SHORT if name not in QUICK])
def test_the_others_run_with_two_updates(name):
    plan = yaml.safe_load((TRAIN / "short" / f"{name}.yaml").read_text())
    for entry in plan["passes"]:
        for options in (entry[key] for key in TRAINS if isinstance(entry, dict) and key in entry):
            del options["epochs"]
            options["updates"] = 2
    report = compile(None, plan).report
    assert report["cost"]["after"]["macs"] < report["cost"]["before"]["macs"]
    trained = [record for record in report["passes"] if record["pass"] in TRAINS]
    assert len(trained) == 2
    assert all(record["history"][-1]["update"] == 2 for record in trained)


@pytest.mark.parametrize("name", SHORT)
def test_the_papers_settings_are_a_valid_plan(name):
    plan = Plan.load(TRAIN / f"{name}.yaml")
    trained = [entry for entry in plan.passes if entry.name in TRAINS]
    assert len(trained) >= 2


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings_leave_the_papers_macs(name):
    plan = yaml.safe_load((TRAIN / f"{name}.yaml").read_text())
    plan["passes"] = [entry for entry in plan["passes"] if not (isinstance(entry, dict) and entry.keys() & {*TRAINS})]
    del plan["data"], plan["export"]
    assert compile(None, plan).report["cost"]["after"]["macs"] == PAPERS[name]
