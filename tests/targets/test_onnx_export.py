"""ONNX: the file is checked, runs at other batch sizes, equals the module, and is the same at every export."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from prunec.compiler.errors import ModelError, PlanError, VerifyError
from prunec.compiler.targets import onnx_export as export
from prunec.compiler.targets.onnx_export import export_onnx
from prunec.compiler.targets.onnx_file import Onnx
from prunec.compiler.targets.ort_session import ort_latency
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.compare import relative_difference


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        features = torch.relu(self.norm(self.conv(x)))
        return {"logits": self.head(features.mean((2, 3))), "features": features}


class Two(nn.Module):
    """Integers beside images, and outputs without names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 6), nn.Linear(6, 2)

    def forward(self, x, index):
        return self.head(x + self.embed(index)), x.sum(1)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(x.view(2, 6))


class FirstRow(nn.Module):
    """Runs on any batch, but the exporter has to know how many rows `unbind` gives."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(x - x.unbind(0)[0])


class Refused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        return torch.linalg.eigvals(self.head(x)).abs()


class Cancelling(nn.Module):
    """Sums of large numbers in several orders, less one of them: float32 is far from the truth in every runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 300)
        self.register_buffer("orders", torch.stack([torch.randperm(300) for _ in range(16)]))

    def forward(self, x):
        high = self.head(x).exp().float() * 1e4  # a float64 run stays one
        return high[:, self.orders].sum(2) - high.sum(1, keepdim=True) + x.sum(1, keepdim=True)


def program_of(kind: type[nn.Module], *inputs: torch.Tensor):
    torch.manual_seed(0)
    return trace(kind().eval(), inputs)


RANDOM = torch.Generator().manual_seed(0)
IMAGE = torch.randn(1, 3, 8, 8, generator=RANDOM)
ROWS = torch.randn(2, 6, generator=RANDOM)


def names(values) -> list[str]:
    return [value.name for value in values]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    program = program_of(Small, IMAGE)
    return program, path, export_onnx(program, path)


def test_a_batch_of_one_becomes_a_dynamic_one(small):
    _, path, report = small
    assert report.dynamic_batch
    assert not report.static_reason
    assert list(report.differences) == [1, 3]
    assert report.max_difference == max(report.differences.values()) <= 1e-5
    model = onnx.load(path)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert (names(model.graph.input), names(model.graph.output)) == (["x"], ["logits", "features"])
    assert (report.opset, report.ir_version, report.bytes) == (20, model.ir_version, path.stat().st_size)
    assert model.opset_import[0].version == 20


def test_the_file_computes_what_the_module_does(small):
    program, path, _ = small
    x = torch.randn(5, 3, 8, 8)
    got = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected = program.module.eval()(x)
    assert relative_difference(got, [value.numpy() for value in expected.values()]) < 1e-5


def test_the_same_program_gives_the_same_bytes_and_no_path_of_this_machine(small, tmp_path):
    _, path, _ = small
    export_onnx(program_of(Small, IMAGE), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert b"torch/nn" not in path.read_bytes()
    assert b"stack_trace" not in path.read_bytes()


def test_says_nothing_and_leaves_the_modes_alone(tmp_path, capfd):
    torch.manual_seed(0)
    program = trace(Small().train(), (torch.randn(2, 3, 8, 8),))
    modes = [part.training for part in program.module.modules()]
    export_onnx(program, tmp_path / "model.onnx")
    assert [part.training for part in program.module.modules()] == modes
    assert tuple(capfd.readouterr()) == ("", "")


def test_latency_is_measured(small):
    program, path, _ = small
    (seconds,) = ort_latency([path], program.inputs, seconds=0.1)
    assert 0 < seconds < 1


def test_several_inputs_and_outputs(tmp_path):
    program = program_of(Two, ROWS, torch.tensor([3, 6]))
    report = export_onnx(program, tmp_path / "model.onnx", opset=18)
    assert (report.opset, list(report.differences)) == (18, [1, 2, 3])
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert (names(graph.input), names(graph.output)) == (["x", "index"], ["output", "output_1"])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(FixedBatch, "doesn't run on a batch of 1: RuntimeError: shape"), (FirstRow, "can't leave the batch size open")],
)
def test_a_model_with_a_fixed_batch_is_exported_with_it(tmp_path, capfd, kind, reason):
    report = export_onnx(program_of(kind, ROWS), tmp_path / "model.onnx")
    assert not report.dynamic_batch
    assert reason in report.static_reason
    assert list(report.differences) == [2]
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert tuple(capfd.readouterr()) == ("", "")


def test_names_the_operation_without_an_onnx_form(tmp_path):
    with pytest.raises(ModelError, match=r"ONNX has no form of the operation 'aten\.linalg_eig'"):
        export_onnx(program_of(Refused, torch.randn(3, 6, 6)), tmp_path / "model.onnx")


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps, self.head = nn.LSTM(6, 5, proj_size=3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.steps(x)[0].mean(1))


