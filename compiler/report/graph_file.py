"""The dependency graph as a file, for graph viewers and for programs.

    deps.graphml    yEd, Gephi, Cytoscape, networkx.read_graphml
    deps.gml        the same in the older form
    deps.json       nodes and edges, as networkx.node_link_graph reads them

A vertex is called as everywhere: `layer1.0.conv1.weight[0]`. Its groups are one text, joined by commas, since GraphML
and GML hold no lists.

The graph's own attribute `prunec` is a hash of the file, with zeros in the hash's place. A file that has it may be
written anew; any other file of that name, such as a graph that was laid out by hand since, stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import networkx as nx

from prunec.compiler.errors import OutputError, PlanError
from prunec.compiler.groups.dependency_graph import Vertex, dependency_graph
from prunec.compiler.ir.program import Program


def write_graph(program: Program, path: Path, groups: Collection[str] | None = None) -> None:
    """Write the program's dependency graph, or the part of it in some groups; the ending says in which form.

    Raises `PlanError` for an ending without a form, `OutputError` where the file can't be written, or is there already
    and isn't as this function wrote it.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        hint = f"end it with {', '.join(WRITERS)}"
        raise PlanError(f"'{path.name}' names no form of a graph", hint=hint)
    graph = _spelled(_part(dependency_graph(program), groups))
    graph.graph["prunec"] = _NO_HASH.decode()
    target = Path(os.path.realpath(path))  # a link stays one
    beside = target.with_name(f".{target.stem[:64]}.{os.getpid()}")
    try:
        writer(graph, beside)
        beside.write_bytes(_sealed(beside.read_bytes()))
        if os.path.lexists(target) and not (target.is_file() and _is_sealed(target.read_bytes())):
            raise OutputError(
                f"won't replace '{path}': `prunec explain` didn't write it, or it was changed since",
                hint="name another file, or remove this one",
            )
        beside.replace(target)
    except OSError as error:
        raise OutputError(f"can't write '{path}': {error.strerror}") from error
    finally:
        with suppress(OSError):  # where it couldn't be written it can't be removed
            beside.unlink(missing_ok=True)


_NO_HASH: Final = b"sha256:" + b"0" * 64
_HASH: Final = re.compile(rb"sha256:[0-9a-f]{64}")


def _sealed(data: bytes) -> bytes:
    """The file with its own hash in the place that is left for it."""
    return data.replace(_NO_HASH, b"sha256:" + hashlib.sha256(data).hexdigest().encode(), 1)


def _is_sealed(data: bytes) -> bool:
    """Whether the file is as `_sealed` gave it."""
    bare = _HASH.sub(_NO_HASH, data, count=1)
    return bare != data and _sealed(bare) == data


def _part(graph: nx.MultiGraph[Vertex], groups: Collection[str] | None) -> nx.MultiGraph[Vertex]:
    """The axes of some groups, and what lies between them."""
    if groups is None:
        return graph
    part = graph.copy()
    part.remove_nodes_from([axis for axis, own in graph.nodes(data="groups") if not set(own) & set(groups)])
    return part


def _spelled(graph: nx.MultiGraph[Vertex]) -> nx.MultiGraph[str]:
    """The same with texts for axes and lists, which is all that files hold."""
    named: nx.MultiGraph[str] = nx.MultiGraph()
    named.add_nodes_from(
        (str(axis), {**found, "groups": ", ".join(found["groups"])}) for axis, found in graph.nodes.items()
    )
    for (left, right, key), found in graph.edges.items():
        named.add_edge(str(left), str(right), key=key, **found)
    return named


def _json(graph: nx.MultiGraph[str], path: Path) -> None:
    path.write_text(json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n", encoding="utf-8")


WRITERS: Final[Mapping[str, Callable[[nx.MultiGraph[str], Path], None]]] = {
    ".graphml": nx.write_graphml,
    ".gml": nx.write_gml,
    ".json": _json,
}
"""What writes a form, by the ending that files of it have."""
