"""Each example of docs/extending.md runs as it stands there."""

from __future__ import annotations

import json
import shlex
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from pages import block_of
from PIL import Image
from safetensors.torch import save_file

from prunec.compiler import plugins
from prunec.compiler.cli import main as cli
from prunec.compiler.driver.load import load_model
from prunec.compiler.plan.plan import Plan

ROOT = Path(__file__).parents[2]


block = partial(block_of, "docs/extending.md")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page speaks of, with made-up pictures and weights."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(block("nets"))
    Path("small.yaml").write_text(block("plan"))
    plan = Plan.from_dict({"plan": 1, "model": {"factory": "nets.py:Small", "args": {"width": 32, "classes": 3}}})
    save_file(load_model(plan).state_dict(), "small.safetensors")
    for root in ("pictures", "other"):
        for number, kind in enumerate(("cat", "dog", "owl")):
            for split in ("train", "test"):
                place = tmp_path / root / split / kind
                place.mkdir(parents=True)
                for index in range(10):
                    Image.new("RGB", (70, 64), (80 * number, 20 * index, 90)).save(place / f"{index}.png")
    return tmp_path


def test_the_plan_compiles_with_a_folder_of_images(folder, capsys):
    assert cli.run(["compile", "small.yaml", "--set", "passes.0.score.batches=1"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["evaluation"] == {"split": "test", "samples": 30}
    assert report["cost"]["after"]["macs"] <= 0.5 * report["cost"]["before"]["macs"]


def test_the_lines_with_set_are_taken(folder, capsys, monkeypatch):
    """The weights are of one width, so a plan without them stands for the page's own."""
    Path("small.yaml").write_text(block("plan").replace(", weights: small.safetensors", ""))
    commands = [shlex.split(line) for line in block("set").splitlines()]
    assert len(commands) == 3
    widths = []
    for program, *arguments in commands:
        assert program == "prunec"
        assert cli.run(arguments) == 0, capsys.readouterr().err
        if arguments[0] == "compile":
            report = json.loads(Path("out/report.json").read_text())
            widths.append((report["groups"][0]["channels"]["before"], report["inputs"], report["origin"]["seed"]))
    assert widths == [(16, [[1, 3, 64, 64]], 0), (32, [[1, 3, 32, 32]], 1)]
    assert "fc.weight[1]" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_plans_of_libraries_are_plans(name):
    plan = Plan.from_dict(yaml.safe_load(block(name)))
    assert plan.model is not None
    assert [entry.name for entry in plan.passes] == ["score", "select", "shrink"]


def test_the_plan_of_torchvision_fits_its_model(tmp_path, capsys):
    path = tmp_path / "plan.yaml"
    path.write_text(block("torchvision"))
    assert cli.run(["check", str(path)]) == 0


def test_the_criterion_is_the_third_partys():
    assert block("criterion") == (ROOT / "tests/thirdparty/acme_criteria.py").read_text()


def test_it_is_registered_and_named_by_a_plan(monkeypatch):
    (entry,) = tomllib.loads(block("pyproject"))["project"]["entry-points"]["prunec.criteria"].items()
    home = ROOT / "tests/thirdparty"
    assert f"{entry[0]} = {entry[1]}" in (home / "acme_passes-1.0.dist-info/entry_points.txt").read_text()
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(home))
        plugins.refresh()
        plan = Plan.from_dict({"plan": 1, "passes": yaml.safe_load(block("criterion_plan"))})
        assert plan.passes[0].pass_.criterion.power == 2
    plugins.refresh()


def test_weights_that_would_run_code_are_refused(folder, capsys):
    torch.save({"w": print}, "evil.pth")
    Path("small.yaml").write_text(block("plan").replace("small.safetensors", "evil.pth"))
    assert cli.run(["check", "small.yaml"]) == 1
    assert "evil.pth" in capsys.readouterr().err
