"""The ONNX graph as it grows: names, shared initialisers, sizes, what is left out."""

from __future__ import annotations

import torch
from onnx import numpy_helper

from prunec.compiler.targets.onnx.graph import Graph
from prunec.compiler.targets.onnx.sizes import Affine

WEIGHT = torch.arange(200.0).reshape(10, 20)


def graph_of(**keys: torch.Tensor) -> Graph:
    graph = Graph(20, {id(tensor): name for name, tensor in keys.items()})
    graph.scope = "here"
    return graph


def test_names_are_unique_and_an_initialiser_has_that_of_the_state():
    graph = graph_of(weight=WEIGHT)
    assert [graph.unique("a"), graph.unique("a"), graph.unique("a")] == ["a", "a_1", "a_2"]
    assert [graph.tensor(WEIGHT), graph.tensor(WEIGHT), graph.transposed(WEIGHT)] == ["weight", "weight", "weight.T"]
    assert graph.tensor(WEIGHT + 1) == "here_constant"


def test_small_constants_are_made_once():
    graph = graph_of()
    assert graph.numbers([1, 2]) == graph.numbers([1, 2]) == graph.tensor(torch.tensor([1, 2]))
    assert graph.numbers([1, 2]) != graph.constant([1, 2], torch.int32)
    assert graph.constant(1, torch.float32) != graph.constant(True, torch.bool)


def test_a_constant_that_is_written_into_later_keeps_its_value():
    graph, table = graph_of(), torch.zeros(100)
    first = graph.tensor(table)
    table.add_(1)
    second = graph.tensor(table)
    graph.add("Add", first, second)
    assert [numpy_helper.to_array(x)[0] for x in graph.initialisers()] == [0, 1]


def test_sizes_are_computed_from_the_batch_once():
    graph = graph_of()
    graph.batch_source = "x"
    first = graph.shape([Affine(1, 0), 3, 4, Affine(2, 5)])
    again = graph.shape([7, Affine(2, 5)])
    assert first != again
    assert [node.op_type for node in graph.nodes] == ["Shape", "Mul", "Add", "Concat", "Concat"]
    assert graph.shape([3, 4]) == graph.numbers([3, 4])
    assert graph.shape([Affine(1, 0)]) == "batch_size"


def test_what_nobody_reads_is_left_out():
    graph = graph_of(weight=WEIGHT)
    kept = graph.add("Relu", "x")
    graph.add("MatMul", "x", graph.tensor(WEIGHT))
    assert graph.weight_bytes == 800
    graph.prune([kept])
    graph.rename({kept: "output"})
    assert [(node.op_type, *node.output) for node in graph.nodes] == [("Relu", "output")]
    assert (graph.initialisers(), graph.weight_bytes) == ([], 0)
