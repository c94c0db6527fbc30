"""Who writes in place, and which values may share memory."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from program_texts import wrap
from torch import fx, nn

from prunec.compiler.ir.aliasing import aliases, is_fresh, memories, mutates
from prunec.compiler.text.parser import from_text

STATE = {"relu": nn.ReLU(), "relu_": nn.ReLU(inplace=True), "fc": nn.Linear(2, 2), "id": nn.Identity()}


def node(op: str, target: object, *args: object, **kwargs: object) -> fx.Node:
    graph = fx.Graph()
    return graph.create_node(op, target, (graph.placeholder("x"), *args), kwargs)


WRITERS = {
    "method": (node("call_method", "add_", 1), True),
    "method without": (node("call_method", "add", 1), False),
    "dunder": (node("call_method", "__add__", 1), False),
    "setitem": (node("call_function", operator.setitem, 0, 1), True),
    "method setitem": (node("call_method", "__setitem__", 0, 1), True),
    "iadd": (node("call_function", operator.iadd, 1), True),
    "imatmul": (node("call_function", operator.imatmul, 1), True),
    "and_ of operator": (node("call_function", operator.and_, 1), False),
    "relu_": (node("call_function", F.relu_), True),
    "flag": (node("call_function", F.relu, inplace=True), True),
    "flag by position": (node("call_function", F.dropout, 0.5, True, True), True),
    "flag that is off": (node("call_function", F.relu, inplace=False), False),
    "out": (node("call_function", torch.add, 1, out=1), True),
    "out of None": (node("call_function", torch.add, 1, out=None), False),
    "module": (node("call_module", "relu_"), True),
    "module without": (node("call_module", "relu"), False),
    "input": (fx.Graph().placeholder("add_"), False),
}


@pytest.mark.parametrize(("call", "writes"), WRITERS.values(), ids=WRITERS)
def test_who_writes(call, writes):
    assert mutates(call, STATE) is writes


FRESH = {
    "linear": (node("call_module", "fc"), True),
    "identity": (node("call_module", "id"), False),
    "in place": (node("call_module", "relu_"), False),
    "add": (node("call_function", operator.add, 1), True),
    "sum": (node("call_method", "sum", 1), True),
    "conv": (node("call_function", F.conv2d, 1), True),
    "conv of four dimensions": (node("call_method", "conv4d", 1), False),
    "view": (node("call_method", "view", -1), False),
    "contiguous": (node("call_method", "contiguous"), False),
    "add_": (node("call_method", "add_", 1), False),
    "input": (fx.Graph().placeholder("add"), False),
}


@pytest.mark.parametrize(("call", "fresh"), FRESH.values(), ids=FRESH)
def test_what_is_certain_to_be_new_memory(call, fresh):
    assert is_fresh(call, STATE) is fresh


SHARING = from_text(
    wrap(
        "input %x : f32[2, 3, 4]",
        "input %y : f32[2, 3, 4]",
        "param w : f32[3, 4]",
        "%w = get w",
        "%flat = %x.view(2, -1)",
        "%row = %flat[0]",
        "%n = %x.size(0)",
        "%total = %x + %y",
        "%half = %total[:, 0:2]",
        "%wide = %w.expand(2, 3, 4)",
        "%again = get w",
        "%out = %total.add_(%y)",
        "return (%out, %row, %half, %wide, %again)",
    )
)
SHARED = [{"x", "flat", "row"}, {"y"}, {"w", "wide", "again"}, {"n"}, {"total", "half", "out"}, {"output"}]


def test_values_of_one_memory():
    found = [{each.name for each in memory} for memory in memories(SHARING.graph, SHARING.state)]
    assert sorted(found, key=sorted) == sorted(SHARED, key=sorted)


@pytest.mark.parametrize("memory", SHARED, ids=lambda memory: min(memory))
def test_aliases_of_each_value(memory):
    for each in SHARING.graph.nodes:
        if each.name in memory:
            assert {other.name for other in aliases(each, SHARING.state)} == memory
