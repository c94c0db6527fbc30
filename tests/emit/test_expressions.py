"""Nodes as Python expressions: what a call reads like, and names that Python allows."""

from __future__ import annotations

import json
import operator
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hand_made import X, Y, by_hand
from torch import fx

from prunec.compiler.emit.expressions import ExpressionWriter, attribute_path, without_defaults
from prunec.compiler.emit.python import emit_source
from prunec.compiler.errors import ModelError

SPELLED = [
    (torch._C._nn.gelu, (X,), "F.gelu(x)"),
    (torch.relu, (X,), "torch.relu(x)"),
    (F.relu, (X,), "F.relu(x)"),
    (torch.linalg.norm, (X, 2.0, -1), "torch.linalg.norm(x, 2.0, -1)"),
    (F.max_pool2d, (X, (2, 2)), "F.max_pool2d(x, (2, 2))"),
    (F.scaled_dot_product_attention, (X, X, X), "F.scaled_dot_product_attention(x, x, x)"),
    (operator.matmul, (X, X), "x @ x"),
    (operator.neg, (X,), "-x"),
    (operator.invert, (X,), "~x"),
    (operator.pow, (-1, X), "(-1) ** x"),
    (operator.contains, ([1, 2], 1), "1 in [1, 2]"),
    (operator.abs, (X,), "abs(x)"),
    (operator.concat, ([1], [2]), "operator.concat([1], [2])"),
    (operator.getitem, (X, (slice(None), slice(1, None, 2), None)), "x[:, 1::2, None]"),
    (operator.getitem, (X, (slice(None, X),)), "x[:x,]"),
    (operator.getitem, (X, slice(None, -1)), "x[:-1]"),
    (operator.getitem, (X, [0, 2]), "x[[0, 2]]"),
    (getattr, (X, "T"), "x.T"),
    (torch._assert, (X, 'it\'s "wrong"'), "torch._assert(x, 'it\\'s \"wrong\"')"),
    (torch.full, (2, float("-inf"), torch.float64), 'torch.full(2, float("-inf"), torch.float64)'),
    (torch.empty, (2, torch.strided, torch.device("cpu")), 'torch.empty(2, torch.strided, torch.device("cpu"))'),
    (torch.ops.aten.add.Tensor, (X, X), "torch.ops.aten.add.Tensor(x, x)"),
    (torchvision.ops.roi_align, (X, [X], (2, 2)), "torchvision.ops.roi_align(x, [x], (2, 2))"),
    (isinstance, (X, torch.Tensor), "isinstance(x, torch.Tensor)"),
    (dict, ({"a": [1, (2,)], 3: slice(1, X)},), 'dict({"a": [1, (2,)], 3: slice(1, x, None)})'),
]


@pytest.mark.parametrize(("target", "args", "text"), SPELLED, ids=[text for *_, text in SPELLED])
def test_spells_a_call(target, args, text):
    source = emit_source(by_hand(("call_function", target, args)))
    assert f" = {text}\n" in source
    compile(source, "model.py", "exec")


def test_an_in_place_operator_changes_its_variable():
    source = emit_source(by_hand(("call_function", operator.iadd, (X, 1)), ("call_function", operator.mul, (Y, X))))
    assert "        x += 1\n        mul = x * x\n        return mul\n" in source


def test_sizes_are_kept_where_a_shape_changes_in_place():
    calls = [("call_function", getattr, (X, "shape")), ("call_method", "t_", (X,)), ("call_method", "view", (X, Y))]
    assert "x.view(x.shape)" in emit_source(by_hand(calls[0], calls[2]))
    assert "shape = x.shape" in emit_source(by_hand(*calls)).replace("getattr_1", "shape")


def mystery(x):
    return x


