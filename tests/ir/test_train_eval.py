"""A graph of both modes taken apart: each half holds what its result needs."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from prunec.compiler.ir.train_eval import (
    MODES,
    ByMode,
    behind,
    by_mode,
    has_both,
    in_eval,
    joint_output,
    keep_mode,
    needed,
    set_defaults,
    switching,
)


def both() -> fx.Graph:
    """`(x + 1) * 2` in eval mode; in train mode `(x + 1 + noise) * 2`, and `x + 1` beside it."""
    graph = fx.Graph()
    x, noise = graph.placeholder("x"), graph.placeholder("noise")
    plain = graph.call_function(operator.add, (x, 1))
    noisy = graph.call_function(operator.add, (plain, noise))
    choice = graph.call_function(by_mode, (plain, noisy))
    twice = graph.call_function(operator.mul, (choice, 2))
    output = graph.output(ByMode(twice, (twice, plain)))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(3)
    output.meta["val"] = ByMode(1, 2)
    return graph


def names(nodes) -> set[str]:
    return {node.name for node in nodes}


def test_what_each_half_needs():
    graph = both()
    assert names(needed(graph, "eval")) == {"x", "noise", "add", "by_mode", "mul", "output"}
    assert names(needed(graph, "train")) == {"x", "noise", "add", "add_1", "by_mode", "mul", "output"}


@pytest.mark.parametrize(("mode", "expected"), [("eval", 8), ("train", (14, 4))])
def test_a_half_computes_its_modes_result(mode, expected):
    graph = both()
    assert has_both(graph)
    keep_mode(graph, mode)
    graph.lint()
    assert not has_both(graph)
    assert fx.GraphModule({}, graph)(3, 3) == expected
    assert not graph.find_nodes(op="call_function", target=by_mode)
    assert graph.output_node().meta["val"] == getattr(ByMode(1, 2), mode)
    before = list(graph.nodes)
    keep_mode(graph, "eval")
    assert list(graph.nodes) == before, "a graph of one mode stays as it is"


def test_what_acts_belongs_to_each_half_that_has_what_it_reads():
    graph = both()
    nodes = {node.name: node for node in graph.nodes}
    with graph.inserting_before(graph.output_node()):
        everywhere = graph.call_function(torch._assert, (nodes["add"], "x"))
        train_alone = graph.call_function(torch._assert, (nodes["add_1"], "noisy"))
    assert {everywhere, train_alone} & needed(graph, "eval") == {everywhere}
    assert {everywhere, train_alone} <= needed(graph, "train")


def test_inputs_of_train_mode_alone_may_be_left_out():
    graph = both()
    set_defaults(graph)
    assert [node.args for node in graph.find_nodes(op="placeholder")] == [(), (None,)]


def test_a_choice_in_one_mode_is_one_value():
    graph = both()
    last = next(node for node in graph.nodes if node.name == "mul")
    assert names(behind([last])) == {"mul", "by_mode", "add", "add_1", "x", "noise"}
    assert names(behind([last], "eval")) == {"mul", "by_mode", "add", "x"}


def test_one_result_for_both_modes_is_no_choice():
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(operator.add, (x, 1))
    assert joint_output(graph, (x, 1), (x, 1)) == (x, 1)
    assert joint_output(graph, x, y) == ByMode(x, y)
    graph.call_function(by_mode, (x, y))
    assert joint_output(graph, x, x) == ByMode(x, x), "what the choice is for differs"


def test_the_whole_graph_runs_in_eval_mode():
    assert by_mode(1, 2) == 1
    assert in_eval(ByMode(1, 2)) == 1
    assert in_eval((1, 2)) == (1, 2)


def test_a_module_of_both_modes_has_one_set_of_weights():
    layer, halves = nn.Linear(2, 2), {}
    for mode in MODES:
        graph = fx.Graph()
        value = graph.call_module("fc", (graph.placeholder("x"),))
        graph.output(value if mode == "train" else graph.call_method("neg", (value,)))
        halves[mode] = fx.GraphModule({"fc": layer}, graph)
    made = switching("Net", halves["train"], halves)
    x = torch.ones(1, 2)
    assert made.fc is layer
    assert torch.equal(made.train()(x), layer(x))
    assert torch.equal(made.eval()(x), -layer(x))
    assert type(made).__name__ == "Net"
