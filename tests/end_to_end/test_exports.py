"""A plan with several exports: one command, one table; what fails, fails alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from prunec.compiler.cli import main as cli
from prunec.compiler.driver import exports
from prunec.compiler.errors import ModelError
from prunec.compiler.targets import exporting
from prunec.compiler.targets.ort import Ort

ROOT = Path(__file__).parents[2]
PLAN = {
    "plan": 1,
    "model": {"factory": "prunec.models.digits:cnn", "weights": str(ROOT / "models/weights/digits.safetensors")},
    "inputs": [[1, 1, 8, 8]],
    "data": "prunec.models.data:digits",
    "passes": [
        {"score": {"criterion": "bn_scale", "normalize": "none"}},
        {"select": {"budget": {"macs": "52%"}}},
        "shrink",
    ],
}


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


def compiled(*exports, more=()):
    """Compile the digits network with these exports: the exit code, the report, and the names of the files."""
    Path("plan.yaml").write_text(yaml.safe_dump({**PLAN, "export": list(exports)}))
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

    monkeypatch.setattr(exports, "write_onnx", refuses)
    code, report, names = compiled("onnx")
    assert code == 1
    assert report["targets"][0]["error"] == "ONNX has no form of the operation 'x'"
    assert "onnx" not in report
    assert {"model.py", "model.safetensors", "plan.lock.json"} <= names


def test_a_quick_compile_times_nothing_and_leaves_the_original_alone():
    code, report, names = compiled("onnx", "ort", more=["--quick"])
    assert code == 0
    assert {"model.onnx", "model.ort"} <= names
    for row in report["targets"]:
        assert "latency" not in row
        assert "dense_bytes" not in row
        assert row["difference"] < 1e-5


def test_int8_without_data_is_told(capsys):
    del (plan := dict(PLAN))["data"]
    Path("plan.yaml").write_text(yaml.safe_dump({**plan, "export": [{"ort": {"int8": True}}]}))
    assert cli.run(["compile", "plan.yaml", "-o", "out", "--quick"]) == 1
    assert "ort: int8: int8 is calibrated on data, and there are none" in capsys.readouterr().out
    assert Path("out/model.ort").exists()


def test_check_names_the_entry_that_can_not_be_exported(capsys, monkeypatch):
    Path("plan.yaml").write_text(yaml.safe_dump({**PLAN, "export": ["onnx", {"ort": {"int8": True}}]}))
    assert cli.run(["check", "plan.yaml"]) == 0
    assert "export: ort: the original can be exported\n" in capsys.readouterr().out
    monkeypatch.setattr(Ort, "needs", ("no-such-package",))
    assert cli.run(["check", "plan.yaml"]) == 1
    told = capsys.readouterr().err
    assert "plan.yaml:" in told
    assert "ort needs no-such-package, which isn't installed" in told
