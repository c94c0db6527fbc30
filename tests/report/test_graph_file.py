"""The dependency graph as a file that other tools read."""

from __future__ import annotations

import json
import os

import networkx as nx
import pytest
from nets import program_of

from prunec.compiler.errors import OutputError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.dependency_graph import dependency_graph
from prunec.compiler.report.graph_file import write_graph

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
    write_graph(program_of("concat"), path, ["a"])
    axes = {node["id"] for node in json.loads(path.read_text())["nodes"]}
    group = analyse(program_of("concat")).groups["a"]
    assert axes == {str(member.axis) for member in group.members}


def test_several_groups_are_written_with_what_lies_between_them(tmp_path):
    path = tmp_path / "ab.json"
    write_graph(program_of("concat"), path, ["a", "b"])
    axes = {node["id"] for node in json.loads(path.read_text())["nodes"]}
    groups = analyse(program_of("concat")).groups
    assert axes == {str(member.axis) for name in ("a", "b") for member in groups[name].members}


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("deps.dot", PlanError, "'deps.dot' names no form of a graph"),
        ("deps", PlanError, "'deps' names no form of a graph"),
        ("missing/deps.gml", OutputError, "No such file or directory"),
    ],
    ids=["unknown ending", "no ending", "no folder"],
)
def test_a_graph_that_cannot_be_written(tmp_path, name, error, words):
    with pytest.raises(error, match=words):
        write_graph(program_of("chain"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", READERS)
def test_only_a_graph_as_it_was_written_is_replaced(tmp_path, name):
    path = tmp_path / name
    write_graph(program_of("chain"), path)
    write_graph(program_of("residual"), path)
    assert len(READERS[name](path)) == len(dependency_graph(program_of("residual")))
    path.write_bytes(path.read_bytes().replace(b"weight", b"Weight", 1))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="didn't write it, or it was changed since"):
        write_graph(program_of("chain"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "{}", '{"graph": {"prunec": "sha256:' + "0" * 64 + '"}}'], ids=["empty", "json", "zeros"]
)
def test_a_file_of_somebody_else_is_not_replaced(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(OutputError, match="name another file, or remove this one"):
        write_graph(program_of("chain"), path)
    assert path.read_text() == text


def test_links_pipes_and_folders_in_the_graphs_place(tmp_path):
    program, link = program_of("chain"), tmp_path / "link.gml"
    link.symlink_to("real.gml")
    write_graph(program, link)
    write_graph(program, link)
    assert link.is_symlink()
    assert nx.read_gml(tmp_path / "real.gml").nodes
    (tmp_path / "folder.gml").mkdir()
    (tmp_path / "circle.gml").symlink_to("circle.gml")
    os.mkfifo(tmp_path / "pipe.gml")
    for name in ("folder.gml", "circle.gml", "pipe.gml"):
        with pytest.raises(OutputError, match="won't replace"):
            write_graph(program, tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 5
