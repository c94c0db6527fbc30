"""The slim module that a user gets: an `fx.GraphModule` that is pickled with its graph, and needs torch alone to load.

fx pickles a graph module as its code, and traces that anew to load it. Such a trace knows no sizes, so that code which
computes with them fails (`self.table[:n]`, `torch.zeros(n, 8)`, `x[i] = y`), and it takes `self.training` for a
constant. Here a pickle says how the graph is made, node by node, by torch's own functions.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable
from operator import attrgetter, getitem
from typing import Any

from torch import fx
from torch.fx.node import _get_qualified_name

from prunec.compiler.ir.keyword_names import reserved, with_readable_code
from prunec.compiler.ir.modules import HOOKS


class SlimModule(fx.GraphModule):
    """An `fx.GraphModule` that is pickled with its graph, as a plain `fx.GraphModule`, and copied with its hooks."""

    def __reduce__(self) -> tuple[Any, ...]:
        """How a pickle makes the module: its graph, what the graph reads, and then all its attributes."""
        state = {key: value for key, value in self.__dict__.items() if key not in _MADE_ANEW}
        read = [str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")]
        return (
            fx.GraphModule,
            ({name: attrgetter(name)(self) for name in read}, _graph(self.graph), self._name()),
            state,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        """fx's copy, with the hooks and plain attributes that fx leaves out: a region's part is called through one."""
        made = super().__deepcopy__(memo)
        for key, value in self.__dict__.items():
            if key in HOOKS or key not in made.__dict__:
                made.__dict__[key] = copy.deepcopy(value, memo)
        return made

    def _name(self) -> str:
        return str(self.__class__.__name__)


_MADE_ANEW = frozenset(["_graph", "_code", "_lineno_map", "_prologue_start"])
"""Attributes that fx makes of a graph."""


class _Made:
    """Stands for what a call gives: a pickle of it holds the call, and is loaded as its result."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _graph(graph: fx.Graph) -> _Made:
    """The calls that make a copy of a graph. They stand in a list, so that no node is pickled inside another."""
    made = _Made(fx.Graph)
    if names := reserved(graph):  # only such a pickle needs this package
        made = _Made(with_readable_code, made, names)
    nodes: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        args = fx.node.map_arg((node.args, dict(node.kwargs)), nodes.__getitem__)
        target = node.target if isinstance(node.target, str) else _function(node.target)
        nodes[node] = _Made(fx.Graph.create_node, made, node.op, target, *args, node.name, node.type)
    return _Made(getitem, (made, list(nodes.values())), 0)


def _function(function: Callable[..., Any]) -> _Made:
    """A function by its name, as the graph's code calls it."""
    name = _get_qualified_name(function)
    return _Made(pkgutil.resolve_name, name if "." in name else f"builtins.{name}")
