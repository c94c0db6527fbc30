"""What is asked of nodes: operands, arguments, what must stay; and names by patterns."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from prunec.compiler.ir.graph import arguments, call, is_impure, operand, output_of


def made(op: str, target: object, *args: object, **kwargs: object) -> fx.Node:
    """A node of a new graph; `x` stands for its input."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    given = tuple(x if arg == "x" else arg for arg in args)
    return graph.create_node(op, target, given, {key: x if arg == "x" else arg for key, arg in kwargs.items()})


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (made("call_function", F.relu, "x"), "x"),
        (made("call_function", F.relu, input="x"), "x"),
        (made("call_function", operator.sub, 2, "x"), None),
        (made("call_function", torch.zeros, 3), None),
        (made("call_function", torch.cat, tensors="x"), None),
    ],
    ids=["by position", "by name", "a number first", "no value", "another name"],
)
def test_the_first_operand(node, name):
    found = operand(node)
    assert (found.name if found is not None else None) == name


def test_arguments_have_names_and_defaults():
    found = arguments(made("call_function", F.dropout, "x", training=False))
    assert {key: found[key] for key in ("p", "training", "inplace")} == {"p": 0.5, "training": False, "inplace": False}
    with pytest.raises(ValueError, match="signature"):
        arguments(made("call_function", torch.add, "x", 1))


def test_what_acts_must_stay():
    assert is_impure(made("call_function", torch._assert, "x", "message"))
    assert not is_impure(made("call_function", F.relu, "x"))
    node = made("call_method", "add_", "x", 1)
    assert not is_impure(node)
    node.meta["mutates"] = True
    assert is_impure(node)
    assert is_impure(next(iter(node.graph.nodes))), "an input stays though nobody reads it"


def test_the_output_is_the_last_node():
    node = made("call_function", F.relu, "x")
    assert output_of(node.graph) is node
    output = node.graph.output(node)
    assert output_of(node.graph) is output


def test_a_call_runs_functions_and_methods():
    assert call(made("call_function", operator.sub, "x", 1), (5, 1), {}) == 4
    assert call(made("call_method", "sum", "x"), (torch.ones(2, 3), 1), {"keepdim": True}).tolist() == [[3], [3]]