def test_names_the_lstm_without_an_onnx_form(tmp_path):
    with pytest.raises(ModelError, match="ONNX has no form of an LSTM that projects its state, as steps does"):
        export_onnx(program_of(Projected, torch.randn(3, 4, 6)), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("opset", [7, 17, 99])
def test_refuses_opsets_that_would_silently_become_another(tmp_path, opset):
    with pytest.raises(PlanError, match=f"opset {opset} can't be exported\nhint: valid: 18 to "):
        export_onnx(program_of(FixedBatch, ROWS), tmp_path / "model.onnx", opset=opset)


class Wrong:
    """A runtime that computes something else for batches of some sizes."""

    def __init__(self, session: Any, error: float, *sizes: int) -> None:
        self.session, self.error, self.sizes = session, error, sizes
        self.get_inputs = session.get_inputs

    def run(self, names: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert self.error != 10, "out of order"
        factor = 1 + self.error * (len(feed["x"]) in self.sizes)
        return [value * factor for value in self.session.run(names, feed)]


def test_a_file_that_is_wrong_at_other_batch_sizes_becomes_a_static_one(tmp_path, monkeypatch):
    session = export.session
    monkeypatch.setattr(export, "session", lambda path: Wrong(session(path), 1.0, 3))
    report = export_onnx(program_of(Small, IMAGE), tmp_path / "model.onnx")
    assert (report.dynamic_batch, list(report.differences)) == (False, [1])
    assert report.static_reason.startswith("the ONNX file differs from the module by 1.0e+00 at batch 3")
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


@pytest.mark.parametrize("error", [3e-5, float("nan")])
def test_a_runtime_that_computes_something_else_stops_the_compile(tmp_path, monkeypatch, error):
    session = export.session
    monkeypatch.setattr(export, "session", lambda path: Wrong(session(path), error, 2))
    with pytest.raises(VerifyError, match=r"differs from the module .* at batch 2: .* float64") as caught:
        export_onnx(program_of(FixedBatch, ROWS), tmp_path / "model.onnx")
    assert caught.value.exit_code == 2


def test_a_runtime_that_fails_stops_the_compile(tmp_path, monkeypatch):
    session = export.session
    monkeypatch.setattr(export, "session", lambda path: Wrong(session(path), 10.0))
    with pytest.raises(
        VerifyError, match="onnxruntime can't run the ONNX file at batch 2: AssertionError: out of order"
    ):
        export_onnx(program_of(FixedBatch, ROWS), tmp_path / "model.onnx")


def test_a_type_that_onnx_does_not_convolve_is_the_models_fault(tmp_path):
    program = trace(nn.Sequential(nn.Conv2d(3, 4, 3)).to(torch.bfloat16).eval(), (IMAGE.bfloat16(),))
    with pytest.raises(ModelError, match="bfloat16 can't be checked as ONNX"):
        export_onnx(program, tmp_path / "model.onnx")


def test_a_file_that_the_runtime_cannot_load_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"onnxruntime can't load the ONNX file: InvalidProtobuf"):
        ort_latency([tmp_path / "model.onnx"], (ROWS,))


def test_a_float64_run_decides_where_float32_is_too_coarse(tmp_path):
    report = export_onnx(program_of(Cancelling, ROWS), tmp_path / "model.onnx")
    assert report.max_difference > 1e-5
    assert "from the float64 run, torch's float32" in report.float64_note


DIFFERENCES = [
    ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
    ([[1.0, 2.5]], [[1.0, 2.0]], 0.25),
    ([[0.0], [3.0]], [[0.0], [4.0]], 0.25),
    ([[0.1]], [[0.0]], float("inf")),
    ([[float("nan")]], [[1.0]], float("inf")),
    ([[1.0]], [[float("inf")]], float("inf")),
    ([[1.0, 1.0]], [[1.0]], float("inf")),
    ([[1.0]], [[1.0], [1.0]], float("inf")),
    ([[]], [[]], 0.0),
]


@pytest.mark.parametrize(("got", "expected", "difference"), DIFFERENCES)
def test_relative_difference(got, expected, difference):
    assert relative_difference(list(map(np.array, got)), list(map(np.array, expected))) == difference


def test_weights_beside_the_file(tmp_path, monkeypatch):
    torch.manual_seed(0)
    program = trace(nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)).eval(), (torch.randn(2, 40),))
    inside = export_onnx(program, tmp_path / "inside.onnx")
    beside = export_onnx(program, tmp_path / "model.onnx", weights="beside")
    data = tmp_path / "model.onnx.data"
    assert data.stat().st_size >= 30 * 40 * 4
    assert (tmp_path / "model.onnx").stat().st_size < 3000
    assert beside.bytes == data.stat().st_size + (tmp_path / "model.onnx").stat().st_size
    assert beside.differences == inside.differences
    for name in ("inside", "model"):
        Onnx().label(tmp_path / f"{name}.onnx", {"a": "b"})
    assert onnx.load(tmp_path / "model.onnx", load_external_data=False).metadata_props[0].value == "b"
    assert not (tmp_path / "inside.onnx.data").exists()
    for name in ("inside", "model"):
        x = np.ones((3, 40), np.float32)
        (got,) = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx").run(None, {"input": x})
        assert np.allclose(got, program.module(torch.ones(3, 40)).detach().numpy(), atol=1e-6)
    again = export_onnx(program, tmp_path / "model.onnx")
    assert not data.exists(), "it belongs to an earlier file"
    assert again.bytes == (tmp_path / "model.onnx").stat().st_size
    monkeypatch.setattr(export, "LARGEST", 1000)
    export_onnx(program, tmp_path / "model.onnx")
    assert data.exists(), "it is too large for one file"
