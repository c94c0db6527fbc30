"""A traced network has a text that reads back, with names, shapes and values as they were."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from program_texts import wrap
from torch import fx, nn

from prunec.compiler.errors import ModelError, TextError
from prunec.compiler.ir.program import Program
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text


def test_what_the_printer_adds_may_be_left_out():
    loose = """
        # a comment
        program Model {
          input %x : f32[ 1,2 ]   # another
          module fc = nn.Linear(in_features=2, out_features=3, bias=True)

          %fc = fc(%x)
          %relu = torch.nn.functional.relu(%fc) : f32[1,3]
          return %relu
        }
    """.replace("torch.nn.functional.", "F.")
    assert to_text(from_text(loose)) == wrap(
        "input %x : f32[1, 2]",
        "module fc = Linear(2, 3)",
        "%fc = fc(%x) : f32[1, 3]",
        "%relu = F.relu(%fc) : f32[1, 3]",
        "return %relu",
    )


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_shown_values_come_back_bit_for_bit(dtype):
    program = from_text(wrap(f"input %x : {dtype}[4]", f"param w : {dtype}[40]", "%w = get w", "return %w"))
    again = from_text(to_text(program, values=True))
    assert torch.equal(again.tensors["w"], program.tensors["w"])
    assert again.tensors["w"].dtype == program.tensors["w"].dtype


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(width)
        self.gain = nn.Parameter(torch.rand(width, 1, 1))
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x):
        y = F.gelu(self.norm(self.conv(x)))
        left, right = y.chunk(2, dim=1)
        return x + self.gain * torch.cat([right, left], 1) + self.offset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2))
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Linear(4 * 16, 5, bias=False)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x.view(x.size(0), -1)), "mean": x[:, 1:].mean((2, 3))}


def traced(model: nn.Module, x: torch.Tensor) -> Program:
    """A program by stock tracing, with the values of one run as the nodes' values."""
    module = fx.symbolic_trace(model.eval())
    values = fx.Interpreter(module)
    values.garbage_collect_values = False
    values.run(x)
    for node in module.graph.nodes:
        node.meta["val"] = fx.node.map_aggregate(
            values.env[node], lambda v: v.detach().to("meta") if isinstance(v, torch.Tensor) else v
        )
    state = {
        node.target: operator.attrgetter(node.target)(module)
        if node.op == "get_attr"
        else module.get_submodule(node.target)
        for node in module.graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    return Program(module.graph, state, (x,), name=type(model).__name__)


def test_a_traced_network_keeps_names_shapes_and_values():
    torch.manual_seed(0)
    program = traced(Net(), torch.randn(2, 3, 8, 8))
    text = to_text(program)
    again = from_text(text)
    assert to_text(again) == text
    assert {n: t.shape for n, t in again.tensors.items()} == {n: t.shape for n, t in program.tensors.items()}
    same = from_text(to_text(program, values=True))
    x = program.inputs[0]
    for key, want in program.module(x).items():
        assert torch.equal(same.module(x)[key], want)


def test_a_function_of_the_users_has_a_text_that_reads_as_an_error():
    graph = fx.Graph()
    x = graph.placeholder("x")
    out = graph.call_function(traced, (x,))
    graph.output(out)
    x.meta["val"] = out.meta["val"] = torch.empty(1, device="meta")
    text = to_text(Program(graph, {}, (torch.ones(1),)))
    assert f"%traced = {__name__}.traced(%x) : f32[1]" in text
    with pytest.raises(TextError, match=f"expected a function or module, got '{__name__}.traced'"):
        from_text(text)


def test_a_module_of_the_users_has_no_text():
    graph = fx.Graph()
    graph.output(graph.call_module("net"))
    with pytest.raises(ModelError, match=f"expected a module of torch.nn, got '{__name__}.Net'"):
        to_text(Program(graph, {"net": Net()}, ()))
