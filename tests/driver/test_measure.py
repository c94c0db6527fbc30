"""What is measured of both models when the artifacts are written, and what a quick compile leaves out."""

from __future__ import annotations

import hashlib

import onnx
import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.driver import exports, measure
from prunec.compiler.driver.measure import measure_latency
from prunec.compiler.report.figures import figures, unmeasured
from prunec.compiler.report.report import Change
from prunec.compiler.targets import exporting, onnx_export

PASSES = [{"score": "l1"}, {"select": "50%"}, "shrink"]


def small() -> nn.Module:
    """Two convolutions, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def compiled(*, quick=False, **plan):
    """The small model with half of its channels."""
    return compile(small(), {"plan": 1, "passes": PASSES, **plan}, (torch.zeros(1, 3, 8, 8),), quick=quick)


def test_both_files_are_weighed_and_timed(tmp_path):
    found = compiled(export=["onnx"]).write(tmp_path / "out").onnx
    assert found.export.bytes == (tmp_path / "out" / "model.onnx").stat().st_size
    weights = sum(p.numel() for p in small().parameters()) * 4
    assert weights < found.original < weights + 2000
    assert found.bytes.before > found.bytes.after
    assert min(found.latency.before, found.latency.after) > 0
    assert [path.name for path in (tmp_path / "out").glob("*.onnx")] == ["model.onnx"]


@pytest.mark.parametrize("dynamic", [(), ("batch",), ("batch", "height", "width"), ("width",)])
def test_open_sizes_are_fixed_while_both_are_timed(dynamic, tmp_path, monkeypatch):
    timed = []

    def seconds(runs, seconds, *, alone):
        timed.append([[entry.shape for entry in run.func.__self__._opened.get_inputs()] for run in runs])
        return [1.0 for _ in runs]

    monkeypatch.setattr(exporting, "run_seconds", seconds)
    compiled(export=[{"onnx": {"dynamic": list(dynamic)}}]).save(tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    open_sizes = {d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim} - {""}
    assert open_sizes == set(dynamic)
    assert timed == [[[[1, 3, 8, 8]], [[1, 3, 8, 8]]]] * 2


def test_latency_without_a_file():
    result = compiled()
    found, slow = measure_latency(result.before, result.program)
    assert min(found.before, found.after) > 0
    assert not slow, "so small a model takes the runtime's own time"


def test_slow_layers_are_told_where_latency_is_measured_without_a_file(tmp_path, monkeypatch):
    given = []

    def told(programs, latency, writer="direct", *, by_latency):
        given.append((latency, writer, by_latency))
        return "slow"

    monkeypatch.setattr(measure, "ort_latency", lambda models, inputs: (2.0, 1.5))
    monkeypatch.setattr(exporting, "run_seconds", lambda runs, seconds, *, alone: (1.5, 2.0))
    for module in (exports, measure):
        monkeypatch.setattr(module, "slow_layers", told)
    budget = [{"score": "l1"}, {"select": {"budget": {"latency": "90%"}}}, "shrink"]
    for export in ([], ["onnx"]):
        result = compile(small(), {"plan": 1, "passes": budget, "export": export}, (torch.zeros(1, 3, 8, 8),))
        report = result.write(tmp_path / "out")
        assert report.warnings == (*result.findings.warnings, "slow")
        assert report.latency.measured == Change(2.0, 1.5)
    assert given == [(Change(2.0, 1.5), "direct", True)] * 2


# -- a quick compile -----------------------------------------------------------------------------------------------


def test_a_quick_compile_writes_the_same_files_and_says_what_it_left_out(tmp_path):
    whole, quick = compiled(export=["onnx"]), compiled(export=["onnx"], quick=True)
    whole.save(tmp_path / "whole")
    report = quick.write(tmp_path / "quick")
    for name in ("model.py", "model.onnx", "model.safetensors"):
        assert (tmp_path / "quick" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert quick.lock == whole.lock
    assert report.unmeasured == ("the latency", "the original's ONNX file")
    assert unmeasured(report) == "not measured: --quick: the latency and the original's ONNX file"
    said = report.to_dict()
    assert said["unmeasured"] == ["the latency", "the original's ONNX file"]
    assert said["onnx"]["bytes"] == {"after": (tmp_path / "quick" / "model.onnx").stat().st_size}
    assert "latency" not in said["onnx"]
    assert said["onnx"]["differences"].keys() == {"1", "3"}
    assert not {"ONNX file", "latency in onnxruntime"} & {figure.name for figure in figures(report)}
    assert "not measured: --quick" in (tmp_path / "quick" / "report.html").read_text(encoding="utf-8")


def test_a_quick_compile_converts_and_times_no_original(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a quick compile has no use for it")

    monkeypatch.setattr(onnx_export, "write_alike", never)
    monkeypatch.setattr(exporting, "run_seconds", never)
    monkeypatch.setattr(exports, "slow_layers", never)
    compiled(export=["onnx"], quick=True).save(tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_where_nothing_would_be_measured_quick_leaves_nothing_out(tmp_path):
    report = compiled(quick=True).write(tmp_path / "out")
    assert report.unmeasured == ()
    assert "unmeasured" not in report.to_dict()
    assert unmeasured(report) == ""


def test_a_file_with_its_weights_beside_is_timed_like_any_other(tmp_path):
    plan = {"export": [{"onnx": {"weights": "beside"}}]}
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)).eval()
    report = compile(wide, {"plan": 1, "passes": PASSES, **plan}, (torch.zeros(1, 3, 8, 8),)).save(tmp_path / "out")
    assert report["targets"][0]["files"] == ["model.onnx", "model.onnx.data"]
    assert report["onnx"]["bytes"]["after"] == sum(
        path.stat().st_size for path in (tmp_path / "out").glob("model.onnx*")
    )
    assert report["onnx"]["latency"]["after"] > 0
    properties = onnx.load(tmp_path / "out/model.onnx").metadata_props
    lock = (tmp_path / "out/plan.lock.json").read_bytes()
    assert {entry.key: entry.value for entry in properties} == {"lock_sha256": hashlib.sha256(lock).hexdigest()}


def test_an_original_that_is_too_large_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("prunec.compiler.targets.onnx_export.LARGEST", 100)
    report = compiled(export=["onnx"]).save(tmp_path / "out")
    (row,) = report["targets"]
    assert row["files"][0] == "model.onnx"
    assert "latency" not in report["onnx"]
    assert row["note"] == "the original isn't timed: its weights are too large for one file"
    assert [timed["dense"] for timed in row["latency"]] == [None, None]
