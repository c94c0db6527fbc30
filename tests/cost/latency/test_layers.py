"""What a layer is that latency knows: its sizes, the program of it alone, and its words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets import Made
from timing import CONV
from torch import nn
from torch.nn import functional as F

from prunec.compiler.cost.latency.layers import PART, Layer, layer_at, parts_of
from prunec.compiler.tracing.trace import trace

IMAGE = (2, 8, 9, 9)


def functional(call, *shapes):
    parts = {f"w{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    return Made(parts, lambda m, x: call(x, *(getattr(m, name) for name in parts)))


def single(layer):
    return Made({"a": layer}, lambda m, x: m.a(x))


LAYERS = {
    "conv": (single(nn.Conv2d(8, 6, 3, stride=2, padding=1)), IMAGE),
    "conv_without_bias": (single(nn.Conv2d(8, 6, (3, 1), padding=(1, 0), dilation=2, bias=False)), IMAGE),
    "conv_same": (single(nn.Conv2d(8, 6, 3, padding="same", dilation=(1, 3))), IMAGE),
    "conv_valid": (single(nn.Conv2d(8, 6, 4, padding="valid")), IMAGE),
    "conv1d": (single(nn.Conv1d(8, 6, 5, padding=2)), (2, 8, 9)),
    "conv3d": (single(nn.Conv3d(8, 6, 3)), (1, 8, 4, 4, 4)),
    "grouped": (single(nn.Conv2d(8, 12, 3, groups=4)), IMAGE),
    "depthwise": (single(nn.Conv2d(8, 8, 3, groups=8)), IMAGE),
    "transposed": (single(nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)), IMAGE),
    "transposed_grouped": (single(nn.ConvTranspose2d(8, 6, 2, groups=2)), IMAGE),
    "linear": (single(nn.Linear(8, 5)), (2, 8)),
    "linear_on_tokens": (single(nn.Linear(8, 5)), (2, 7, 8)),
    "linear_without_bias": (single(nn.Linear(8, 5, bias=False)), (2, 7, 8)),
    "functional_linear": (functional(F.linear, (5, 8)), (2, 8)),
    "functional_conv": (functional(lambda x, w: F.conv2d(x, w, stride=2, padding=1), (6, 8, 3, 3)), IMAGE),
    "functional_same": (functional(lambda x, w: F.conv2d(x, w, padding="same"), (6, 8, 3, 3)), IMAGE),
    "functional_grouped": (functional(lambda x, w: F.conv2d(x, w, groups=2), (6, 4, 3, 3)), IMAGE),
    "functional_transposed": (functional(lambda x, w: F.conv_transpose2d(x, w, stride=2), (8, 6, 2, 2)), IMAGE),
}


def only_layer(model, shape):
    program = trace(model.eval(), (torch.randn(shape),))
    layers = [(layer_at(program, node, False), node) for node in program.graph.nodes]
    ((layer, node),) = [(layer, node) for layer, node in layers if layer is not None]
    return layer, node


@pytest.mark.parametrize(("model", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_alone_is_the_layer_of_the_network(model, shape):
    layer, node = only_layer(model, shape)
    program = parts_of(layer, [(layer.inner, layer.outer)])
    (x,), (y,) = program.inputs, program.module(*program.inputs).values()
    assert x.shape == shape
    assert y.shape == tuple(node.meta["val"].shape)
    (weight,) = [p for name, p in program.module.named_parameters() if name.endswith("weight")]
    own = next(p for p in model.parameters() if p.ndim > 1)
    with torch.no_grad():
        own.copy_(weight)
        for bias in (p for p in model.parameters() if p.ndim == 1):
            bias.copy_(program.module.get_parameter("part0000.bias"))
        assert torch.allclose(model(x), y, atol=1e-5)


@pytest.mark.parametrize(("model", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_at_several_widths_side_by_side(model, shape):
    layer, _ = only_layer(model, shape)
    full = layer.inner, layer.outer
    half = tuple(max(step, width // 2 // step * step) for width, step in zip(full, layer.steps, strict=True))
    program = parts_of(layer, [half, full])
    found = program.module(*program.inputs)
    assert list(found) == ["part0000_y", "part0001_y"]
    channels = 1 if layer.kind != "linear" else -1
    got = [(x.shape[channels], y.shape[channels]) for x, y in zip(program.inputs, found.values(), strict=True)]
    assert got == [half, full]
    placed = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "call_module"}
    assert {PART.search(name)[1]: tuple(value.shape) for name, value in placed.items()} == {
        "0000": tuple(found["part0000_y"].shape),
        "0001": tuple(found["part0001_y"].shape),
    }
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("functional")])
def test_the_elements_of_a_layers_weight(name):
    model, shape = LAYERS[name]
    layer, _ = only_layer(model, shape)
    assert layer.weights(layer.inner, layer.outer) == model.a.weight.numel()


def test_the_elements_of_what_is_left():
    layer = replace(CONV, outer=24, groups=4)
    assert layer.weights(8, 12) == nn.Conv2d(8, 12, 3, groups=4).weight.numel()
    assert replace(layer, whole=True).weights(8, 12) == nn.Conv2d(4, 12, 3, groups=2).weight.numel()


def test_whole_groups_leave_with_the_width_of_a_group():
    layer = replace(CONV, outer=24, groups=4, whole=True)
    assert (layer.steps, layer.at(8, 12)) == ((2, 6), (4, 12, 2))
    program = parts_of(layer, [(8, 12)])
    (result,) = program.module(*program.inputs).values()
    assert result.shape == (1, 12, 6, 6)


@pytest.mark.parametrize("call", [lambda x, w: F.linear(x, w), lambda x, w: F.conv2d(x, w, padding=x.shape[1] // 8)])
def test_what_has_no_tiny_model_is_no_layer(call):
    shape = (4,) if "linear" in call.__code__.co_names else (6, 8, 3, 3)
    program = trace(functional(call, (8,) if len(shape) == 1 else shape).eval(), (torch.randn(2, 8, 8, 8),))
    node = next(n for n in program.graph.nodes if "linear" in n.name or "conv" in n.name)
    assert layer_at(program, node, False) is None or len(shape) == 4


def test_a_layer_in_words():
    assert CONV.describe() == "conv 3x3, 6x6"
    assert replace(CONV, stride=(2, 2), groups=8, batch=4).describe() == "conv 3x3 /2 8 groups, 6x6, batch 4"
    assert Layer("linear", 8, 5, 1, ()).describe() == "linear, 1"
