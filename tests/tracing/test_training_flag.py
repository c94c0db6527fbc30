"""Functions with a flag: where it stands, and the program's own put in its place."""

from __future__ import annotations

import inspect

import pytest
import torch.nn.functional as F
from torch import fx

from prunec.compiler.tracing.training_flag import FOLLOWS, flag_place, following, is_flag, with_flag

FLAG = "the flag"


@pytest.mark.parametrize(
    ("parameter", "args", "kwargs", "expected"),
    [
        ((2, True), ("x",), {}, (("x",), {"training": FLAG})),
        ((2, False), ("x",), {}, (("x",), {"training": False})),
        ((2, True), ("x", 0.5, True), {}, (("x", 0.5, FLAG), {})),
        ((2, True), ("x", 0.5, False, True), {}, (("x", 0.5, False, True), {})),
        ((2, False), ("x",), {"training": True}, (("x",), {"training": FLAG})),
        ((2, True), ("x",), {"training": False}, (("x",), {"training": False})),
    ],
    ids=["default on", "default off", "by position", "off by position", "by name", "off by name"],
)
def test_a_flag_that_is_on_follows(parameter, args, kwargs, expected):
    assert following(FLAG, parameter, args, kwargs) == expected


@pytest.mark.parametrize("function", FOLLOWS, ids=lambda function: function.__name__)
def test_the_table_says_what_the_functions_do(function):
    parameters = list(inspect.signature(function).parameters.values())
    position, default = FOLLOWS[function]
    assert (parameters[position].name, parameters[position].default) == ("training", default)


def node(target: object, *args: object, **kwargs: object) -> fx.Node:
    return fx.Graph().call_function(target, args, kwargs)


PLACES = {
    "default": (node(F.dropout, 1), (None, "training", True)),
    "by name": (node(F.dropout, 1, training=False), (None, "training", True)),
    "by position": (node(F.dropout, 1, 0.5, True), (2, "training", True)),
    "a share": (node(F.scaled_dot_product_attention, 1, 1, 1, dropout_p=0.1), (None, "dropout_p", None)),
    "no share": (node(F.scaled_dot_product_attention, 1, 1, 1), None),
    "no flag": (node(F.relu, 1), None),
    "a method": (fx.Graph().call_method("dropout", (1,)), None),
}


@pytest.mark.parametrize(("call", "place"), PLACES.values(), ids=PLACES)
def test_where_a_flag_stands(call, place):
    assert flag_place(call) == place


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (PLACES["by position"][0], ((1, 0.5, FLAG), {})),
        (node(F.dropout, 1, 0.5, True, False), ((1, 0.5, FLAG, False), {})),
        (PLACES["by name"][0], ((1,), {"training": FLAG})),
        (PLACES["a share"][0], ((1, 1, 1), {"dropout_p": FLAG})),
    ],
    ids=["by position", "in the middle", "by name", "a share"],
)
def test_another_value_in_its_place(call, expected):
    before = (call.args, dict(call.kwargs))
    assert with_flag(call, FLAG) == expected
    assert (call.args, dict(call.kwargs)) == before


def test_reads_of_the_mode():
    graph = fx.Graph()
    assert is_flag(graph.get_attr("training"))
    assert is_flag(graph.get_attr("layer1.training"))
    assert not is_flag(graph.get_attr("training.weight"))
    assert not is_flag(graph.placeholder("training"))
