"""The dependency graph: which axes depend on which, and by which operation.

    conv1.weight[0] --bn1-- bn1.weight[0]        a batch norm carries conv1's channels
    conv1.weight[0] --conv2-- conv2.weight[1]    conv2 reads them
    conv1.weight[0] --add-- conv3.weight[0]      an addition ties them to conv3's

Nodes are axes with `size`, `role`, `module` and `groups` (names); padding that operations add to channels is a node of
its own, named in words. Edges are keyed by the operation (the graph node's name), which is their attribute `op` too. A
reader of a concatenation is tied to every axis that it reads, and so belongs to several groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.compiler.labels.flow import FIXED, Flow

if TYPE_CHECKING:
    import networkx as nx

Vertex: TypeAlias = Axis | str
Link: TypeAlias = tuple[Vertex, Vertex, str]


def dependency_graph(program: Program) -> nx.MultiGraph[Vertex]:
    """The axes of a program and their couplings, each once."""
    import networkx as nx  # noqa: PLC0415  (slow to import, and few commands ask for the graph)

    analysis = analyse(program)
    owners = _Owners(analysis.flow)
    graph: nx.MultiGraph[Vertex] = nx.MultiGraph()
    for name in owners.paddings:
        graph.add_node(name, size=owners.paddings[name], role="padding", module="", groups=())
    groups = _groups_of(analysis)
    for axis, binding in analysis.flow.bindings.items():
        size, names = binding.labels.size, groups.get(axis, ())
        graph.add_node(axis, size=size, role=binding.role, module=axis.owner, groups=tuple(names))
    for left, right, op in _links(analysis, owners):
        if left != right:
            graph.add_edge(left, right, key=op, op=op)
    return graph


class _Owners:
    """Finds the axis that each label was made for. Labels come in runs, so that is a search among the runs' starts."""

    def __init__(self, flow: Flow) -> None:
        ends = [start for start, _ in flow.owners[1:]] + [flow.count]
        self.starts = np.array([start for start, _ in flow.owners], dtype=np.int64)
        self.names: list[Vertex] = []
        self.paddings: dict[str, int] = {}
        for (start, axis), end in zip(flow.owners, ends, strict=True):
            if axis is None:
                self.paddings[f"padding {len(self.paddings) + 1}"] = end - start
            self.names.append(f"padding {len(self.paddings)}" if axis is None else axis)

    def of(self, labels: IntArray) -> IntArray:
        """The number of each label's owner; the labels mustn't be FIXED."""
        return np.asarray(np.searchsorted(self.starts, labels, side="right") - 1, dtype=np.int64)

    def distinct(self, labels: IntArray) -> list[Vertex]:
        """The owners of an array's labels."""
        flat = labels.ravel()
        return [self.names[i] for i in np.unique(self.of(flat[flat != FIXED]))]


def _links(analysis: Analysis, owners: _Owners) -> Iterator[Link]:
    """Every coupling as (vertex, vertex, operation): by bindings, by pairs of labels, by blocks."""
    flow = analysis.flow
    known: dict[int, list[Vertex]] = {}
    for axis, binding in flow.bindings.items():
        if id(binding.labels) not in known:
            known[id(binding.labels)] = owners.distinct(binding.labels)
        yield from ((owner, axis, binding.cause) for owner in known[id(binding.labels)])
    seen: set[tuple[int, int, str]] = set()
    for pair in flow.pairs:
        key = (id(pair.left), id(pair.right), pair.cause)
        if key not in seen:
            seen.add(key)
            yield from _tied(owners, pair.left, pair.right, pair.cause)
    for meeting in flow.meetings:
        if bool((analysis.units(meeting.grid) == analysis.units(meeting.line)).all()):
            yield from _tied(owners, meeting.grid, meeting.line, meeting.cause)
    for labels, cause in flow.blocks:
        yield from _in_block(analysis, owners, labels, cause)


def _tied(owners: _Owners, left: IntArray, right: IntArray, cause: str) -> Iterable[Link]:
    """The owners of two arrays of labels that meet element by element."""
    left, right = (side.ravel() for side in np.broadcast_arrays(left, right))
    both = (left != FIXED) & (right != FIXED)
    codes = np.unique(owners.of(left[both]) * len(owners.names) + owners.of(right[both]))
    numbers = np.divmod(codes, max(len(owners.names), 1))
    return ((owners.names[a], owners.names[b], cause) for a, b in zip(*numbers, strict=True))


def _in_block(analysis: Analysis, owners: _Owners, labels: IntArray, cause: str) -> Iterable[Link]:
    """The owners of labels that a block's shape has joined into one unit."""
    flat = labels[labels != FIXED]
    units, found = analysis.units(flat), owners.of(flat)
    pairs = np.unique(np.stack([units, found], 1)[units != NO_UNIT], axis=0)
    same = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    names = owners.names
    return {(names[a], names[b], cause) for a, b in zip(pairs[same, 1], pairs[same + 1, 1], strict=True)}


def _groups_of(analysis: Analysis) -> dict[Axis, list[str]]:
    found: dict[Axis, list[str]] = {}
    for group in analysis.groups.values():
        for member in group.members:
            found.setdefault(member.axis, []).append(group.name)
    return found
