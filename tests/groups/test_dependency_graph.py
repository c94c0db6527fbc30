"""The dependency graph says the same as the groups, and `explain` says it in words."""

from __future__ import annotations

import io
import json

import networkx as nx
import pytest
import torch
import torchvision
from nets import NETS
from rich.console import Console

from prunec.compiler.errors import OutputError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.dependency_graph import dependency_graph
from prunec.compiler.ir.program import Axis
from prunec.compiler.report.explain import explain, explanation
from prunec.compiler.report.graph_file import write_graph
from prunec.compiler.tracing.trace import trace


def program_of(name):
    net = NETS[name]
    return trace(net.build(), net.inputs())


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


def shown(renderable):
    console = Console(width=200, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_explanation_of_all_groups():
    found = explanation(program_of("concat_image"))
    assert json.loads(json.dumps(found)) == found
    assert [(g["name"], g["units"], g["free"]) for g in found["groups"]] == [("a", 8, 8), ("b", 5, 5), ("fc", 4, 0)]
    assert found["groups"][2]["pinned"] == [{"reason": "reaches the model's output", "units": 4}]
    assert found["groups"][0]["readers"] == ["b.weight[1]"]
    assert found["totals"] == {"groups": 3, "units": 17, "free": 13, "channels": 17, "free_channels": 13}


def test_explanation_of_one_group():
    group = explanation(program_of("grouped"), "a")["group"]
    members = {member["axis"]: member for member in group["members"]}
    assert members["a.weight[0]"] == {
        "axis": "a.weight[0]", "role": "writer", "cause": "a", "positions": 8, "positions_per_unit": 2.0
    }  # fmt: skip
    assert members["g.weight[1]"]["role"] == "reader"


@pytest.mark.parametrize("group", [None, "a"])
def test_tables(group):
    text = shown(explain(program_of("one_channel_piece"), group))
    assert "picks a single channel" in text
    assert "a.weight[0]" in text
    assert ("8 of 13 units in 3 groups may be removed" in text) == (group is None)


def test_a_group_that_isnt_there():
    with pytest.raises(PlanError, match="no group 'aa'") as caught:
        explain(program_of("chain"), "aa")
    assert "valid: a, b, fc" in caught.value.hint or "did you mean" in caught.value.hint


READERS = {
    "deps.graphml": lambda path: nx.read_graphml(path, force_multigraph=True),
    "deps.gml": nx.read_gml,
    "deps.JSON": lambda path: nx.node_link_graph(json.loads(path.read_text()), edges="edges"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("net", ["residual", "concat", "one_channel_piece", "zero_pad_shortcut"])
def test_a_graph_can_be_read_back(tmp_path, name, net):
    program = program_of(net)
    write_graph(program, tmp_path / name)
    found, graph = READERS[name](tmp_path / name), dependency_graph(program)
    assert list(found) == [str(vertex) for vertex in graph]
    ours, theirs = (sorted((*sorted((str(a), str(b))), op) for a, b, op in g.edges(data="op")) for g in (graph, found))
    assert ours == theirs
    for vertex, data in graph.nodes(data=True):
        assert found.nodes[str(vertex)] == {**data, "groups": ", ".join(data["groups"])}
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_group_can_be_written_alone(tmp_path):
    path = tmp_path / "a.json"
    write_graph(program_of("concat"), path, "a")
    axes = {node["id"] for node in json.loads(path.read_text())["nodes"]}
    group = analyse(program_of("concat")).groups["a"]
    assert axes == {str(member.axis) for member in group.members}


@pytest.mark.parametrize(
    ("name", "group", "error", "words"),
    [
        ("deps.dot", None, PlanError, "'deps.dot' names no form of a graph"),
        ("deps", None, PlanError, "'deps' names no form of a graph"),
        ("missing/deps.gml", None, OutputError, "No such file or directory"),
        ("deps.gml", "aa", PlanError, "there is no group 'aa'"),
    ],
    ids=["unknown ending", "no ending", "no folder", "no group"],
)
def test_a_graph_that_cannot_be_written(tmp_path, name, group, error, words):
    with pytest.raises(error, match=words):
        write_graph(program_of("chain"), tmp_path / name, group)
    assert list(tmp_path.iterdir()) == []
