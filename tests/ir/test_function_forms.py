"""Shapes of functions in closed form: torch's own, or none where torch would refuse or gives something else."""

from __future__ import annotations

import operator

import pytest
import torch
from torch.nn import functional as F

from prunec.compiler.ir.function_forms import form_of


def meta(shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


A, B, ROW, ONE = (2, 4, 6, 5), (2, 4, 6, 5), (4, 1, 1), ()
HALF, DOUBLE = torch.float16, torch.float64

CALLS = {
    "compared": (operator.gt, (A, 0)),
    "compared to a tensor": (operator.le, (A, ROW)),
    "relu": (F.relu, (A,)),
    "gelu": (F.gelu, (A,), {"approximate": "tanh"}),
    "leaky_relu": (F.leaky_relu, (A, 0.1)),
    "sigmoid": (torch.sigmoid, (A,)),
    "sqrt": (torch.sqrt, (A,)),
    "softmax": (F.softmax, (A,), {"dim": 1}),
    "layer_norm": (F.layer_norm, (A, (5,), (5,), (5,))),
    "layer_norm without weights": (F.layer_norm, (A, (6, 5))),
    "linear": (F.linear, (A, (3, 5), (3,))),
    "linear of a row": (F.linear, ((5,), (3, 5))),
    "matmul": (operator.matmul, (A, (5, 3))),
    "matmul of stacks": (torch.matmul, ((2, 1, 3, 4), (7, 4, 5))),
    "bmm": (torch.bmm, ((2, 3, 4), (2, 4, 5))),
    "attention": (F.scaled_dot_product_attention, (A, (2, 4, 7, 5), (2, 4, 7, 3))),
    "attention, causal": (F.scaled_dot_product_attention, (A, B, B), {"is_causal": True}),
    "roll": (torch.roll, (A,), {"shifts": (1, 2), "dims": (2, 3)}),
    "avg_pool2d": (F.avg_pool2d, (A, 2)),
    "avg_pool2d, all said": (F.avg_pool2d, (A, (3, 2)), {"stride": 1, "padding": (1, 0)}),
    "max_pool2d": (F.max_pool2d, (A, 3, 2, 1)),
    "max_pool1d": (F.max_pool1d, ((2, 4, 9), 2)),
    "adaptive_max_pool1d": (F.adaptive_max_pool1d, ((2, 4, 9), 3)),
}


def made(value, device):
    """A tensor of a shape (with a dtype, or without), or the value itself."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        return torch.ones(value[0], dtype=value[1], device=device)
    return torch.ones(value, device=device) if isinstance(value, tuple) else value


def arguments(function, given, device):
    """Arguments of a call: what are sizes for the function itself stays as it is."""
    sizes = {torch.roll: 1, F.avg_pool2d: 1, F.layer_norm: 2}.get(function, 9)
    own = {F.layer_norm: {1}}.get(function, set(range(sizes, 9)))
    return [value if place in own else made(value, device) for place, value in enumerate(given)]


@pytest.mark.parametrize("name", CALLS)
def test_a_function_gives_torchs_own(name):
    function, given, kwargs = (*CALLS[name], {})[:3]
    found = form_of(function, arguments(function, given, "meta"), kwargs)
    real = function(*arguments(function, given, "cpu"), **kwargs)
    assert found == (tuple(real.shape), real.dtype)
    assert real.is_contiguous()


@pytest.mark.parametrize("name", ["sigmoid", "relu", "softmax", "exp", "matmul"])
def test_a_method_is_found_by_its_name(name):
    x = meta((2, 4, 6))
    rest = {"softmax": (1,), "matmul": (meta((6, 3)),)}.get(name, ())
    real = getattr(torch.ones(2, 4, 6), name)(*(torch.ones(6, 3) if name == "matmul" else value for value in rest))
    assert form_of(name, (x, *rest), {}) == (tuple(real.shape), real.dtype)


def test_attention_over_heads_that_are_views_is_contiguous():
    views = [torch.ones(2, 7, 4, 5).transpose(1, 2) for _ in range(3)]
    with torch.no_grad():
        expected = F.scaled_dot_product_attention(*(view.to("meta") for view in views))
    found = form_of(F.scaled_dot_product_attention, [view.to("meta") for view in views], {})
    assert found == (tuple(expected.shape), expected.dtype)
    assert expected.is_contiguous()


NOT_KNOWN = {
    "no shared shape": (operator.gt, (meta((2, 3)), meta((2, 4))), {}),
    "whole numbers": (operator.gt, (meta((2, 3), torch.int64), 1), {}),
    "not contiguous": (F.relu, (meta((2, 3)).t(),), {}),
    "an output": (torch.sqrt, (meta((2, 3)),), {"out": meta((2, 3))}),
    "a dtype": (F.softmax, (meta((2, 3)), 1), {"dtype": torch.float64}),
    "no such dimension": (F.softmax, (meta((2, 3)), 2), {}),
    "indices": (F.max_pool2d, (meta(A), 2), {"return_indices": True}),
    "rounded up": (F.max_pool2d, (meta(A), 2), {"ceil_mode": True}),
    "a divisor": (F.avg_pool2d, (meta(A), 2), {"divisor_override": 3}),
    "too much padding": (F.avg_pool2d, (meta(A), 2, 1, 2), {}),
    "a window larger than the image": (F.max_pool2d, (meta(A), 7), {}),
    "in place": (F.relu, (meta((2, 3)),), {"inplace": True}),
    "in place, by position": (F.relu, (meta((2, 3)), True), {}),
    "inner sizes differ": (operator.matmul, (meta((2, 3)), meta((2, 3))), {}),
    "a vector": (operator.matmul, (meta((2, 3)), meta((3,))), {}),
    "a mask": (F.scaled_dot_product_attention, (meta(A), meta(A), meta(A), meta((6, 6))), {}),
    "fewer key heads": (F.scaled_dot_product_attention, (meta(A), meta((2, 2, 6, 5)), meta((2, 2, 6, 5))), {}),
    "another normalised shape": (F.layer_norm, (meta((2, 3)), (2,)), {}),
    "features that don't fit": (F.linear, (meta((2, 3)), meta((4, 4))), {}),
    "something unknown": (torch.cumsum, (meta((2, 3)), 0), {}),
}


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_a_call_that_fails_or_is_another_case_has_no_closed_form(name):
    assert form_of(*NOT_KNOWN[name]) is None
