"""The slim module that a user gets: an `fx.GraphModule` that is pickled with its graph, and needs torch alone to load.

fx pickles a graph module as its code, and traces that anew to load it. Such a trace knows no sizes, so that code which
computes with them fails (`self.table[:n]`, `torch.zeros(n, 8)`, `x[i] = y`), and it takes `self.training` for a
constant. Here a pickle says how the graph is made, node by node, by torch's own functions.

fx also writes and compiles the module's code when it is made. Here that, and the copy of the graph that is the user's
own, wait until something asks for them: a compile makes more modules than it runs.

A program's graph goes to another process as `packed` rows, with what each node knows; `unpacked` makes it again.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter, getitem
from typing import Any

from torch import fx, nn
from torch.fx.graph import PythonCode
from torch.fx.graph_module import _assign_attr
from torch.fx.node import _get_qualified_name

from prunec.compiler.ir.keyword_names import reserved, with_readable_code
from prunec.compiler.ir.modules import HOOKS


class _Deferred:
    """An attribute of a `SlimModule` that is made when it is first read, and from then on is a plain one."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __get__(self, module: Any, kind: type) -> Any:
        return self if module is None else self._make(module)


class _Unwritten:
    """Stands for the `forward` of a module whose code isn't written yet, in the class that fx makes for the module.

    Whoever reads it, of the module or of its class (torch's script compiler, a signature), gets the written one.
    """

    def __init__(self, module: SlimModule) -> None:
        self._module = module

    def __get__(self, module: Any, kind: type) -> Any:
        self._module.recompile()
        return self._module.forward if module is not None else kind.forward  # type: ignore[attr-defined]


class SlimModule(fx.GraphModule):
    """An `fx.GraphModule` that is pickled with its graph, as a plain `fx.GraphModule`, and copied with its hooks.

    `graph` makes the module's own graph. `state` holds the leaf modules and tensors that it reads, by dotted names.
    """

    def __init__(
        self, state: Mapping[str, Any], graph: Callable[[], fx.Graph], class_name: str, training: bool
    ) -> None:
        super().__init__({}, fx.Graph(), class_name)
        self.__dict__["_make_graph"] = graph
        del self.__dict__["_graph"]
        self.training = training
        for name in sorted(state, key=lambda name: name.count(".")):  # a part of a leaf comes after it
            _attach(self, name, state[name])

    def _own_graph(self) -> fx.Graph:
        graph: fx.Graph = self.__dict__.pop("_make_graph")()
        graph.owning_module = self
        self.__dict__["_graph"] = graph
        return graph

    _graph = _Deferred(_own_graph)

    def recompile(self) -> PythonCode | None:  # type: ignore[override]
        """Write the code anew, from the graph; while fx makes the module, nothing is written yet."""
        if "_tracer_cls" in self.__dict__:
            return super().recompile()
        type(self).forward = _Unwritten(self)  # type: ignore[assignment]
        return None

    def _written_code(self) -> str:
        _ = self.forward
        return str(self.__dict__["_code"])

    _code = _Deferred(_written_code)

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
        _ = self.graph, self.forward
        made = super().__deepcopy__(memo)
        for key, value in self.__dict__.items():
            if key in HOOKS or key not in made.__dict__:
                made.__dict__[key] = copy.deepcopy(value, memo)
        return made

    def _name(self) -> str:
        return str(self.__class__.__name__)


def _attach(root: nn.Module, name: str, value: Any) -> None:
    """Put a leaf module or a tensor in its place; parts of the name become plain modules in the root's mode."""
    *parents, last = name.split(".")
    home = root
    for part in parents:
        child = home._modules.get(part)
        if child is None:
            home._modules[part] = child = nn.Module()
            child.training = root.training
        home = child
    if isinstance(value, nn.Module):
        home._modules[last] = value
    else:
        _assign_attr(value, home, last)


_MADE_ANEW = frozenset(["_graph", "_make_graph", "_code", "_lineno_map", "_prologue_start"])
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


# -- a program's graph ---------------------------------------------------------------------------------------------


class _Operand(int):
    """Stands for the node of this number among the operands of a later one."""


def packed(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """A graph as rows that can be pickled, one a node, with the nodes' names, types and metadata."""
    numbers = {node: _Operand(number) for number, node in enumerate(graph.nodes)}
    return [
        (
            node.op,
            node.target if isinstance(node.target, str) else _function(node.target),
            *fx.node.map_arg((node.args, dict(node.kwargs)), numbers.__getitem__),
            node.name,
            node.type,
            dict(node.meta),
        )
        for node in graph.nodes
    ]


def unpacked(rows: Iterable[tuple[Any, ...]]) -> fx.Graph:
    """The graph of `packed` rows."""
    graph, nodes = fx.Graph(), list[fx.Node]()
    for op, target, args, kwargs, name, type_, meta in rows:
        node = graph.create_node(op, target, _operands(args, nodes), _operands(kwargs, nodes), name, type_)
        node.meta.update(meta)
        nodes.append(node)
    return graph


def _operands(value: Any, nodes: list[fx.Node]) -> Any:
    """Operands with the nodes that they stand for."""
    if isinstance(value, _Operand):
        return nodes[value]
    if isinstance(value, slice):
        return slice(*(_operands(x, nodes) for x in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: _operands(item, nodes) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_operands(item, nodes) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
