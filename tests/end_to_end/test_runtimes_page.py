"""docs/runtimes.md tells the truth: plans load, commands run, and snippets give what the slim module gives."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pages import block_of

from prunec.compiler import compile
from prunec.compiler.cli import main as cli
from prunec.compiler.plan.exports import EXPORTING
from prunec.compiler.plan.plan import Plan
from prunec.compiler.targets import exporting
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.exporting import missing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/runtimes.md").read_text()
block = partial(block_of, "docs/runtimes.md")
SNIPPETS = ("ort", "openvino", "ncnn", "mnn", "executorch", "litert")


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


def test_the_table_and_the_plan_have_every_target():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*? \| (.*?) \|$", PAGE, re.MULTILINE)
    plan = Plan.from_dict({"plan": 1, **yaml.safe_load(block("plan"))})
    assert {name for name, _, _ in rows} == {export.name for export in plan.export} == set(EXPORTING)
    for name, files, needed in rows:
        target = TARGETS.named(name)
        assert re.findall(r"`(model\S+?)`", files) == [f"model{suffix}" for suffix in target.suffixes]
        assert (f"prunec[{target.extra}]" in needed) == bool(target.extra)


def test_what_makes_int8_is_told():
    told = set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?`) \| [^|]*(?:tools|quantisation)", PAGE, re.MULTILINE)))
    )
    assert told == {name for name in EXPORTING if TARGETS.named(name).quantizes()}


def test_the_keys_for_pixels_are_a_plans():
    Path("classes.txt").write_text("cat\ndog\n")
    plan = Plan.from_dict({"plan": 1, **yaml.safe_load(block("pixels"))})
    assert plan.preprocess.mean == (0.485, 0.456, 0.406)
    assert plan.postprocess.labels() == ("cat", "dog")


def test_the_multiples_are_the_targets():
    rows = re.findall(r"^\| ([\w, ]+) \| (\d+) \| -?\d+% ", PAGE, re.MULTILINE)
    told = {name: int(number) for names, number in rows for name in names.split(", ")}
    named = {name: number for name, number in told.items() if name in TARGETS.names()}
    measured = set(EXPORTING) - {"coreml", "ort"}
    assert named == {name: TARGETS.named(name).multiple for name in EXPORTING if name in measured}
    assert TARGETS.named("torch").multiple == next(told[name] for name in told if name not in named)


def test_the_budget_of_a_runtime_is_a_plans():
    passes = [{"score": "l1"}, *yaml.safe_load(block("latency")), "shrink"]
    plan = Plan.from_dict({"plan": 1, "inputs": [[1, 1, 8, 8]], "passes": passes})
    assert plan.passes[1].pass_.budget == {"latency in ncnn": 0.5}


def test_the_commands_run(capsys):
    Path("nets.py").write_text(block_of("docs/extending.md", "nets"))
    saved("onnx")
    (first, second) = block("command").splitlines()
    if missing(TARGETS.named("openvino")()) is None:
        assert cli.run(first.split()[1:]) == 0
        assert Path("phone/model.xml").exists()
    assert cli.run(second.split()[1:]) == 0
    assert Path("phone/model.onnx").exists()


def saved(name):
    """The digits network with half of its channels, exported for a target into `out`; the slim module."""
    plan = {
        "plan": 1,
        "model": {"factory": "prunec.models.digits:cnn", "weights": str(ROOT / "models/weights/digits.safetensors")},
        "inputs": [[1, 1, 8, 8]],
        "passes": ["score", {"select": "50%"}, "shrink"],
        "export": [name],
    }
    result = compile(None, plan, quick=True)
    assert not result.write("out").failed
    return result.module.eval()


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_runs_the_file_as_an_app_would(name):
    if (lacking := missing(TARGETS.named(name)())) is not None:
        pytest.skip(lacking.message)
    slim = saved(name)
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    os.chdir("out")
    known = {"x": x}
    with captured():
        exec(block(name), known)
    expected = slim(torch.from_numpy(x)).detach().numpy()
    assert np.abs(known["y"] - expected).max() < 1e-2 * np.abs(expected).max(), (
        "some round weights, unless they are told"
    )


def test_every_target_that_runs_here_has_a_snippet():
    runnable = {name for name in EXPORTING if not TARGETS.named(name)().unrunnable()}
    assert runnable - {"onnx"} == set(SNIPPETS)
