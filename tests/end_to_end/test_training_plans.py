"""The plans in `plans/train`: each holds a paper's settings, and its sibling in `short` runs here as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from prunec.compiler import Plan, compile

TRAIN = Path(__file__).parents[2] / "plans" / "train"
TRAINS = ("finetune", "slim_train", "centripetal")


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
    "csgd_resnet56": Reached(0.41, 0.93),
    "csgd_densenet40": Reached(0.3, 0.95),
    "csgd_mobilenet": Reached(0.45, 0.95),
    "block_example": Reached(0.35, 0.93),
}
QUICK = ("mlp_50_100", "convnet_8_16_32", "taylor_vgg16", "block_example")
"""Those that run in seconds."""

PAPERS = {
    "vgg16_a": 206_279_680,
    "resnet56_a": 112_435_840,
    "resnet56_b": 90_907_264,
    "convnet_8_16_32": 523_712,
    "csgd_resnet56": 49_224_080,
    "block_example": 4_261_120,
}
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


def lists(passes: list[Any]) -> Iterator[list[Any]]:
    """The list of a plan's passes, and those of rounds inside it."""
    yield passes
    for entry in passes:
        if isinstance(entry, dict) and "repeat" in entry:
            yield from lists(entry["repeat"]["passes"])


@pytest.mark.parametrize("name", [name for name in SHORT if name not in QUICK])
def test_the_others_run_with_two_updates(name):
    plan = yaml.safe_load((TRAIN / "short" / f"{name}.yaml").read_text())
    for passes in lists(plan["passes"]):
        for entry in passes:
            for options in (entry[key] for key in TRAINS if isinstance(entry, dict) and key in entry):
                del options["epochs"]
                options["updates"] = 2
        passes[:] = [{"merge": "mean"} if entry == "merge" else entry for entry in passes]  # nothing has collapsed yet
    report = compile(None, plan).report
    assert report["cost"]["after"]["macs"] < report["cost"]["before"]["macs"]
    trained = [record for record in report["passes"] if record["pass"] in TRAINS]
    rounds = [entry["repeat"]["steps"] for entry in plan["passes"] if isinstance(entry, dict) and "repeat" in entry]
    alone = [entry for entry in plan["passes"] if isinstance(entry, dict) and entry.keys() & {*TRAINS}]
    assert len(trained) == len(alone) + sum(rounds)
    assert len(alone) >= 2
    assert all(record["history"][-1]["update"] == 2 for record in trained)


@pytest.mark.parametrize("name", SHORT)
def test_the_papers_settings_are_a_valid_plan(name):
    plan = Plan.load(TRAIN / f"{name}.yaml")
    held = [inside for entry in plan.passes if entry.name == "repeat" for inside in entry.pass_.passes]
    trained = [entry for entry in (*plan.passes, *held) if entry.name in TRAINS]
    assert len(trained) >= 2


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings_leave_the_papers_macs(name):
    plan = yaml.safe_load((TRAIN / f"{name}.yaml").read_text())
    assert macs_left(plan) == PAPERS[name]


def macs_left(plan: dict[str, Any]) -> int:
    """What is left without any training."""
    for passes in lists(plan["passes"]):
        passes[:] = [entry for entry in passes if not (isinstance(entry, dict) and entry.keys() & {*TRAINS})]
        for entry in passes:
            if isinstance(entry, dict) and "block" in entry:
                entry["block"]["score"] = "l1"  # which tiles stay is the data's to say, how many isn't
    del plan["data"], plan["export"]
    return compile(None, plan).report["cost"]["after"]["macs"]


def test_three_stages_leave_what_the_paper_counts_with_its_projections():
    plan = yaml.safe_load((TRAIN / "csgd_resnet56.yaml").read_text())
    plan["model"]["args"]["shortcut"] = "projection_2x2"
    assert macs_left(plan) == 49_531_280
