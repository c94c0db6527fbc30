"""The third party's operator and module are traced, labelled, verified, shrunk and written like any other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import acme_ops
import pytest
import torch
from torch import nn

from prunec.compiler import compile, trace
from prunec.compiler.errors import ModelError, PrunecError, VerifyError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.operations import OPERATIONS, Operation, operation_of
from prunec.compiler.ir.ops import op_name
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text

PLAN = {"plan": 1, "passes": [{"score": "l1"}, {"select": {"ratio": 0.5}}, "shrink"]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.scale = acme_ops.Scale(8)
        nn.init.normal_(self.scale.scale)

    def forward(self, x):
        return self.c(self.scale(self.b(torch.ops.acme.gate(self.a(x)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_they_stay_one_node_each(net, image):
    program = trace(net, (image,))
    nodes = {node.name: node for node in program.graph.nodes}
    assert nodes["scale"].op == "call_module"
    assert [op_name(node) for node in nodes.values() if node.op == "call_function"] == ["acme.gate"]
    assert type(program.state["scale"]) is acme_ops.Scale


def test_channels_pass_through_them(net, image):
    groups = analyse(trace(net, (image,))).groups
    assert {name: (group.size, int(group.free.sum())) for name, group in groups.items()} == {
        "a": (8, 8),  # each position of the first half goes with its partner
        "b": (8, 8),
        "c": (4, 0),
    }
    assert "scale.scale[0]" in {str(member.axis) for member in groups["b"].members}


def test_a_compile_is_verified_and_computes_the_slim_model(net, image):
    result = compile(net, PLAN, (image,))
    assert result.report["passes"][-1]["verification"]["difference"] < 1e-5
    slim = result.module.get_submodule("scale")
    assert isinstance(slim, acme_ops.Scale)
    assert (slim.channels, tuple(slim.scale.shape)) == (4, (4,))
    assert result.module.get_submodule("a").out_channels == 8


def test_the_written_model_imports_their_package(net, image, tmp_path):
    result = compile(net, PLAN, (image,))
    result.save(tmp_path / "out")
    source = (tmp_path / "out/model.py").read_text()
    assert "It needs torch, acme_ops and" in source
    assert "self.scale = acme_ops.Scale(4)" in source
    torch.save((image, result.module(image)), tmp_path / "expected.pt")
    code = "import torch, model; x, y = torch.load('expected.pt'); assert (model.load()(x) - y).abs().max() < 1e-6"
    path = f"{tmp_path / 'out'}:{Path(acme_ops.__file__).parent}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": path}, check=True)


def test_their_text_reads_back(net, image):
    text = to_text(trace(net, (image,)))
    assert "module scale = acme_ops.Scale(8)" in text
    assert "torch.ops.acme.gate(%a)" in text
    assert to_text(from_text(text)) == text


def test_a_wrong_rule_is_found(net, image, monkeypatch):
    """The label rule and the verifier's are compared: an error in one stops the compile."""

    def apart(self, flow, node):
        labels, rest = flow.along(node.args[0], 1, node)
        return (*rest, *flow.result(labels.reshape(2, -1)[0].copy(), 4, 1))  # the halves aren't joined

    monkeypatch.setattr(acme_ops.Gate, "labels", apart)
    with pytest.raises(VerifyError):
        compile(net, PLAN, (image,))


def test_without_a_row_for_marks_nothing_is_removed_unseen(net, image, monkeypatch):
    monkeypatch.setattr(acme_ops.Gate, "marks", lambda self, call: call.plain())
    with pytest.raises(VerifyError):
        compile(net, PLAN, (image,))


def test_literal_sizes_follow(image):
    class Cuts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            return self.b(torch.ops.acme.first(self.a(x), 6))

    torch.manual_seed(0)
    result = compile(Cuts().eval(), PLAN, (image,))
    [node] = [node for node in result.program.graph.nodes if node.target is torch.ops.acme.first]
    kept = {*range(8)} - {*result.lock["removed"]["a.weight"]["0"]}
    assert node.args[1] == len([position for position in kept if position < 6]) == result.module.b.in_channels


def test_onnx_knows_what_their_module_consists_of(net, image, tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.scale, self.b = nn.Conv2d(3, 8, 1), acme_ops.Scale(8), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.b(self.scale(self.a(x)))

    report = compile(Scaled().eval(), {**PLAN, "export": ["onnx"]}, (image,)).save(tmp_path / "out")
    assert report["onnx"]["max_difference"] < 1e-5
    (row,) = compile(net, {**PLAN, "export": ["onnx"]}, (image,)).save(tmp_path / "other")["targets"]
    assert "ONNX has no form of the operation 'acme" in row["error"]


class Loud(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 2


def test_whose_operation_a_target_is():
    assert isinstance(operation_of(torch.ops.acme.gate), acme_ops.Gate)
    assert isinstance(operation_of(torch.ops.acme.gate.default), acme_ops.Gate)
    assert isinstance(operation_of(acme_ops.Scale(3)), acme_ops.ScaleOperation)
    assert operation_of(torch.relu) is None
    assert operation_of(Loud(acme_ops.Scale(3))) is None

    parent = acme_ops.Scale(3)
    parent.inner = nn.ReLU()
    assert operation_of(parent) is None  # a module with children is traced through

    class Own(acme_ops.Scale):
        def forward(self, x):
            return x

    assert operation_of(Own(3)) is None  # another operation


class Taken(Operation):
    name = "relu"
    functions = (torch.relu,)

    def labels(self, flow, node):
        raise AssertionError

    def marks(self, call):
        raise AssertionError


def test_what_prunec_knows_is_not_taken_over(monkeypatch, image):
    monkeypatch.setattr(type(OPERATIONS), "made", lambda self: {"relu": Taken()})
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    program = trace(model.eval(), (image,))
    assert analyse(program).free.sum() == 4  # the module is torch's, and stays so

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.relu(self.a(x))

    with pytest.raises(PrunecError, match="the operation 'relu' is one that prunec knows"):
        analyse(trace(Functional().eval(), (image,)))


@torch.library.custom_op("acme_unregistered::relu", mutates_args=())
def unregistered(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1).relu()


@unregistered.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_an_operator_with_a_name_of_torchs_is_not_taken_for_it(image):
    class Flips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(torch.ops.acme_unregistered.relu(self.a(x)))

    result = compile(Flips().eval(), {"plan": 1, "passes": []}, (image,))
    [group] = [g for g in analyse(result.before).groups.values() if g.name == "a"]
    assert set(group.pinned) == {"read by unknown op acme_unregistered.relu at relu"}


def test_an_unregistered_operator_cannot_be_written(image, tmp_path):
    class Only(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.ops.acme_unregistered.relu(self.a(x))

    result = compile(Only().eval(), {"plan": 1, "passes": []}, (image,))
    with pytest.raises(ModelError, match=r"calls 'torch\.ops\.acme_unregistered\.relu', which isn't torch's own"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
