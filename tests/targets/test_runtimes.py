"""Every target that is installed converts pruned networks, and runs them in its own runtime as torch does."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from auditing import audited
from fake_runtimes import Attention, Depthwise, programs
from torch import nn

from prunec.compiler.errors import PrunecError
from prunec.compiler.targets import exporting
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.exporting import Calibration, Export, ExportContext, export, missing
from prunec.compiler.targets.pixels import Folded, Pixels
from prunec.compiler.tracing.trace import trace


def _exports(name):
    try:
        return bool(TARGETS.named(name).suffixes)
    except PrunecError:
        return True


NAMES = [name for name in TARGETS.names() if _exports(name)]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)


def _target(name):
    target = TARGETS.named(name)()
    if (lacking := missing(target)) is not None:
        pytest.skip(lacking.message)
    return target


@pytest.mark.parametrize("made", [Depthwise, Attention])
@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_network_is_converted_run_and_timed(name, made, tmp_path):
    target = _target(name)
    slim, dense = programs(made)
    found = export(target, slim, tmp_path, target.Options(), ExportContext(dense=dense))
    assert not found.failed, found.error + found.log
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(found.files)
    assert 0 < found.bytes < found.dense_bytes
    assert any(character.isdigit() for character in found.runtime), "its version"
    if found.unrunnable:
        assert found.difference is None
        return
    assert found.difference <= 10 * target.tolerance
    assert [timed.threads for timed in found.latency] == [1, 2]
    assert all(timed.slim > 0 and timed.dense > 0 for timed in found.latency)


class Small(nn.Module):
    """Three steps, each with a fault to put in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.point(self.stem(x)).mean((2, 3)))


