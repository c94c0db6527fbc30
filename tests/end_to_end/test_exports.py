"""A plan with several exports: one command, one table; what fails, fails alone."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from digits_plan import HALVED

from prunec.compiler.cli import main as cli
from prunec.compiler.errors import ModelError
from prunec.compiler.plan.exports import EXPORTING
from prunec.compiler.targets import exporting
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.exporting import missing
from prunec.compiler.targets.onnx_file import Onnx
from prunec.compiler.targets.openvino import OpenVino
from prunec.compiler.targets.ort import Ort


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


def compiled(*exports, more=()):
    """Compile the digits network with these exports: the exit code, the report, and the names of the files."""
    Path("plan.yaml").write_text(yaml.safe_dump({**HALVED, "export": list(exports)}))
    code = cli.run(["compile", "plan.yaml", "-o", "out", *more])
    return code, json.loads(Path("out/report.json").read_text()), {path.name for path in Path("out").iterdir()}


def test_files_for_two_formats_with_int8_judged_on_the_data(capsys):
    code, report, names = compiled({"onnx": {"int8": True}}, {"ort": {"int8": {"mode": "dynamic", "samples": 8}}})
    assert code == 0
    assert {"model.onnx", "model.int8.onnx", "model.ort", "model.int8.ort", "model.required_operators.config"} <= names
    onnx, ort = report["targets"]
    for row in (onnx, ort):
        assert row["difference"] < 1e-5
        assert row["bytes"] < row["dense_bytes"]
        assert [timed["threads"] for timed in row["latency"]] == [1, 2]
        assert row["int8"]["metric"] == "accuracy"
        assert row["int8"]["before"] == pytest.approx(report["accuracy"]["after"], abs=0.002)
        assert row["int8"]["after"] > 0.9
    assert onnx["bytes"] == report["onnx"]["bytes"]["after"]
    shown = capsys.readouterr().out
    assert "model.int8.ort" in shown
    assert "accuracy 99" in shown


def test_one_command_writes_the_files_of_every_runtime_that_is_installed(capsys):
    names = [name for name in EXPORTING if missing(TARGETS.named(name)()) is None]
    assert {"onnx", "ort"} <= set(names)
    code, report, files = compiled(*names)
    assert code == 0, [row.get("error") for row in report["targets"]]
    assert [row["target"] for row in report["targets"]] == names
    shown = capsys.readouterr().out
    for row in report["targets"]:
        assert set(row["files"]) <= files
        assert row["bytes"] < row["dense_bytes"]
        assert row.get("difference", 0.0) <= 1e-4
        assert "difference" in row or "unrunnable" in row
        assert row["files"][0] in shown


def test_what_fails_fails_alone(capsys, monkeypatch):
    def refuses(self, program, path, options):
        print("no such operator")  # noqa: T201
        raise RuntimeError("GridSample isn't there")

    monkeypatch.setattr(Ort, "convert", refuses)
    code, report, names = compiled("ort", "onnx")
    assert code == 1
    ort, onnx = report["targets"]
    assert ort["error"].startswith("its converter fails: RuntimeError: GridSample isn't there; it begins with conv1")
    assert "onnx" in report
    assert "error" not in onnx
    assert "model.onnx" in names
    assert "model.ort" not in names
    assert report["alarms"] == [f"the export to ort failed: {ort['error']}"]
    shown = capsys.readouterr()
    assert "what ort's tools printed:\nno such operator" in shown.out
    assert "Traceback" not in shown.err


def test_an_onnx_file_that_fails_leaves_the_rest(monkeypatch):
    def refuses(*args, **kwargs):
        raise ModelError("ONNX has no form of the operation 'x'", hint="take it out")

    monkeypatch.setattr(Onnx, "convert", refuses)
    code, report, names = compiled("onnx")
    assert code == 1
    error = report["targets"][0]["error"]
    assert error.startswith("ONNX has no form of the operation 'x'; it begins with conv1 (Conv2d), ")
    assert report["targets"][0]["hint"] == "take it out"
    assert "onnx" not in report
    assert {"model.py", "model.safetensors", "plan.lock.json"} <= names


def test_an_opset_that_is_not_there_is_told_as_such():
    code, report, names = compiled({"onnx": {"opset": 99}}, more=["--quick"])
    assert code == 1
    (row,) = report["targets"]
    assert row["error"] == "opset 99 can't be exported"
    assert row["hint"].startswith("valid: 18 to ")
    assert "model.onnx" not in names


def test_a_quick_compile_times_nothing_and_leaves_the_original_alone():
    code, report, names = compiled("onnx", "ort", more=["--quick"])
    assert code == 0
    assert {"model.onnx", "model.ort"} <= names
    for row in report["targets"]:
        assert "latency" not in row
        assert "dense_bytes" not in row
        assert row["difference"] < 1e-5


def test_int8_without_data_is_told(capsys):
    del (plan := dict(HALVED))["data"]
    Path("plan.yaml").write_text(yaml.safe_dump({**plan, "export": [{"ort": {"int8": True}}]}))
    assert cli.run(["compile", "plan.yaml", "-o", "out", "--quick"]) == 1
    assert "ort: int8: int8 is calibrated on data, and there are none" in capsys.readouterr().out
    assert Path("out/model.ort").exists()


def test_check_names_the_entry_that_can_not_be_exported(capsys, monkeypatch):
    Path("plan.yaml").write_text(yaml.safe_dump({**HALVED, "export": ["onnx", {"ort": {"int8": True}}]}))
    assert cli.run(["check", "plan.yaml"]) == 0
    assert "export: ort: the original can be exported\n" in capsys.readouterr().out
    monkeypatch.setattr(Ort, "needs", ("no-such-package",))
    assert cli.run(["check", "plan.yaml"]) == 1
    told = capsys.readouterr().err
    assert "plan.yaml:" in told
    assert "ort needs no-such-package, which isn't installed" in told


def folding(**said):
    """Compile the digits network for pixels from 0 to 255 with their channels last."""
    plan = {**HALVED, "preprocess": {"scale": "1/255", "mean": 0.1, "std": 0.5, "layout": "nhwc"}, **said}
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    return cli.run(["compile", "plan.yaml", "-o", "out", "--quick"])


def test_files_take_raw_pixels_and_give_probabilities_and_names():
    names = [f"digit {number}" for number in range(10)]
    exports = [{"onnx": {"int8": True}}, {"ort": {"int8": True}}, {"openvino": None}]
    if missing(OpenVino()) is not None:
        exports.pop()
    assert folding(export=exports, postprocess={"softmax": True, "names": names}) == 0
    report = json.loads(Path("out/report.json").read_text())
    for row in report["targets"][:2]:
        assert row["int8"]["before"] == pytest.approx(report["accuracy"]["after"], abs=0.002), "pixels are raw again"
        assert row["int8"]["after"] > 0.95
    assert all(row["difference"] < 1e-5 for row in report["targets"])
    assert Path("out/labels.txt").read_text().splitlines() == names
    opened = onnxruntime.InferenceSession("out/model.onnx")
    assert opened.get_inputs()[0].shape == ["batch", 8, 8, 1]
    raw = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
    (got,) = opened.run(None, {opened.get_inputs()[0].name: raw})
    sys.path.insert(0, "out")
    try:
        slim = import_module("model").load()
    finally:
        sys.path.remove("out")
        del sys.modules["model"]
    given = torch.from_numpy((raw / 255 - 0.1) / 0.5).permute(0, 3, 1, 2)
    assert np.allclose(got, slim(given).softmax(1).detach().numpy(), atol=1e-5)
    assert json.loads(opened.get_modelmeta().custom_metadata_map["class_names"]) == names


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"preprocess": {"mean": [0.1, 0.2]}}, "mean has 2 numbers, and the image 1 channels"),
        ({"postprocess": {"names": ["a"]}}, "1 names, and the output has 10 classes"),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(said, words, capsys):
    assert folding(export=["ort"], **said) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "plan.yaml:" in told
    assert "shrink" not in told
    assert not Path("out").exists()
    assert cli.run(["check", "plan.yaml"]) == 1
    assert words in capsys.readouterr().err


def test_sizes_of_images_whose_channels_are_last_stay_fixed(capsys):
    dynamic = [{"onnx": {"dynamic": ["batch", "height", "width"]}}]
    assert folding(export=dynamic) == 1
    told = capsys.readouterr().err
    assert "onnx: with 'layout: nhwc' the height and width can't be left open" in told
    assert "plan.yaml:" in told
    assert "take them out of 'dynamic'" in told


def test_a_lock_names_the_file_of_names_from_where_it_lies():
    Path("classes.txt").write_text("".join(f"digit {number}\n" for number in range(10)))
    assert folding(export=["onnx"], postprocess={"names": "classes.txt"}) == 0
    assert json.loads(Path("out/plan.lock.json").read_text())["postprocess"]["names"] == "../classes.txt"
    assert cli.run(["compile", "out/plan.lock.json", "-o", "again", "--quick"]) == 0
    assert Path("again/labels.txt").read_text() == Path("classes.txt").read_text()
    assert Path("again/model.onnx").stat().st_size == Path("out/model.onnx").stat().st_size
