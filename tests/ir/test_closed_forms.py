"""Sizes of layers in closed form: torch's own, or none where torch would refuse."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler.ir.closed_forms import function_shape, module_shape
from prunec.compiler.tracing.trace import trace

LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "linear": (lambda: nn.Linear(4, 6), (2, 5, 4)),
    "norm": (lambda: nn.BatchNorm2d(4), (2, 4, 7, 7)),
}


def meta(shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("name", LAYERS)
def test_the_sizes_are_torchs(name):
    make, shape = LAYERS[name]
    module = make().eval()
    assert module_shape(module, meta(shape)) == tuple(module(torch.rand(shape)).shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("given", [torch.float64, torch.float16, torch.int64])
def test_another_dtype_has_no_closed_form(name, given):
    make, shape = LAYERS[name]
    assert module_shape(make().eval(), meta(shape, given)) is None
    assert module_shape(make().eval().to(torch.bfloat16), meta(shape)) is None


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_run(hook):
    module = nn.Linear(4, 6)
    getattr(module, hook)(lambda *_: None)
    assert module_shape(module, meta((2, 4))) is None


POOLS = {
    "max": (nn.MaxPool2d(3, 2, 1), (2, 4, 9, 8)),
    "max, rounded up": (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 4, 8, 11)),
    "max, the last window outside": (nn.MaxPool2d(2, 3, 1, ceil_mode=True), (2, 4, 5, 8)),
    "max, dilated": (nn.MaxPool2d((3, 2), (2, 1), (1, 0), dilation=2), (1, 4, 9, 8)),
    "max along a line": (nn.MaxPool1d(3), (2, 4, 9)),
    "max in space": (nn.MaxPool3d(2), (2, 4, 5, 6, 7)),
    "mean": (nn.AvgPool2d(2), (2, 4, 7, 8)),
    "mean along a line": (nn.AvgPool1d(2, ceil_mode=True), (2, 4, 7)),
    "mean in space": (nn.AvgPool3d(3, 2, 1), (2, 4, 5, 6, 7)),
    "adaptive": (nn.AdaptiveAvgPool2d((1, None)), (2, 4, 7, 8)),
    "adaptive along a line": (nn.AdaptiveAvgPool1d(3), (2, 4, 7)),
    "adaptive in space": (nn.AdaptiveAvgPool3d(1), (2, 4, 7, 8, 3)),
}


@pytest.mark.parametrize("name", POOLS)
def test_the_sizes_of_pools_are_torchs(name):
    pool, shape = POOLS[name]
    found = pool(torch.rand(shape))
    assert module_shape(pool, meta(shape)) == tuple(found.shape)
    assert found.is_contiguous()


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("ceil", [False, True])
def test_pools_of_all_sizes_are_torchs_or_none(size, ceil):
    for kernel in range(1, 4):
        for stride in range(1, 5):
            for pad in range(3):
                pool = nn.MaxPool1d(kernel, stride, pad, ceil_mode=ceil)
                known = module_shape(pool, meta((1, 2, size)))
                try:
                    shape = tuple(pool(torch.rand(1, 2, size)).shape)
                except RuntimeError:
                    shape = None
                assert known == shape, (size, kernel, stride, pad)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(3, return_indices=True), (2, 4, 9, 9)),
        (nn.MaxPool2d(3), (4, 9, 9)),
        (nn.AvgPool2d(3), (2, 4, 2, 2)),
        (nn.AdaptiveAvgPool2d(0), (2, 4, 2, 2)),
        (nn.AdaptiveAvgPool2d(1), (4, 2, 2)),
    ],
)
def test_other_pools_have_no_closed_form(pool, shape):
    assert module_shape(pool, meta(shape)) is None


TWO = (operator.mul, operator.iadd)
"""Functions of two tensors."""
CALLS = {
    "gate": (operator.mul, ((2, 4, 1, 1), (2, 4, 5, 6)), {}),
    "gated": (operator.mul, ((2, 4, 5, 6), (2, 4, 1, 1)), {}),
    "scaled": (operator.truediv, ((2, 4), 3), {}),
    "shifted": (operator.add, ((2, 4), 0.5), {}),
    "shifted in place": (operator.iadd, ((2, 4), (1, 4)), {}),
    "mean": (torch.mean, ((2, 4, 5, 6), [2, -1]), {}),
    "mean of one": (torch.mean, ((2, 4, 5, 6), 1, True), {}),
    "named mean": (torch.mean, ((2, 4, 5, 6),), {"dim": (2, 3), "keepdim": True}),
    "pooled": (F.adaptive_avg_pool2d, ((2, 4, 5, 6), (1, 1)), {}),
    "pooled to one size": (F.adaptive_avg_pool1d, ((2, 4, 5), 2), {}),
    "joined": (torch.cat, ([(2, 4), (2, 3)], 1), {}),
}


def filled(given, make):
    """Tensors in the place of shapes."""
    if isinstance(given, tuple) and len(given) > 1 and all(isinstance(item, int) for item in given):
        return make(given)
    return [filled(item, make) for item in given] if isinstance(given, list) and isinstance(given[0], tuple) else given


@pytest.mark.parametrize("name", CALLS)
def test_the_sizes_of_calls_are_torchs(name):
    function, args, kwargs = CALLS[name]
    first, *rest = args
    rest = [filled(arg, torch.rand) if function in TWO else arg for arg in rest]
    on_data = function(filled(first, torch.rand), *rest, **kwargs)
    on_meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in rest]
    known = function_shape(function, (filled(first, meta), *on_meta), kwargs)
    assert known == (tuple(on_data.shape), torch.float32)
    assert on_data.is_contiguous()


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (operator.mul, (meta((2, 1)), meta((1, 3))), {}),
        (operator.mul, (meta((2, 3)), meta((3,))), {}),
        (operator.mul, (meta((2, 3)), meta((2, 3), torch.float64)), {}),
        (operator.mul, (meta((2, 3)), True), {}),
        (operator.iadd, (meta((1, 3)), meta((2, 3))), {}),
        (operator.add, (meta((2, 3), torch.int64), 2), {}),
        (torch.mean, (meta((2, 3)),), {}),
        (torch.mean, (meta((2, 3)), 2), {}),
        (torch.mean, (meta((2, 3)), [1, -1]), {}),
        (torch.mean, (meta((2, 3)), 1), {"dtype": torch.float64}),
        (torch.mean, (meta((3, 2)).T, 1), {}),
        (F.adaptive_avg_pool2d, (meta((4, 5, 5)), 1), {}),
    ],
)
def test_other_calls_have_no_closed_form(function, args, kwargs):
    assert function_shape(function, args, kwargs) is None


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5, inplace=True)])
def test_layers_that_give_back_their_input_are_nodes_of_their_own(layer):
    program = trace(nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 2, 1)).eval(), (torch.rand(2, 3, 5, 5),))
    nodes = {str(node.target): node for node in program.graph.nodes}
    assert nodes["2"].all_input_nodes == [nodes["1"]]
    assert nodes["1"].all_input_nodes == [nodes["0"]]
    assert "mutates" not in nodes["1"].meta
