"""What is asked of nodes: operands, arguments, what must stay; and names by patterns."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from prunec.compiler.ir.graph import arguments, call, is_impure, new_node, operand, output_of


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


TARGETS = {
    "a dotted name": ("call_module", "layer1.0.conv1"),
    "a name that begins with a number": ("call_module", "0.conv"),
    "capitals": ("call_module", "Mixed_5b.branch1x1"),
    "words run together": ("call_module", "auxHead.convBlock"),
    "letters that no name has": ("get_attr", "a-b.$c"),
    "other alphabets": ("call_module", "größe.0"),
    "a name that Python has": ("call_module", "max"),
    "a method": ("call_method", "view"),
    "a magic method": ("call_method", "__add__"),
    "an operator": ("call_function", operator.add),
    "a function": ("call_function", F.relu),
    "an input": ("placeholder", "x"),
}


def _both(op, target, name=None):
    """The same graph made by fx's calls and by ours: each target twice, on the node before it."""
    graphs = []
    for make in (fx.Graph.create_node, new_node):
        graph = fx.Graph()
        x = graph.placeholder("given")
        for _ in range(2):
            x = make(graph, op, target, (x, [1, x], slice(None, x)), {"dim": x}, name)
        graphs.append(graph)
    return graphs


@pytest.mark.parametrize("name", [None, "mine", "relu_7"])
@pytest.mark.parametrize(("op", "target"), TARGETS.values(), ids=TARGETS)
def test_a_new_node_is_the_one_that_fx_makes(op, target, name):
    theirs, ours = _both(op, target, name)
    for one, other in zip(theirs.nodes, ours.nodes, strict=True):
        assert (one.name, one.op, one.target, repr(one.args), repr(one.kwargs)) == (
            other.name,
            other.op,
            other.target,
            repr(other.args),
            repr(other.kwargs),
        )
        assert [user.name for user in one.users] == [user.name for user in other.users]
    ours.lint()
    assert [n.name for n in ours.find_nodes(op=op, target=target)] == [
        n.name for n in theirs.find_nodes(op=op, target=target)
    ]
