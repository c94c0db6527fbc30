"""`prunec export`: a model as it is, a folder that was compiled before, and a plan; all files, or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from digits_plan import HALVED

from prunec.compiler import compile
from prunec.compiler.cli import main as cli
from prunec.compiler.driver.export_model import exports_of
from prunec.compiler.errors import PlanError
from prunec.compiler.plan.plan import Plan
from prunec.compiler.targets import exporting
from prunec.compiler.targets.exporting import Export
from prunec.compiler.targets.onnx_file import OrtInt8
from prunec.compiler.targets.ort import Ort


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


def told(folder="exported"):
    return json.loads((Path(folder) / "export.json").read_text())["targets"]


def names(folder):
    return {path.name for path in Path(folder).iterdir()}


def test_a_model_as_it_is(capsys):
    assert cli.run(["export", "prunec.models.digits:cnn", "--inputs", "2,1,8,8", "--to", "ort, onnx"]) == 0
    assert [row["target"] for row in told()] == ["ort", "onnx"]
    assert {"model.ort", "model.onnx", "model.required_operators.config", "export.json"} <= names("exported")
    assert all(timed["dense"] is None for row in told() for timed in row["latency"])
    shown = capsys.readouterr().out
    assert "exported/: export.json, model.onnx, model.ort, model.required_operators.config" in shown


def test_a_folder_is_compared_with_its_original_and_judged_on_its_data(capsys):
    compile(None, HALVED).save("out")
    assert cli.run(["export", "out", "--to", "ort", "-o", "phone", "--int8"]) == 0
    (row,) = told("phone")
    assert row["bytes"] < row["dense_bytes"]
    assert all(timed["dense"] > 0 for timed in row["latency"])
    assert row["int8"]["metric"] == "accuracy"
    assert row["int8"]["before"] > 0.98
    assert "accuracy 99." in capsys.readouterr().out
    assert names("out") == {
        ".prunec-manifest.json",
        "model.py",
        "model.safetensors",
        "plan.lock.json",
        "report.html",
        "report.json",
    } | (names("out") & {"__pycache__"})


def test_a_folder_of_a_model_from_python_is_exported_alone():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
    compile(net, {"plan": 1, "passes": ["score", {"select": "50%"}, "shrink"]}, (torch.zeros(1, 3, 8, 8),)).save("out")
    assert cli.run(["export", "out", "--to", "onnx"]) == 0
    assert "dense_bytes" not in told()[0]


def test_a_plan_has_options_of_its_own_and_the_command_line_adds_targets():
    plan = Plan.from_dict({**HALVED, "export": [{"ort": {"style": "runtime"}}, "onnx"]})
    assert [(export.name, export.options.int8) for export in exports_of(plan, "")] == [("ort", None), ("onnx", None)]
    openvino, ort = exports_of(plan, "openvino,ort,openvino")
    assert (openvino.name, ort.options.style) == ("openvino", "runtime")
    (made,) = exports_of(plan, "ort", int8=True)
    assert made.options.int8 == OrtInt8()
    assert made.options.style == "runtime"


def test_a_plan_exports_its_model_without_the_passes():
    Path("plan.yaml").write_text(yaml.safe_dump({**HALVED, "export": ["onnx"]}))
    assert cli.run(["export", "plan.yaml", "-q"]) == 0
    (row,) = told()
    assert row["bytes"] > 400_000


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("", "nothing says what to export to"),
        ("ort,onxx", "no target is called 'onxx'"),
        ("torch", "no target is called 'torch'"),
    ],
)
def test_what_can_not_be_exported_to_is_told(names, words):
    with pytest.raises(PlanError, match=words) as caught:
        exports_of(Plan.from_dict(HALVED), names)
    assert caught.value.hint


def test_where_one_fails_the_others_stand_and_where_all_fail_nothing_is_written(monkeypatch, capsys):
    monkeypatch.setattr(Ort, "needs", ("no-such-package",))
    model = ["export", "prunec.models.digits:cnn", "--inputs", "1,1,8,8"]
    assert cli.run([*model, "--to", "ort,onnx", "-o", "some"]) == 1
    assert "model.onnx" in names("some")
    assert told("some")[0]["error"] == "ort needs no-such-package, which isn't installed"
    assert cli.run([*model, "--to", "ort", "-o", "none"]) == 1
    assert not Path("none").exists()
    shown = capsys.readouterr()
    assert "no-such-package" in shown.out
    assert "Traceback" not in shown.err


def test_a_difference_that_is_no_number_is_none(monkeypatch):
    monkeypatch.setattr(Export, "compare", lambda self, converted: (float("inf"), ""))
    assert cli.run(["export", "prunec.models.digits:cnn", "--inputs", "1,1,8,8", "--to", "onnx"]) == 0
    text = Path("exported/export.json").read_text()
    (row,) = json.loads(text, parse_constant=pytest.fail)["targets"]
    assert row["difference"] is None


def test_another_folder_is_never_replaced(capsys):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    assert cli.run(["export", "prunec.models.digits:cnn", "--inputs", "1,1,8,8", "--to", "ort", "-o", "mine"]) == 1
    assert "won't replace '" in capsys.readouterr().err
    assert names("mine") == {"thesis.txt"}


def test_the_files_metadata_are_those_of_the_compile():
    plan = {**HALVED, "classes": {"keep": [3, 5, 8], "names": {str(place): f"digit {place}" for place in range(10)}}}
    compile(None, {**plan, "export": ["onnx"]}, quick=True).save("out")
    assert cli.run(["export", "out", "--to", "onnx"]) == 0
    found, again = (
        {entry.key: entry.value for entry in onnx.load(f"{folder}/model.onnx").metadata_props}
        for folder in ("out", "exported")
    )
    assert found == again
    assert json.loads(found["class_names"]) == ["digit 3", "digit 5", "digit 8"]
    assert found["lock_sha256"] == hashlib.sha256(Path("out/plan.lock.json").read_bytes()).hexdigest()
