"""A program in the forms that converters read: at another batch size, and cut after some of its steps."""

from __future__ import annotations

import onnx
import pytest
import torch
from fake_runtimes import Attention, Depthwise, programs
from torch import nn

from prunec.compiler.ir.program import shape_of
from prunec.compiler.targets.sources import at_batch, described, exported, onnx_model, steps, until
from prunec.compiler.tracing.trace import trace


@pytest.mark.parametrize("made", [Depthwise, Attention])
def test_a_program_at_another_batch_has_its_shapes(made):
    (program, _) = programs(made, batch=4)
    one = at_batch(program, 1)
    assert one.inputs[0].shape == (1, 3, 16, 16)
    shapes = [shape_of(node) for node in steps(one) if isinstance(node.meta["val"], torch.Tensor)]
    assert shapes
    assert all(shape[0] == 1 for shape in shapes)
    assert program.inputs[0].shape == (4, 3, 16, 16)
    assert shape_of(steps(program)[0])[0] == 4
    assert [dim.dim_value for dim in onnx_model(one).graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(one.module(x), program.module(x))


def test_a_program_made_for_one_batch_stays_as_it_is():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, 3 * 4).sum(0) + torch.zeros(12)

    program = trace(Fixed(), (torch.randn(2, 3, 4),))
    assert at_batch(program, 2) is program
    assert at_batch(program, 1) is program or at_batch(program, 1).inputs[0].shape[0] == 1


@pytest.mark.parametrize("made", [Depthwise, Attention])
def test_what_a_cut_program_gives_is_what_flows_on_there(made):
    (program, _) = programs(made, batch=1)
    values = {}

    class Recorded(torch.fx.Interpreter):
        def run_node(self, n):
            values[n.name] = super().run_node(n)
            return values[n.name]

    Recorded(program.graph_module).run(*program.inputs)
    computed = steps(program)
    for count in range(1, len(computed) + 1):
        part = until(program, count)
        if part is None:
            continue
        outputs = part.module(*program.inputs)
        returned = [node.name for node in next(node for node in part.graph.nodes if node.op == "output").args[0]]
        assert returned
        for name, value in zip(returned, outputs, strict=True):
            torch.testing.assert_close(value, values[name])
        assert {node.name for node in steps(part)} <= {node.name for node in computed[:count]}
        onnx.checker.check_model(onnx_model(part))
    whole = until(program, len(computed))
    assert torch.equal(whole.module(*program.inputs)[0], program.module(*program.inputs))


def test_a_program_is_exported_as_it_is():
    (program, _) = programs()
    found = exported(program).module()(*program.inputs)
    assert torch.allclose(found, program.module(*program.inputs), atol=1e-6)


def test_a_step_is_described_by_its_layer():
    (program, _) = programs(Attention)
    named = [described(program, node) for node in steps(program)]
    assert named[0] == "patches (Conv2d)"
    assert "softmax" in named
