"""Sizes of layers in closed form: torch's own, or none where torch would refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.tracing.shape_inference import module_shape

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
