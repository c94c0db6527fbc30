"""What a layer is that latency knows: its sizes, its tiny ONNX model, and its words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import Made
from timing import CONV
from torch import nn
from torch.nn import functional as F

from prunec.compiler.cost.latency.layers import Layer, layer_at, model_of
from prunec.compiler.targets.ort_session import session
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
def test_a_tiny_model_has_the_sizes_of_the_layer(model, shape):
    layer, node = only_layer(model, shape)
    found, fed = model_of(layer, layer.inner, layer.outer)
    assert fed["x"].shape == shape
    (result,) = session(found).run(None, fed)
    assert result.shape == tuple(node.meta["val"].shape)


@pytest.mark.parametrize(("model", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_tiny_model_at_half_the_widths(model, shape):
    layer, _ = only_layer(model, shape)
    full = zip((layer.inner, layer.outer), layer.steps, strict=True)
    inner, outer = (max(step, width // 2 // step * step) for width, step in full)
    found, fed = model_of(layer, inner, outer)
    (result,) = session(found).run(None, fed)
    channels = 1 if layer.kind != "linear" else -1
    assert (fed["x"].shape[channels], result.shape[channels]) == (inner, outer)
    assert np.isfinite(result).all()


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
    (result,) = session(model_of(layer, 8, 12)[0]).run(None, model_of(layer, 8, 12)[1])
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