@pytest.mark.parametrize("target", [mystery, lambda x: x, json.dumps], ids=["function", "lambda", "library"])
def test_refuses_what_has_no_public_name(target):
    with pytest.raises(ModelError, match=rf"node '\S+' calls '.*{target.__qualname__}'".replace("<", r"\S")) as caught:
        emit_source(by_hand(("call_function", target, (X,))))
    assert "torch alone" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("layer1.0.conv1", 'self.layer1["0"].conv1'),
        ("weight", "self.weight"),
        ("class.fc", 'getattr(self, "class").fc'),
        ("layer1.0.0", 'getattr(self.layer1["0"], "0")'),
        ("layer1.training", "self.training"),
    ],
)
def test_paths_of_attributes(target, path):
    assert attribute_path(target, {"layer1"}) == path


def flagged(x, p=0.5, training=True, name="a"):
    """A function with defaults."""


@pytest.mark.parametrize(
    ("function", "given", "left"),
    [
        (flagged, {"p": 0.5, "training": False, "name": "a"}, {"training": False}),
        (flagged, {"training": 1, "p": 1}, {"training": 1, "p": 1}),
        (flagged, {"other": 3}, {"other": 3}),
        (torch.relu, {"input": 1}, {"input": 1}),
    ],
    ids=["the same", "of another type", "unknown", "a builtin"],
)
def test_defaults_are_left_out(function, given, left):
    assert without_defaults(function, given) == left


@pytest.mark.parametrize(
    ("name", "argument"),
    [("x", "x: torch.Tensor"), ("*xs", "*xs"), ("lambda", "lambda_: torch.Tensor"), ("torch", "torch_: torch.Tensor")],
)
def test_arguments_keep_their_names_where_these_are_legal(name, argument):
    graph = fx.Graph()
    node = graph.placeholder(name)
    node.meta["val"] = torch.empty(2)
    assert ExpressionWriter(graph).argument(node) == argument


def test_an_argument_that_may_be_left_out_has_its_default():
    graph = fx.Graph()
    node = graph.placeholder("mask", default_value=None)
    assert ExpressionWriter(graph).argument(node) == "mask=None"


def test_a_name_is_taken_once():
    graph = fx.Graph()
    writer = ExpressionWriter(graph)
    first, second = graph.placeholder("x"), graph.placeholder("x_")
    assert [writer.argument(node) for node in (first, second)] == ["x", "x_"]
    third = graph.call_function(torch.relu, (first,))
    third.name = "x"
    graph.call_function(torch.relu, (third,))
    assert writer.statement(third) == "x__ = torch.relu(x)"
    assert writer.value([third, second]) == "[x__, x_]"
    assert writer.imports == {"torch"}


def test_sizes_read_once_are_spelled_in_place():
    graph = fx.Graph()
    writer = ExpressionWriter(graph)
    x = graph.placeholder("x")
    writer.argument(x)
    once, twice = (graph.call_method("size", (x, dim)) for dim in (0, 1))
    view = graph.call_method("view", (x, once, twice, twice))
    graph.call_function(operator.add, (view, twice))
    assert [writer.statement(node) for node in (once, twice, view)] == [
        None,
        "size_1 = x.size(1)",
        "view = x.view(x.size(0), size_1, size_1)",
    ]
    assert writer.reads[view] == {"view"}
    assert writer.read_by(view) == {"x", "size_1"}


def test_records_of_one_name_are_told_apart():
    one, other = namedtuple("Pair", ["a", "b"]), namedtuple("Pair", ["c"])
    writer = ExpressionWriter(fx.Graph())
    assert [writer.value(value) for value in (one(1, 2), other(3), one(4, 5))] == [
        "Pair(1, 2)",
        "Pair_(3)",
        "Pair(4, 5)",
    ]
    assert writer.records == {"Pair": ("a", "b"), "Pair_": ("c",)}


@pytest.mark.parametrize("value", [{1}, object(), np.float32(1)], ids=["set", "object", "numpy"])
def test_what_has_no_source_is_refused(value):
    with pytest.raises(ModelError, match="no way to write a"):
        ExpressionWriter(fx.Graph()).value([value])
