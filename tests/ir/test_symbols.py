"""Functions by their public names: which they are, and which of them a text may call."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F

from prunec.compiler.ir.symbols import function_name, function_names, resolve_function

NAMES = [
    (F.gelu, "F.gelu"),
    (F.conv2d, "F.conv2d"),
    (torch.conv2d, "F.conv2d"),
    (F.max_pool2d, "F.max_pool2d"),
    (F.scaled_dot_product_attention, "F.scaled_dot_product_attention"),
    (torch.relu, "torch.relu"),
    (torch.einsum, "torch.einsum"),
    (torch.Tensor.add_, "torch.Tensor.add_"),
    (torch._assert, "torch._assert"),
    (operator.setitem, "operator.setitem"),
    (getattr, "getattr"),
    (torch.ops.aten.relu.default, "torch.ops.aten.relu.default"),
]


@pytest.mark.parametrize(("function", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_function_has_a_public_name(function, name):
    assert function_name(function) == name
    assert resolve_function(name) is function


DANGEROUS = [
    "torch.load", "torch.save", "torch.compile", "torch.set_num_threads", "torch.from_file", "torch.manual_seed",
    "operator.call", "operator.attrgetter", "eval", "exec", "open", "__import__", "builtins.eval", "os.system",
    "torch._C._nn.gelu", "torch.ops.aten.__class__", "torch.ops.load_library", "torch.nn.Linear", "torch.hub.load",
]  # fmt: skip


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_text_may_call_pure_functions_alone(name):
    assert resolve_function(name) is None


def test_every_name_resolves_to_something_that_keeps_its_name_resolvable():
    for name in function_names():
        function = resolve_function(name)
        assert resolve_function(function_name(function)) is not None, name
