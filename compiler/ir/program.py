"""The IR: a program is an fx graph whose every node knows its value's shape, and the state that the graph reads.

    Program
      graph        torch.fx.Graph; node.meta["val"] holds the value on the meta device (a tensor, a number, or a tuple)
      state        dotted name -> leaf module (`call_module`) or tensor (`get_attr`), shared with other programs
      inputs       example inputs, one a placeholder: a tensor, or lists, tuples and dicts of them
      training     whether modules that are made of it start in train mode; after tracing they don't
      origin       axis -> the positions that are left of the original axis
      names        axis -> what a plan may call the group that the axis wrote before the first rewrite
      facts        what analysis passes found (scores, a selection, clusters), dropped by every rewrite
      carried      what outlives rewrites, such as an optimizer's memory; who reads it fits it to what is left
      granularity  how blocks of channels are divided into units, where a plan has said so

A program is a value: nothing in it changes after it was made. A pass derives a new one with `derive`, and shares all
that it leaves alone. `Program.module` is what a user runs, `Program.graph_module` the `fx.GraphModule`; each is made
when it is first asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from prunec.compiler.ir.gc_pause import gc_paused
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.ir.graph import new_node
from prunec.compiler.ir.keyword_names import reserved, with_readable_code
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.pickled import SlimModule, packed, unpacked
from prunec.compiler.ir.train_eval import MODES, Mode, has_both, keep_mode, switching

IntArray = npt.NDArray[np.int64]
State = nn.Module | torch.Tensor
Kept = TypeVar("Kept")


class Axis(NamedTuple):
    """One dimension of one parameter or buffer. Dimension 1 of a grouped convolution counts input channels."""

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"

    @property
    def owner(self) -> str:
        """The dotted name of the module that holds the tensor: `layer1.0.conv1` of `layer1.0.conv1.weight`."""
        return self.tensor.rpartition(".")[0]


class Edge(NamedTuple):
    """One dimension of a value as one node reads it, by the names of both: the reader may leave out positions of it."""

    reader: str
    source: str
    dim: int

    def __str__(self) -> str:
        return f"{self.source}[{self.dim}] at {self.reader}"


@dataclass(frozen=True, slots=True)
class Note:
    """Why something was left alone: the node, group or parameter, and the reason."""

    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"


@dataclass(frozen=True)
class Program:
    """A model as the compiler sees it; the module's docstring lists the fields."""

    graph: fx.Graph
    state: Mapping[str, State]
    inputs: tuple[Any, ...]
    name: str = "Model"
    training: bool = False
    origin: Mapping[Axis, IntArray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    shown: frozenset[str] = frozenset()
    """Tensors whose values the program's text spells out."""
    granularity: Granularity = field(default_factory=Granularity)
    names: Mapping[Axis, frozenset[str]] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `cached` has made."""

    def derive(self, **changes: Any) -> Program:
        """A new program with some fields replaced. A new graph or state drops the facts, unless they are given."""
        if ("graph" in changes or "state" in changes) and "facts" not in changes:
            changes["facts"] = {}
        return replace(self, **changes)

    def with_graph(self, graph: fx.Graph, state: Mapping[str, State]) -> Program:
        """The program with an edited copy of its graph, and with what that graph still reads of the state and `shown`.

        Origins of tensors that are gone stay: the lock tells what was removed from them before.
        """
        graph.lint()
        read = {node.target for node in graph.nodes if node.op in {"call_module", "get_attr"}}
        made = self.derive(graph=graph, state={name: value for name, value in state.items() if name in read})
        return replace(made, shown=self.shown & made.tensors.keys())

    def with_facts(self, **facts: Any) -> Program:
        """The same program, knowing more. What was computed from its graph and state (its analysis) still holds."""
        known = replace(self, facts={**self.facts, **facts})
        known._kept.update(self._kept)
        return known

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: all fields, with the graph as rows, and nothing of what is kept."""
        state = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "_kept"}
        return {**state, "graph": packed(self.graph)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update({**state, "graph": unpacked(state["graph"]), "_kept": {}})

    def cached(self, key: str, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, made once and kept with the program.

        For analyses: pure functions of the graph, its state and the granularity. Facts may not matter to them, since
        `with_facts` takes along what is kept.
        """
        if key not in self._kept:
            self._kept[key] = make()
        kept: Kept = self._kept[key]
        return kept

    @cached_property
    def module(self) -> nn.Module:
        """The program as a module, with the original's parameter names. Shares the leaf modules.

        It is an `fx.GraphModule` with its code, which scripts, copies and pickles; of a program of both modes it is a
        module that gives the result of the mode that it is in.
        """
        return self.cached("module", self._make_module)

    def _make_module(self) -> nn.Module:
        if not has_both(self.graph):
            return self._slim_module()
        halves = {mode: self.half(mode)._slim_module() for mode in MODES}
        return switching(self.name, self.graph_module, halves)

    def _slim_module(self) -> SlimModule:
        with gc_paused():
            read = {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}
            state = {name: value for name, value in self.state.items() if name in read}
            return SlimModule(state, self._readable_graph, self.name, self.training)

    def _readable_graph(self) -> fx.Graph:
        return with_readable_code(self.copy_graph(), reserved(self.graph))

    @cached_property
    def graph_module(self) -> fx.GraphModule:
        """The program's graph as an `fx.GraphModule`; of a program of both modes it gives both results, a `ByMode`.

        fx generates its Python code when it is first called, or its `code` is read.
        """
        return self.cached("graph_module", self._make_graph_module)

    def half(self, mode: Mode) -> Program:
        """For a program of both modes, the program of this mode's result alone; any other program is its own half."""
        if not has_both(self.graph):
            return self
        return self.cached(f"{mode} half", lambda: self._cut(mode))

    @cached_property
    def deployed(self) -> Program:
        """What a runtime executes: the half of eval mode, without inputs that only train mode reads."""
        return self.cached("deployed", self._make_deployed)

    def _make_deployed(self) -> Program:
        if not has_both(self.graph):
            return self
        half = self.half("eval")
        graph, inputs = half.copy_graph(), []
        for node, value in zip(graph.find_nodes(op="placeholder"), half.inputs, strict=True):
            if node.users or not node.args:
                inputs.append(value)
            else:
                graph.erase_node(node)
        return replace(half, graph=graph, inputs=tuple(inputs))

    def _cut(self, mode: Mode) -> Program:
        graph = self.copy_graph()
        keep_mode(graph, mode)
        return self.with_graph(graph, self.state)

    def _make_graph_module(self) -> fx.GraphModule:
        with _quiet_getattr(), gc_paused():
            state = {**self.state, "training": self.training}
            module = _LazyGraphModule(state, self._readable_graph(), class_name=self.name)
        module.training = self.training
        for part in module.modules():
            if type(part) is nn.Module:  # fx makes these to hold the parts of a dotted name
                part.training = self.training
        return module

    def copy_graph(self) -> fx.Graph:
        """A copy of the graph that may be edited; nodes keep their names and their metadata."""
        return self.copy_graph_with_map()[0]

    def copy_graph_with_map(self) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
        """`copy_graph`, and which new node stands for which old one."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        for old in self.graph.nodes:
            args, kwargs = fx.node.map_arg((old.args, old.kwargs), mapping.__getitem__)
            mapping[old] = new = new_node(graph, old.op, old.target, args, kwargs, old.name)
            if old.type is not None:
                new.type = old.type
            new.meta.update(old.meta)
        return graph, mapping

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Every parameter and buffer that the graph reads, by its dotted name."""
        return self.cached("tensors", self._make_tensors)

    def _make_tensors(self) -> Mapping[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, value in self.state.items():
            if isinstance(value, nn.Module):
                found.update(module_tensors(name, value))
            else:
                found[name] = value
        return MappingProxyType(found)

    @cached_property
    def saved(self) -> Mapping[str, torch.Tensor]:
        """What a weight file of the program holds: the `state_dict` of the emitted class. A tied tensor has a name in
        each of its places."""
        return self.cached("saved", self._make_saved)

    def _make_saved(self) -> Mapping[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, value in self.state.items():
            if isinstance(value, nn.Module):
                found.update({f"{name}.{key}": tensor for key, tensor in value.state_dict(keep_vars=True).items()})
            else:
                found[name] = value
        return MappingProxyType(found)

    def size(self, axis: Axis) -> int:
        """How many positions an axis has now (for a grouped convolution's dimension 1: input channels)."""
        if axis in self.origin:
            return len(self.origin[axis])
        return int(self.tensors[axis.tensor].shape[axis.dim]) * self.groups_along(axis)

    def left_of(self, before: Program, axis: Axis) -> IntArray | None:
        """The positions of an axis of `before`, an earlier program of the same model, that are left of it; None where
        all are."""
        left, known = self.origin.get(axis), before.origin.get(axis)
        if left is None or known is None:
            return left
        order = np.argsort(known, kind="stable")
        return np.asarray(order[np.searchsorted(known, left, sorter=order)])

    def groups_along(self, axis: Axis) -> int:
        """The groups of a grouped convolution, where the axis is dimension 1 of its weight; 1 for any other axis.

        That dimension counts the input channels of all groups (of a transposed convolution, the output channels):
        position p is column `p % columns` of the rows of group `p // columns`.
        """
        module = self.state.get(axis.owner)
        return module.groups if axis.dim == 1 and isinstance(module, nn.modules.conv._ConvNd) else 1


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor value."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor), f"{node.name} is no tensor but {type(value).__name__}"
    return tuple(value.shape)


def _quiet_getattr() -> warnings.catch_warnings[None]:
    """fx warns of `self.training`, which is no parameter; the warning says nothing to a user."""
    return warnings.catch_warnings(action="ignore")


BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
