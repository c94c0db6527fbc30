"""Whole models by the direct writer: names, open batches, writes in place, outputs, and what is left to torch."""

from __future__ import annotations

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from onnx_rows import difference
from torch import nn
from torchvision import models

from prunec.compiler.targets import onnx_export
from prunec.compiler.targets.onnx import writer
from prunec.compiler.targets.onnx.call import Declined
from prunec.compiler.targets.onnx_export import comparable_bytes, direct_bytes, export_onnx, onnx_feed, write_alike
from prunec.compiler.targets.ort_session import session
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.compare import relative_difference
from prunec.models import digits

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def loaded(model: nn.Module, *inputs, **options) -> onnx.GraphProto:
    return onnx.load_from_string(direct_bytes(trace(model.eval(), inputs), 20, **options)).graph


def kinds(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.side, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        out = F.relu(self.norm(self.conv(x)), inplace=True)
        out += self.side(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def test_the_graph_is_what_a_runtime_likes():
    torch.manual_seed(0)
    model = Block()
    graph = loaded(model, IMAGE, open_batch=True)
    assert kinds(graph) == ["Conv", "Relu", "Conv", "Add", "GlobalAveragePool", "Reshape", "Gemm"]
    found = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    assert {"conv.weight", "norm.bias", "side.weight", "side.bias", "head.weight", "head.bias"} < found.keys()
    assert (found["side.weight"] == model.side.weight.detach().numpy()).all()
    folded = model.conv.weight.detach() / (1 + model.norm.eps) ** 0.5
    assert abs(found["conv.weight"] - folded.numpy()).max() < 1e-6
    assert [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == ["batch", 2]


def test_a_convolution_that_others_read_keeps_its_weights():
    class Read(Block):
        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    program = trace(Read().eval(), (IMAGE,))
    model = direct_bytes(program, 20, open_batch=True)
    assert "BatchNormalization" in kinds(onnx.load_from_string(model).graph)
    assert difference(model, program, 3) < 1e-6


class Forms(nn.Module):
    """Several inputs, one of integers; outputs by name, one of them an input, a constant, and one value twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x, index):
        y = x + self.embed(index)
        return {"sum": y, "pair": (x, y), "table": self.table * 2}


def test_inputs_and_outputs_of_every_form():
    program = trace(Forms().eval(), (torch.randn(2, 6), torch.tensor([3, 6])))
    model = direct_bytes(program, 20, open_batch=True)
    graph = onnx.load_from_string(model).graph
    assert [x.name for x in graph.input] == ["x", "index"]
    assert [x.name for x in graph.output] == ["sum", "pair_0", "pair_1", "table"]
    for size in (1, 3):
        assert difference(model, program, size) == 0


def test_a_tied_weight_is_in_the_file_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x).sum(1))

    graph = loaded(Tied(), torch.tensor([[1, 2], [3, 4]]), open_batch=True)
    assert sorted(x.name for x in graph.initializer if len(x.dims) == 2) == ["embed.weight"]


class Written(nn.Module):
    """Writes in place that later readers see."""

    def forward(self, x):
        y = x * 2
        z = F.relu(y, inplace=True)
        z += 1
        return y + z


def test_a_write_in_place_is_seen_by_whoever_reads_later():
    program = trace(Written().eval(), (torch.randn(2, 6),))
    assert difference(direct_bytes(program, 20, open_batch=True), program, 3) == 0


class Views(nn.Module):
    def forward(self, x):
        y = x * 2
        z = y.view(-1, 2, 3)
        y += 1
        return z + 1


def test_a_write_into_what_a_view_may_share_is_declined():
    with pytest.raises(Declined, match="iadd at 'iadd': it writes in place into memory that 'view' may share"):
        direct_bytes(trace(Views().eval(), (torch.randn(2, 6),)), 20)


def test_weights_that_fill_a_file_are_declined(monkeypatch):
    monkeypatch.setattr(writer, "LARGEST", 100)
    with pytest.raises(Declined, match="the weights are too large for one file"):
        loaded(Block(), IMAGE)


def test_a_constant_isnt_blown_up():
    class Grown(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("row", torch.arange(64.0))

        def forward(self, x):
            return x + self.row.expand(100, 100, 64).sum((0, 1))

    assert len(direct_bytes(trace(Grown().eval(), (torch.randn(2, 64),)), 20)) < 2000


# -- beside torch's exporter -------------------------------------------------------------------------------------------


MODELS = {
    "digits": (lambda: digits.cnn(), (1, 8, 8)),
    "mlp": (lambda: digits.mlp(), (1, 8, 8)),
    "resnet": (lambda: digits.resnet(), (1, 8, 8)),
    "resnet18": (lambda: models.resnet18(), (3, 64, 64)),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(), (3, 64, 64)),
    "densenet121": (lambda: models.densenet121(), (3, 32, 32)),
    "shufflenet_v2_x0_5": (lambda: models.shufflenet_v2_x0_5(), (3, 64, 64)),
    "convnext_tiny": (lambda: models.convnext_tiny(), (3, 64, 64)),
    "vit": (lambda: models.VisionTransformer(64, 16, 2, 2, 32, 64), (3, 64, 64)),
    "swin_t": (lambda: models.swin_t(), (3, 64, 64)),
    "swin_v2_t": (lambda: models.swin_v2_t(), (3, 64, 64)),
}


def traced(name: str):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    return trace(make().eval(), (torch.randn(1, *shape),))


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_written_directly(name, tmp_path):
    report = export_onnx(traced(name), tmp_path / "model.onnx")
    assert (report.writer, report.fallback, report.dynamic_batch) == ("direct", "", True)
    assert list(report.differences) == [1, 3]
    assert report.max_difference < 1e-5


@pytest.mark.parametrize("name", ["digits", "mobilenet_v3_small", "vit"])
def test_networks_compute_what_torchs_exporter_writes(name):
    program = traced(name)
    (ours,), (theirs,) = (comparable_bytes([program], writer=kind) for kind in ("direct", "torch"))
    runs = [session(model).run(None, onnx_feed(model, program)) for model in (ours, theirs)]
    assert relative_difference(*runs) < 1e-5
    nodes = [len(onnx.load_from_string(model).graph.node) for model in (ours, theirs)]
    assert nodes[0] <= nodes[1]


def test_an_unknown_operation_leaves_the_model_to_torch(tmp_path):
    class Unknown(nn.Module):
        def forward(self, x):
            return torch.special.entr(x.abs())

    program = trace(nn.Sequential(nn.Linear(6, 6), Unknown()).eval(), (torch.randn(2, 6),))
    report = export_onnx(program, tmp_path / "model.onnx")
    assert report.writer == "torch"
    assert report.fallback == "special_entr at 'special_entr': the direct writer doesn't know it"
    assert report.max_difference < 1e-5


def test_a_file_that_computes_something_else_leaves_the_model_to_torch(tmp_path, monkeypatch):
    right = onnx_export.write

    def wrong(program, **options):
        model = right(program, **options)
        weight = next(x for x in model.graph.initializer if x.name == "fc.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, "fc.weight"))
        return model

    monkeypatch.setattr(onnx_export, "write", wrong)
    report = export_onnx(traced("digits"), tmp_path / "model.onnx")
    assert report.writer == "torch"
    assert report.fallback.startswith("its file fails the check: the ONNX file differs from the module by")
    assert report.max_difference < 1e-5


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.entr(x.abs())


def test_files_that_are_timed_beside_each_other_come_from_one_writer():
    known = trace(nn.Sequential(nn.Linear(6, 6)).eval(), (torch.randn(2, 6),))
    unknown = trace(nn.Sequential(nn.Linear(6, 6), Unknown()).eval(), (torch.randn(2, 6),))
    found = comparable_bytes([known, unknown])
    assert [onnx.load_from_string(model).producer_name for model in found] == ["pytorch", "pytorch"]
    found = comparable_bytes([known, known])
    assert [onnx.load_from_string(model).producer_name for model in found] == ["prunec", "prunec"]


@pytest.mark.parametrize(
    ("slim", "original", "writers"),
    [
        ((), (), ["prunec", "prunec"]),
        ((), (Unknown(),), ["pytorch", "pytorch"]),  # the slim file is written anew, to be timed
        ((Unknown(),), (), ["pytorch", "pytorch"]),
    ],
)
def test_an_original_is_written_as_the_slim_file_is(slim, original, writers, tmp_path):
    slim, original = (
        trace(nn.Sequential(nn.Linear(6, 6), *more).eval(), (torch.randn(2, 6),)) for more in (slim, original)
    )
    shipped, beside = tmp_path / "model.onnx", tmp_path / "original.onnx"
    report = export_onnx(slim, shipped)
    before = shipped.read_bytes()
    timed = write_alike(slim, shipped, report, original, beside)
    assert [onnx.load(path).producer_name for path in (timed, beside)] == writers
    assert shipped.read_bytes() == before
