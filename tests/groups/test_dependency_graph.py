"""The dependency graph says the same as the groups."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
import torchvision
from nets import NETS, program_of

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.dependency_graph import dependency_graph
from prunec.compiler.ir.program import Axis
from prunec.compiler.tracing.trace import trace


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_groups_axes_are_connected(name):
    program = program_of(name)
    graph = dependency_graph(program)
    paddings = [vertex for vertex, data in graph.nodes(data=True) if data["role"] == "padding"]
    for group in analyse(program).groups.values():
        members = graph.subgraph([*(member.axis for member in group.members), *paddings])
        reached = nx.node_connected_component(members, group.writers[0].axis)
        assert {member.axis for member in group.members} <= reached


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_edge_has_its_operation(name):
    program = program_of(name)
    operations = {node.name for node in program.graph.nodes}
    graph = dependency_graph(program)
    assert {op for _, _, op in graph.edges(data="op")} <= operations
    assert set(analyse(program).flow.bindings) == {vertex for vertex in graph if isinstance(vertex, Axis)}


def test_edges_of_a_residual_network():
    graph = dependency_graph(program_of("residual"))
    a, b, c = (Axis(f"{name}.weight", 0) for name in "abc")
    assert set(graph[a][c]) == {"add"}
    assert set(graph[a][Axis("b.weight", 1)]) == {"b"}
    assert set(graph[c][Axis("bn.bias", 0)]) == {"bn"}
    assert not graph.has_edge(a, b)
    assert graph.nodes[a] == {"size": 8, "role": "writer", "module": "a", "groups": ("a",)}


def test_a_reader_of_a_concatenation_belongs_to_each_group():
    graph = dependency_graph(program_of("concat"))
    reader = Axis("c.weight", 1)
    assert graph.nodes[reader]["groups"] == ("a", "b")
    assert {Axis("a.weight", 0), Axis("b.weight", 0)} <= set(graph[reader])


def test_edges_grow_with_the_network_alone():
    """Coupling all axes of a residual stage with each other would be quadratic."""
    with torch.device("meta"):
        model = torchvision.models.resnet152(weights=None)
    graph = dependency_graph(trace(model.eval(), (torch.empty(1, 3, 64, 64),)))
    assert graph.number_of_edges() < 2 * graph.number_of_nodes()
