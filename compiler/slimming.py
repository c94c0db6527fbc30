"""Removing units from a program: parameters are gathered, module attributes and literal sizes follow.

    conv1  Conv2d(3, 8)    weight [8, 3, 3, 3]      ->  Conv2d(3, 6)   weight[keep]
    bn1    BatchNorm2d(8)                           ->  BatchNorm2d(6) all four vectors[keep]
    view   %x.view(-1, 512)                         ->  %x.view(-1, 384)
    fc     Linear(512, 10) weight [10, 512]         ->  Linear(384, 10) weight[:, keep]

The order of what is kept never changes, and an operation that moves data gives on what is kept the same as what is kept
of what it gave before: so the labels that arrive at a reader are the old ones without those that were removed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.amounts import counts_batch, is_open, item, reads, scaled, valued
from prunec.compiler.collector import uncollected
from prunec.compiler.ir import Axis, IntArray, Program, State, clone_module, module_tensors
from prunec.compiler.labels import Gather, shape_of_argument
from prunec.compiler.rewriting import REWRITES, SIZED
from prunec.compiler.rules import argument, op_name
from prunec.compiler.slim_layers import SHOWN, Gathering, slim_module
from prunec.compiler.units import Analysis, BoolArray, analyse


@uncollected()
def remove_units(program: Program, keep: BoolArray) -> Program:
    """The program without the units that `keep` ([units], see `Analysis.free`) leaves out. Shares what doesn't change.

    The caller has seen to it that only free units go and that no group and no cover is emptied.
    """
    analysis = analyse(program)
    kept = _kept_positions(analysis, keep)
    if not kept:
        return program
    view = _View(analysis, keep)
    graph = _slim_graph(program, view)
    state = _with_sizes(program, _read_state(_slim_state(program, kept), program.graph, graph), view) | view.indices
    origin = dict(program.origin)
    for axis, positions in kept.items():
        before = origin.get(axis, np.arange(analysis.flow.bindings[axis].labels.size))
        origin[axis] = before[positions]
    return program.derive(graph=graph, state=state, origin=origin)


def removed_positions(analysis: Analysis, keep: BoolArray) -> dict[Axis, IntArray]:
    """The positions that go, by axis, as they are numbered now."""
    everything = {axis: b.labels.size for axis, b in analysis.flow.bindings.items()}
    return {
        axis: np.setdiff1d(np.arange(everything[axis]), positions, assume_unique=True)
        for axis, positions in _kept_positions(analysis, keep).items()
    }


def _kept_positions(analysis: Analysis, keep: BoolArray) -> dict[Axis, IntArray]:
    """The positions that stay, of every axis that loses any."""
    known: dict[int, IntArray | None] = {}
    kept: dict[Axis, IntArray] = {}
    for axis, binding in analysis.flow.bindings.items():
        key = id(binding.labels)
        if key not in known:
            mask = analysis.kept(binding.labels, keep)
            known[key] = None if mask.all() else np.flatnonzero(mask)
        positions = known[key]
        if positions is not None:
            kept[axis] = positions
    return kept


# -- parameters ----------------------------------------------------------------------------------------------------


def _read_state(state: dict[str, State], old: fx.Graph, new: fx.Graph) -> dict[str, State]:
    """The state without tensors that only the old graph reads: indices that are literals now."""
    before, after = ({str(node.target) for node in graph.find_nodes(op="get_attr")} for graph in (old, new))
    return {name: value for name, value in state.items() if name not in before - after}


def _slim_state(program: Program, kept: Mapping[Axis, IntArray]) -> dict[str, State]:
    by_tensor: dict[str, dict[int, IntArray]] = {}
    for axis, positions in kept.items():
        by_tensor.setdefault(axis.tensor, {})[axis.dim] = positions
    state: dict[str, State] = dict(program.state)
    gathering = Gathering()
    for name, value in program.state.items():
        if isinstance(value, nn.Module):
            names = [tensor for tensor, _ in module_tensors(name, value) if tensor in by_tensor]
            mine = {tensor[len(name) + 1 :]: by_tensor[tensor] for tensor in names}
            if mine:
                state[name] = slim_module(value, mine, gathering)
        elif name in by_tensor:
            state[name] = gathering.gather(value, by_tensor[name])
    return state


def _with_sizes(program: Program, state: dict[str, State], view: _View) -> dict[str, State]:
    """The state with the sizes of modules that have no tensor to show them (norms without scale and shift)."""
    for node in program.graph.find_nodes(op="call_module"):
        module = state[str(node.target)]
        assert isinstance(module, nn.Module), f"{node.target} is called"
        rule = next((rule for cls, rule in SHOWN.items() if isinstance(module, cls)), None)
        if rule is None or any(True for _ in module_tensors("", module)):
            continue
        kept = view.kept(node, min(1, len(shape_of_argument(node)) - 1))
        sizes = rule(program.state[str(node.target)], view.shape(node), kept)
        if any(getattr(module, key) != value for key, value in sizes.items()):
            state[str(node.target)] = clone_module(module, **sizes)
    return state


# -- the graph -----------------------------------------------------------------------------------------------------


@dataclass
class _View:
    """`rewriting.Slim` for one selection."""

    analysis: Analysis
    keep: BoolArray
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Slim values of nodes that give numbers, where they differ from the old."""
    indices: dict[str, State] = field(default_factory=dict)
    """The buffers of gathers that the slim graph has and the old one hadn't."""
    _masks: dict[int, tuple[IntArray, BoolArray | None]] = field(default_factory=dict)
    _blanks: dict[tuple[tuple[int, ...], torch.dtype], torch.Tensor] = field(default_factory=dict)

    def mask(self, labels: IntArray) -> BoolArray | None:
        """Which elements of a field stay; None where all do."""
        if id(labels) not in self._masks:
            mask = self.analysis.kept(labels, self.keep)
            self._masks[id(labels)] = (labels, None if mask.all() else mask)
        return self._masks[id(labels)][1]

    def kept(self, value: object, dim: int) -> BoolArray:
        """Which positions of a value's dimension stay."""
        shape = shape_of_argument(value)
        kept = np.ones(shape[dim], dtype=bool)
        for labels in self.analysis.flow.fields(value):
            mask = self.mask(labels)
            if mask is not None and labels.shape[dim] > 1:
                kept &= mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim))
        return kept

    def is_rectangular(self, labels: IntArray) -> bool:
        """Whether what stays of a field is all that stays of its rows and columns."""
        mask = self.mask(labels)
        if mask is None:
            return True
        edges = (
            mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim), keepdims=True) for dim in range(mask.ndim)
        )
        return bool((reduce(np.logical_and, edges) == mask).all())

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The slim shape of a node's tensor."""
        return self._shape(self.analysis.flow.fields(node), shape_of_argument(node))

    def _shape(self, fields: tuple[IntArray, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        slim = list(shape)
        for labels in fields:
            mask = self.mask(labels)
            if mask is None:
                continue
            for dim, size in enumerate(labels.shape):
                if size > 1:
                    others = tuple(d for d in range(mask.ndim) if d != dim)
                    slim[dim] = int(np.count_nonzero(mask if size == mask.size else mask.any(axis=others)))
        return tuple(slim)

    def meta(self, labelled: Any, known: Any) -> Any:
        """A node's value on the meta device, slim; the very same object where nothing changes."""
        if isinstance(known, torch.Tensor) and isinstance(labelled, tuple):
            shape = self._shape(labelled, tuple(known.shape))
            return known if shape == tuple(known.shape) else self._blank(known, shape)
        if isinstance(known, tuple | list) and isinstance(labelled, list):
            parts = [self.meta(a, b) for a, b in zip(labelled, known, strict=True)]
            return known if all(a is b for a, b in zip(parts, known, strict=True)) else tuple(parts)
        return known

    def _blank(self, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A value of another shape. Nodes share it: it is never written to."""
        key = (shape, like.dtype)
        if key not in self._blanks:
            self._blanks[key] = like.new_empty(shape)
        return self._blanks[key]

    def value(self, argument: object) -> Any:
        """What a literal or a node that gives a number is in the slim program."""
        if not isinstance(argument, fx.Node):
            return argument
        return self.values.get(argument, argument.meta.get("val"))

    def constant(self, argument: object) -> Any:
        """What an argument is whatever the input: a literal, a number, a buffer of integers; else None."""
        return self.analysis.flow.constant(argument)

    def items(self, size: fx.Node, count: int) -> list[Any]:
        """New nodes for the items of a node that gives a size."""
        return [item(size, index, size.meta["val"][index]) for index in range(count)]

    def scaled(self, number: fx.Node, new: fx.Node, wanted: int) -> fx.Node | None:
        """A node for what a number has to be, whatever the batch; None where it counts channels alone."""
        now = self.value(number)
        if not isinstance(now, int) or not wanted or not is_open(number, self.analysis.flow.fields):
            return None
        shared = math.gcd(now, wanted)
        return scaled(new, wanted // shared, now // shared, wanted)


def _slim_graph(program: Program, view: _View) -> fx.Graph:
    """The graph with slim shapes on its nodes, and with the literals that these shapes need."""
    graph, mapping = program.copy_graph_with_map()
    changed: set[fx.Node] = set()
    torn = _torn(view)
    inside = {node for gather in torn.values() for node in gather.inner}
    for old, new in mapping.items():
        if old in inside:
            continue
        known = old.meta.get("val")
        follows = any(node in changed for node in old.all_input_nodes)
        if _has_tensor(known) or known is None or old.meta.get("mutates"):  # None: an output, an assignment
            slim = view.meta(view.analysis.flow.values.get(old), known)
            if (follows or slim is not known) and old.op not in ("placeholder", "get_attr"):
                _settle(old, new, view, mapping)
        elif follows and (slim := _number(old, mapping)) != known:
            view.values[old] = slim
        else:
            continue
        if slim is not known:
            changed.add(old)
            new.meta["val"] = slim
    for old, found in torn.items():
        _gather(mapping[old], mapping[found.source], found, view)
    for old in reversed(mapping):
        if old in inside:
            graph.erase_node(mapping[old])
    _drop_idle_numbers(mapping)
    return graph


def _torn(view: _View) -> dict[fx.Node, Gather]:
    """The gathers whose operations don't fit what is left of their source: a view of rows that lost other positions."""
    return {
        node: gather
        for node, gather in view.analysis.flow.gathers.items()
        if not view.kept(gather.source, gather.dim).all()
        and (gather.blocks is None or not all(map(view.is_rectangular, gather.blocks)))
    }


def _gather(new: fx.Node, source: fx.Node, gather: Gather, view: _View) -> None:
    """The node as an index of what is left, which is a buffer beside the parameters."""
    kept = view.kept(gather.source, gather.dim)
    places = (np.cumsum(kept) - 1)[gather.order[kept[gather.order]]]
    name = _free_name(f"{new.name}_order", view, _own(new))
    device = next((tensor.device for tensor in view.analysis.program.tensors.values()), None)
    view.indices[name] = torch.as_tensor(places, device=device)
    with new.graph.inserting_before(new):
        index = valued(new.graph.get_attr(name), torch.empty(places.shape, dtype=torch.int64, device="meta"))
    new.op, new.target = "call_function", torch.index_select
    new.args, new.kwargs = (source, gather.dim, index), {}


def _own(node: fx.Node) -> set[str]:
    """The tensors that no other node reads: an index that a former round made."""
    readers = Counter(str(read.target) for read in node.graph.find_nodes(op="get_attr") for _ in read.users)
    mine = (str(read.target) for read in node.all_input_nodes if read.op == "get_attr")
    return {name for name in mine if readers[name] == 1}


def _free_name(wanted: str, view: _View, free: set[str]) -> str:
    """A name that no tensor or module of the program has, but for those that are free."""
    taken = {name.partition(".")[0] for name in view.analysis.program.state if name not in free} | view.indices.keys()
    return next(name for name in chain([wanted], (f"{wanted}_{i}" for i in count(1))) if name not in taken)


def _settle(old: fx.Node, new: fx.Node, view: _View, mapping: Mapping[fx.Node, fx.Node]) -> None:
    """Let the literals of an operation follow; a number that was read off a size and means no size stays as it was."""
    name = "" if old.op in ("call_module", "output") else op_name(old)
    numbers = [n for n in old.all_input_nodes if n in view.values]
    if numbers and name not in SIZED:
        frozen = {mapping[n]: _frozen(n, view, mapping) for n in numbers}
        new.args = fx.node.map_arg(new.args, lambda n: frozen.get(n, n))
        new.kwargs = fx.node.map_arg(new.kwargs, lambda n: frozen.get(n, n))
    if name in REWRITES:
        REWRITES[name](old, new, view)
    elif old.op == "call_module":
        _settle_module(old, new, view)


def _settle_module(old: fx.Node, new: fx.Node, view: _View) -> None:
    """`nn.Unflatten` holds sizes, and may be called for several groups: where they change, it becomes the function."""
    module = view.analysis.program.state[str(old.target)]
    value = argument(old, 0, "input")
    if not isinstance(module, nn.Unflatten) or view.shape(old) == shape_of_argument(old):
        return
    dim = int(module.dim) % len(shape_of_argument(value))
    sizes = view.shape(old)[dim : dim + len(module.unflattened_size)]
    new.op, new.target = "call_function", torch.unflatten
    new.args, new.kwargs = (argument(new, 0, "input"), dim, sizes), {}


def _frozen(old: fx.Node, view: _View, mapping: Mapping[fx.Node, fx.Node]) -> Any:
    """What a number was before anything was removed, for every batch size.

    Arithmetic is done again on the operands' old values; what is read off a tensor becomes a literal, or, where it
    counts the batch too, is scaled.
    """
    new = mapping[old]
    if old not in view.values:
        return new
    before, now = old.meta["val"], view.values[old]
    if isinstance(before, tuple):
        return tuple(
            was if was != here else item(new, i, here) for i, (was, here) in enumerate(zip(before, now, strict=True))
        )
    if callable(old.target) and not reads(old):
        args = fx.node.map_arg(old.args, lambda n: _frozen(n, view, mapping))
        with new.graph.inserting_after(new):
            return valued(new.graph.call_function(old.target, args), before)
    if not counts_batch(old):
        return before
    return scaled(new, before, now, before)


def _drop_idle_numbers(mapping: Mapping[fx.Node, fx.Node]) -> None:
    """Nodes that gave sizes or indices which are literals now."""
    for old, new in reversed(list(mapping.items())):
        idle = not new.users and old.users
        sized = old.op in ("call_function", "call_method") and not _has_tensor(old.meta.get("val"))
        if idle and (sized or old.op == "get_attr"):
            new.graph.erase_node(new)


def _number(old: fx.Node, mapping: Mapping[fx.Node, fx.Node]) -> Any:
    """The value of a node that gives no tensor, on slim operands. NaN where they have none: a factor such as
    `(width // heads) ** -0.5` stays what it was, so that it doesn't matter."""

    def slim(node: fx.Node) -> Any:
        return mapping[node].meta.get("val")

    args, kwargs = fx.node.map_arg(old.args, slim), fx.node.map_arg(old.kwargs, slim)
    function = old.target if callable(old.target) else partial(_method, str(old.target))
    try:
        return function(*args, **kwargs)
    except ZeroDivisionError:
        return math.nan


def _method(name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(value, name)(*args, **kwargs)


def _has_tensor(value: object) -> bool:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return any(_has_tensor(part) for part in value)
    return isinstance(value, torch.Tensor)