FAULTS = {
    "a transposed weight": ("point.weight", lambda weight: weight.transpose(0, 1)),
    "a dropped bias": ("head.bias", torch.zeros_like),
    "a wrong channel order": ("stem.weight", lambda weight: weight.flip(1)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_of_the_converter_is_told_with_the_layer(name, fault, tmp_path, monkeypatch):
    """The target converts another program than it is handed; what is right is what it was handed."""
    target = _target(name)
    if target.unrunnable():
        return
    key, spoil = FAULTS[fault]
    torch.manual_seed(0)
    program = trace(Small().eval(), (torch.randn(1, 3, 8, 8),))
    convert = type(target).convert

    def wrong(self, given, path, options):
        state = copy.deepcopy(dict(given.state))
        owner, _, member = key.rpartition(".")
        if owner in state:
            getattr(state[owner], member).data = spoil(getattr(state[owner], member).data).contiguous()
        return convert(self, given.with_graph(given.copy_graph(), state), path, options)

    monkeypatch.setattr(type(target), "convert", wrong)
    found = export(target, program, tmp_path, target.Options(), ExportContext(timed=False))
    assert "computes something else than the module" in found.error
    assert f"it begins with {key.split('.')[0]} (" in found.error
    assert "the converter's or the runtime's" in found.hint
    assert not list(tmp_path.iterdir())


def _bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_one_program_gives_the_same_bytes_and_no_connection_is_opened(name, tmp_path):
    """What converters start is a module of ours, pnnx, or the flatbuffer compiler of ExecuTorch."""
    target = _target(name)
    program = trace(Small().eval(), (torch.randn(1, 3, 8, 8),))
    with audited() as events:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            found = export(target, program, tmp_path / folder, target.Options(), ExportContext(timed=False))
            assert not found.failed, found.error + found.log
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    started = [args[1] for event, args in events if event == "subprocess.Popen"]
    assert all(command[1:3] == ["-P", "-m"] or Path(command[0]).name in ("pnnx", "flatc") for command in started), (
        started
    )
    assert [event for event, _ in events if event != "subprocess.Popen"] == []


@pytest.mark.parametrize("name", NAMES)
def test_files_in_int8_compute_nearly_the_same(name, tmp_path):
    target = _target(name)
    if not target.quantizes():
        assert target.name in WITHOUT_INT8
        assert target.without_int8, "what to do instead"
        return
    assert target.name not in WITHOUT_INT8
    slim, _ = programs()
    exact = slim.module(slim.inputs[0]).detach()

    def judged(model):
        got = model(slim.inputs[0])
        return "error", float((got - exact).abs().max() / exact.abs().max())

    def samples(count, batch):
        torch.manual_seed(1)
        return [[torch.randn(batch or 2, 3, 16, 16).numpy()] for _ in range(8)]

    options = target.Options.model_validate({"int8": True})
    found = export(
        target, slim, tmp_path, options, ExportContext(timed=False, calibration=Calibration(samples, judged))
    )
    assert not found.failed, found.int8.error if found.int8 else found.error
    assert found.int8.bytes > 0
    if not found.unrunnable:
        assert found.int8.before < 1e-4
        assert 1e-4 < found.int8.after < 0.3, "it is rounded, and not broken"


WITHOUT_INT8 = frozenset({"ncnn"})
"""Those that bring no tools for it."""


@pytest.mark.parametrize("name", NAMES)
def test_a_session_takes_numpy_arrays_and_gives_them_in_order(name, tmp_path):
    target = _target(name)
    if target.unrunnable():
        return

    class Two(nn.Module):
        def forward(self, x, y):
            return (x + y, (x - y).relu())

    program = trace(Two(), (torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)))
    path = tmp_path / f"model{target.suffixes[0]}"
    x, y = (torch.randn(1, 3, 4, 4) for _ in range(2))
    with captured():
        target.convert(program, path, target.Options())
        found = target.load(path, 1).run([x.numpy(), y.numpy()])
    assert [type(value) for value in found] == [np.ndarray] * 2
    for got, expected in zip(found, (x + y, (x - y).relu()), strict=True):
        assert np.allclose(got, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_in_a_wrong_order_are_found(name, tmp_path, monkeypatch):
    target = _target(name)
    if target.unrunnable():
        return
    folded = Folded(Pixels(1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), swapped=True, last=True), softmax=True)
    (program, convert) = folded.into(programs()[0]), type(target).convert

    def wrong(self, program, path, options):
        state = {name: copy.deepcopy(part) for name, part in program.state.items()}
        if "preprocess" in state:
            state["preprocess"].weight.data = state["preprocess"].weight.data.flip(1)
        return convert(self, program.derive(state=state), path, options)

    monkeypatch.setattr(Export, "_first", lambda self, good: None)  # the test of other faults looks for the layer
    assert not export(target, program, tmp_path, target.Options(), ExportContext(timed=False)).failed
    monkeypatch.setattr(type(target), "convert", wrong)
    found = export(target, program, tmp_path, target.Options(), ExportContext(timed=False))
    assert "computes something else than the module" in found.error, found
    assert not list(tmp_path.iterdir())


TOOLS = {
    "ort": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "litert_torch",
    "mnn": "_tools",
    "ncnn": "ncnn",
    "coreml": "coremltools",
}
"""The package that does the work for a target in a process of its own."""


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_of_its_tools_is_its_alone(name, tmp_path, monkeypatch):
    """In the other process, the package is one that crashes as soon as it is imported."""
    target = _target(name)
    if name == "onnx":
        return  # no converter but torch's and our own
    (tmp_path / f"{TOOLS[name]}.py").write_text("import os; print('about to crash', flush=True); os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(Export, "_first", lambda self, good: None)
    program = trace(Small().eval(), (torch.randn(1, 3, 8, 8),))
    (tmp_path / "out").mkdir()
    found = export(target, program, tmp_path / "out", target.Options(), ExportContext(timed=False))
    assert "crashes (SIGABRT)" in found.error
    assert "about to crash" in found.log
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["onnx", "ort", "openvino", "mnn"])
def test_weights_that_one_onnx_file_cannot_hold_reach_the_runtime(name, tmp_path, monkeypatch):
    """They go into a file beside it; here from 10 kB on, in earnest from 2 GB on."""
    target = _target(name)
    monkeypatch.setattr("prunec.compiler.targets.onnx_export.LARGEST", 10_000)
    torch.manual_seed(0)
    program = trace(nn.Linear(64, 64).eval(), (torch.randn(2, 64),))
    found = export(target, program, tmp_path, target.Options(), ExportContext(timed=False))
    assert not found.failed, found.error + found.log
    assert found.bytes > 64 * 64 * 4
    assert (name == "onnx") == (tmp_path / "model.onnx.data").exists()
