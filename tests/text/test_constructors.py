"""Leaf modules as constructor calls: what is written, what is read, and what can't be said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.errors import ModelError, TextError
from prunec.compiler.ir.modules import clone_module, module_tensors
from prunec.compiler.text.constructors import Constructor, check_constructor, parse_constructor

CALLS = [
    (nn.Conv1d(4, 8, 3, padding="same"), 'Conv1d(4, 8, kernel_size=(3,), padding="same")'),
    (nn.Conv2d(3, 8, 3, padding=1), "Conv2d(3, 8, kernel_size=(3, 3), padding=(1, 1))"),
    (
        nn.Conv2d(4, 8, (3, 1), 2, dilation=2, groups=2, bias=False, padding_mode="reflect"),
        "Conv2d(4, 8, kernel_size=(3, 1), stride=(2, 2), dilation=(2, 2), groups=2, bias=False, "
        'padding_mode="reflect")',
    ),
    (nn.Conv3d(2, 2, 1), "Conv3d(2, 2, kernel_size=(1, 1, 1))"),
    (
        nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1, groups=2),
        "ConvTranspose2d(4, 6, kernel_size=(3, 3), stride=(2, 2), output_padding=(1, 1), groups=2)",
    ),
    (nn.Linear(3, 4), "Linear(3, 4)"),
    (nn.Linear(3, 4, bias=False), "Linear(3, 4, bias=False)"),
    (nn.Bilinear(3, 4, 5, bias=False), "Bilinear(3, 4, out_features=5, bias=False)"),
    (nn.BatchNorm2d(8), "BatchNorm2d(8)"),
    (nn.BatchNorm1d(8, affine=False), "BatchNorm1d(8, affine=False)"),
    (
        nn.BatchNorm3d(8, eps=1e-3, momentum=None, track_running_stats=False),
        "BatchNorm3d(8, eps=0.001, momentum=None, track_running_stats=False)",
    ),
    (nn.LayerNorm(8), "LayerNorm((8,))"),
    (nn.LayerNorm((2, 8), elementwise_affine=False), "LayerNorm((2, 8), elementwise_affine=False)"),
    (nn.LayerNorm(8, bias=False), "LayerNorm((8,), bias=False)"),
    (nn.GroupNorm(2, 8, eps=1e-6), "GroupNorm(2, 8, eps=1e-06)"),
    (nn.RMSNorm(8, eps=1e-6), "RMSNorm((8,), eps=1e-06)"),
    (nn.InstanceNorm2d(8), "InstanceNorm2d(8)"),
    (nn.InstanceNorm2d(8, affine=True), "InstanceNorm2d(8, affine=True)"),
    (nn.Dropout(), "Dropout()"),
    (nn.Dropout2d(0.1, inplace=True), "Dropout2d(p=0.1, inplace=True)"),
    (nn.MaxPool2d(2), "MaxPool2d(2)"),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "MaxPool2d(3, stride=2, padding=1, ceil_mode=True)"),
    (nn.AvgPool2d(2, divisor_override=3), "AvgPool2d(2, divisor_override=3)"),
    (nn.LPPool2d(2, 3), "LPPool2d(2, 3)"),
    (nn.FractionalMaxPool2d(2, output_ratio=0.5), "FractionalMaxPool2d((2, 2), output_ratio=(0.5, 0.5))"),
    (nn.AdaptiveAvgPool2d(1), "AdaptiveAvgPool2d(1)"),
    (nn.AdaptiveMaxPool2d((1, None)), "AdaptiveMaxPool2d((1, None))"),
    (nn.ReLU(inplace=True), "ReLU(inplace=True)"),
    (nn.ReLU6(), "ReLU6()"),
    (nn.GELU("tanh"), 'GELU(approximate="tanh")'),
    (nn.ELU(float("inf")), 'ELU(alpha=float("inf"))'),
    (nn.Hardtanh(0, 6), "Hardtanh(min_val=0, max_val=6)"),
    (nn.Threshold(0.1, 2), "Threshold(0.1, 2)"),
    (nn.Softmax(dim=1), "Softmax(dim=1)"),
    (nn.Sigmoid(), "Sigmoid()"),
    (nn.PReLU(8, init=0.1), "PReLU(num_parameters=8, init=0.1)"),
    (nn.Embedding(10, 3, padding_idx=0), "Embedding(10, 3, padding_idx=0)"),
    (nn.EmbeddingBag(10, 3, mode="sum"), 'EmbeddingBag(10, 3, mode="sum")'),
    (nn.Upsample(scale_factor=2, mode="bilinear"), 'Upsample(scale_factor=2.0, mode="bilinear")'),
    (nn.UpsamplingNearest2d(size=4), "UpsamplingNearest2d(size=4)"),
    (nn.PixelShuffle(2), "PixelShuffle(2)"),
    (nn.ChannelShuffle(2), "ChannelShuffle(2)"),
    (nn.ZeroPad2d((1, 2, 0, 0)), "ZeroPad2d((1, 2, 0, 0))"),
    (nn.Flatten(), "Flatten()"),
    (nn.Flatten(2, 3), "Flatten(start_dim=2, end_dim=3)"),
    (nn.Unflatten(1, (2, 4)), "Unflatten(1, (2, 4))"),
    (nn.Identity(7, anything=True), "Identity()"),
    (nn.LocalResponseNorm(5), "LocalResponseNorm(5)"),
    (nn.PairwiseDistance(3.0), "PairwiseDistance(p=3.0)"),
    (
        nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=4, batch_first=True),
        "MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=4, batch_first=True)",
    ),
    (nn.LSTM(4, 8), "LSTM(4, 8)"),
    (
        nn.LSTM(4, 8, 2, bias=False, batch_first=True, bidirectional=True, proj_size=3),
        "LSTM(4, 8, num_layers=2, bias=False, batch_first=True, bidirectional=True, proj_size=3)",
    ),
    (nn.GRU(4, 8), "GRU(4, 8)"),
    (nn.RNN(4, 8, nonlinearity="relu"), 'RNN(4, 8, nonlinearity="relu")'),
    (nn.LSTMCell(3, 4, bias=False), "LSTMCell(3, 4, bias=False)"),
    (
        nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10], 2.0),
        "AdaptiveLogSoftmaxWithLoss(8, 20, cutoffs=[5, 10], div_value=2.0)",
    ),
]


@pytest.mark.parametrize(("module", "text"), CALLS, ids=[text for _, text in CALLS])
def test_a_call_is_written_read_and_built(module, text):
    made = check_constructor(module)
    assert made.source(prefix="") == text
    assert parse_constructor(text) == made == parse_constructor(made.source())
    built = made.build("meta")
    shapes = {name: tensor.shape for name, tensor in module_tensors("", module)}
    assert {name: tensor.shape for name, tensor in module_tensors("", built)} == shapes
    assert repr(built) == repr(module)


def test_a_slimmed_module_gives_its_slim_call():
    conv = nn.Conv2d(4, 8, 3, groups=4)
    slim = clone_module(
        conv, {"weight": conv.weight[:6], "bias": conv.bias[:6]}, in_channels=3, out_channels=6, groups=3
    )
    assert check_constructor(slim).source() == "nn.Conv2d(3, 6, kernel_size=(3, 3), groups=3)"
    norm = nn.LayerNorm(8)
    slim_norm = clone_module(norm, {"weight": norm.weight[:5], "bias": norm.bias[:5]}, normalized_shape=(5,))
    assert check_constructor(slim_norm).source() == "nn.LayerNorm((5,))"


def test_the_type_of_the_parameters_is_said_where_asked_for():
    made = check_constructor(nn.Linear(3, 4, dtype=torch.float64))
    assert made.source() == "nn.Linear(3, 4)"
    typed = made.with_dtype(torch.float64)
    assert typed.source() == "nn.Linear(3, 4, dtype=torch.float64)"
    assert parse_constructor(typed.source()).build().weight.dtype == torch.float64


def test_building_on_the_meta_device_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    Constructor(nn.Linear, (("in_features", 3), ("out_features", 4))).build("meta")
    assert torch.equal(before, torch.get_rng_state())


class Scaled(nn.Linear):
    """A subclass with state of its own."""


def _half_slimmed():
    conv = nn.Conv2d(4, 4, 3)
    conv.out_channels = 3
    return conv


def _hooked():
    layer = nn.Linear(3, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


def _patched():
    layer = nn.Linear(3, 4)
    layer.forward = torch.relu
    return layer


REFUSED = [
    (Scaled(3, 4), f"expected a module of torch.nn, got '{__name__}.Scaled'"),
    (
        _half_slimmed(),
        "Conv2d can't be made by Conv2d(4, 3, kernel_size=(3, 3)): 'weight' would be torch.float32[3, 4, 3, 3], and is "
        "torch.float32[4, 4, 3, 3]",
    ),
    (_hooked(), "Linear can't be made by Linear(3, 4): '_forward_hooks' would be empty, and is not"),
    (_patched(), "Linear can't be made by Linear(3, 4): 'forward' would be the class's, and is a function of its own"),
    (nn.Sequential(nn.ReLU()), "Sequential can't be made by Sequential(): '0.class' would be NoneType, and is ReLU"),
    (
        nn.CrossEntropyLoss(torch.ones(3)),
        "CrossEntropyLoss: expected a literal in the attribute 'weight', got a Tensor",
    ),
    (
        nn.TransformerEncoderLayer(8, 2),
        "TransformerEncoderLayer has no attribute 'd_model', which its constructor requires",
    ),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=[type(module).__name__ for module, _ in REFUSED])
def test_what_no_call_makes_is_refused(module, message):
    with pytest.raises(ModelError) as caught:
        check_constructor(module)
    assert caught.value.message == message


BAD_CALLS = [
    ("Conv2D(3, 4, 3)", 1, "expected a class of torch.nn, got 'Conv2D'", "did you mean 'Conv2d'?"),
    ("Linear(3)", 1, "expected an argument 'out_features' of Linear, got none", None),
    ("Linear(3, 4, baas=True)", 14, "expected an argument of Linear, got 'baas'", "did you mean 'bias'?"),
    ("Linear(3, x)", 11, "expected a literal, got 'x'", None),
    ("Linear(3, __import__('os'))", 11, "expected a literal, got \"__import__('os')\"", None),
    ("Linear(3, 4, 1, 2, 3, 4)", 23, "expected at most 5 arguments of Linear, got 6", None),
    ("Linear(3, in_features=3)", 11, "expected one value for 'in_features', got two", None),
    ("Linear(3", 7, "expected an expression, got 'Linear(3': '(' was never closed", None),
    (
        "Linear(3, 4, dtype=torch.float23)",
        20,
        "expected a literal, got 'torch.float23'",
        "did you mean 'torch.float32'?",
    ),
    ("7", 1, "expected a module such as Linear(8, 4), got '7'", None),
]


@pytest.mark.parametrize(("text", "column", "message", "hint"), BAD_CALLS, ids=[text for text, *_ in BAD_CALLS])
def test_a_bad_call_is_an_error_with_its_place(text, column, message, hint):
    with pytest.raises(TextError) as caught:
        parse_constructor(text)
    error = caught.value
    assert (error.message, error.at.column, error.hint) == (message, column, hint)
