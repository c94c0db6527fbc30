"""Readers that select what they read: where one may stand, and what becomes of a channel that none of them reads.

    stream --+-- bn1 - relu - conv1      without a choice of its own, a reader has the stream's units:
             |                           a channel goes for all of its readers, or for none
             +-- bn2 - relu - conv2      with one, bn1, relu and conv1 may lose a channel that bn2 still reads:
                                         stream.index_select(1, order) is put before bn1

A reader selects where a value that others share comes to it: behind that lie operations on each channel by itself
(norms with running statistics, activations, pooling, a flatten), and at last layers whose weights read the channels.
What such an operation gives for one channel doesn't depend on the others, so that the selection may stand before all
of them. A layer norm counts its channels; there, the selection stands behind it.

The units of the source itself may not be chosen then. One goes by itself where no reader has kept it, provided that
nothing else reads it (`Streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.aliasing import memories
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Axis, BoolArray, IntArray
from prunec.compiler.labels.flow import FIXED, Flow, Incoming, Labelled
from prunec.compiler.labels.registry import row_for

Units = frozenset[int]

_PRODUCTS: Final = frozenset(["mul", "imul", "multiply"])
"""Element by element: what is multiplied with a channel adds nothing of its own to it."""


def _none() -> IntArray:
    return np.zeros(0, dtype=np.int64)


def candidates(flow: Flow, unit_of: IntArray, pinned: Mapping[int, str]) -> list[Incoming]:
    """Every node that could select what it reads, in the order of the graph; `useless` where it shares with nobody.

    `flow` is that of the program in which none does, `unit_of` its labels' units; `pinned` says which may not go.
    """
    reads = units_read(flow, unit_of)
    readers: dict[int, set[object]] = {}
    for node, units in reads.items():
        for unit in units:
            readers.setdefault(unit, set()).add(_layer(node))

    def is_shared(region: _Region) -> bool:
        mine, own = _units(unit_of, region.labels), set(map(_layer, region.nodes))
        return any(unit in pinned or not readers[unit] <= own for unit in mine if unit in readers)

    regions = list(_Regions(flow).topmost(is_shared))
    selecting = {node for region, _ in regions for node in region.nodes}
    whole = {unit: node.name for node, units in reads.items() if node not in selecting for unit in units}
    found: dict[str, Incoming] = {}
    for region, shared in regions:
        held = [whole[unit] for unit in _units(unit_of, region.labels) if unit in whole and unit not in pinned]
        entry = region.incoming("" if shared else "nobody else reads what it reads", next(iter(held), ""))
        found[entry.node.name] = entry
    return list(found.values())


def _layer(node: fx.Node) -> object:
    """What a node calls, if that is a layer: its calls read the same channels."""
    return str(node.target) if node.op == "call_module" else node


# -- where a reader may select -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Region:
    """A node that reads a shared value, and all that its channels run through from there, up to weights."""

    source: fx.Node
    labels: IntArray
    nodes: tuple[fx.Node, ...]
    """In the order of the graph; the first reads the source."""
    axes: tuple[Axis, ...]
    divides: bool
    """Whether several layers read the channels in the end, each for itself."""

    def incoming(self, useless: str, held: str) -> Incoming:
        """The region as a candidate, called after its first layer."""
        axis = self.axes[0]
        own = axis.owner if axis.tensor.endswith(".weight") and axis.owner else axis.tensor
        names = dict.fromkeys(a.owner or a.tensor for a in self.axes)
        names |= dict.fromkeys(str(node.target) for node in self.nodes if node.op == "call_module")
        dim = int(np.argmax(self.labels.shape))
        return Incoming(self.nodes[0], self.source, dim, axis, f"{own}.incoming", tuple(names), useless, held)


class _Regions:
    """Finds the regions of a program whose labels have flown."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.place = {node: place for place, node in enumerate(flow.program.graph.nodes)}
        self.products = {product.node for product in flow.macs}
        self.gathered = {*flow.gathers, *(node for found in flow.gathers.values() for node in found.inner)}
        self._sets: dict[int, tuple[IntArray, IntArray]] = {}
        """id of an array -> the array, which holds its id, and its distinct labels."""
        self.tied: dict[str, list[tuple[IntArray, IntArray]]] = {}
        for pair in flow.pairs:
            self.tied.setdefault(pair.cause, []).append((pair.left, pair.right))
        self.bound: dict[str, list[tuple[Axis, IntArray]]] = {}
        for axis, binding in flow.bindings.items():
            if binding.role in ("carrier", "reader"):
                self.bound.setdefault(axis.owner, []).append((axis, binding.labels))

    def topmost(self, is_shared: Callable[[_Region], bool]) -> Iterator[tuple[_Region, bool]]:
        """The regions that lie in no other, in the order of the graph, each with whether its source is shared. In one
        whose source isn't, several readers may share what lies between."""
        covered: set[fx.Node] = set()
        for node, source in ((n, s) for n in self.place if n.op.startswith("call_") for s in n.all_input_nodes):
            region = None if node in covered else self._region(node, source)
            if region is not None:
                shared = is_shared(region)
                covered.update(region.nodes if shared or not region.divides else ())
                yield region, shared

    def _region(self, node: fx.Node, source: fx.Node) -> _Region | None:
        """What lies behind an edge of the graph; None unless that is channels on their way to weights."""
        lines = _lines(self.flow, source)
        labels = next((f for f in lines if self._leads_to_weights.get((node, id(f)))), None)
        if labels is None or source.op == "get_attr":
            return None
        met = self._behind(node, labels)
        beside = ((n, s) for n in met for s in n.all_input_nodes if s not in met and s.op != "get_attr")
        factors = [s for n, s in beside if (n, s) != (node, source) and self._lies_beside(s, met[n])]
        inner = self._made_of(factors, met)
        axes = dict.fromkeys(axis for n, arriving in met.items() for axis in self._axes(n, arriving))
        if inner is None or not axes or self._is_overwritten(source, met):
            return None
        ends = {_layer(n) for n, arriving in met.items() if self._carried(n, arriving) is None}
        return _Region(source, labels, (*met, *inner), tuple(axes), len(ends) > 1 and not inner)

    def _lies_beside(self, node: fx.Node, labels: IntArray) -> bool:
        return any(_beside(f, labels) for f in self.flow.fields(node))

    def _made_of(self, factors: Iterable[fx.Node], met: Mapping[fx.Node, IntArray]) -> list[fx.Node] | None:
        """All that lies between a region and factors that are made of its channels alone, and for them: the weights
        that a squeeze and excitation finds. None where they are made of anything else, or serve anything else."""
        first, found = next(iter(map(self.place.__getitem__, met))), dict[fx.Node, None]()
        stack = list(factors)
        while stack:
            here = stack.pop()
            if here in met or here in found or here.op == "get_attr" or not _gives_tensors(here):
                continue
            if self.place[here] < first:
                return None
            found[here] = None
            stack += here.all_input_nodes
        escapes = (user for node in found for user in node.users if user not in met and user not in found)
        return None if any(map(_gives_tensors, escapes)) else list(found)

    @cached_property
    def _leads_to_weights(self) -> dict[tuple[fx.Node, int], bool]:
        """(node, id of a field that arrives there) -> whether its channels run through operations on each by itself
        alone, and all end at weights."""
        known: dict[tuple[fx.Node, int], bool] = {}
        for node in reversed(self.place):
            if node.op.startswith("call_") and node not in self.gathered:
                for labels in (f for s in node.all_input_nodes for f in _lines(self.flow, s)):
                    known[node, id(labels)] = self._leads(node, labels, known)
        return known

    def _leads(self, node: fx.Node, labels: IntArray, known: Mapping[tuple[fx.Node, int], bool]) -> bool:
        if not self._meets_nobody(node, labels):
            return False
        carried = self._carried(node, labels)
        if carried is None:
            return node.name in self.products and not self._ties(node, labels)
        if any(_overlap(mixed, labels) or _overlap(mixed, carried) for mixed in self.flow.mixed.get(node, ())):
            return False
        readers = [user for user in node.users if _gives_tensors(user)]
        return bool(readers) and all(known.get((user, id(carried)), False) for user in readers)

    def _carried(self, node: fx.Node, labels: IntArray) -> IntArray | None:
        """The field of a node's value with the channels that arrive; None where it has none."""
        given = _lines(self.flow, node)
        same = [f for f in given if f is labels] or [f for f in given if self._has_labels_of(f, labels)]
        same = same or [f for f in given if self._has_labels_of(f, *self._ties(node, labels))]
        return same[0] if len(same) == 1 else None

    def _has_labels_of(self, labels: IntArray, *others: IntArray) -> bool:
        """Whether an array has the labels of another, all of them and no more."""
        return any(np.array_equal(self._distinct(labels), self._distinct(other)) for other in others)

    def _distinct(self, labels: IntArray) -> IntArray:
        if id(labels) not in self._sets:
            self._sets[id(labels)] = labels, np.unique(labels)
        return self._sets[id(labels)][1]

    def _ties(self, node: fx.Node, labels: IntArray) -> list[IntArray]:
        """Arrays that the node itself ties to the labels and that its value has: a depthwise layer's own channels."""
        given = self.flow.fields(node)
        found = []
        for left, right in self.tied.get(node.name, ()):
            for mine, other in ((left, right), (right, left)):
                if _overlap(mine, labels) and any(_overlap(other, f) for f in given):
                    found.append(other)
        return found

    def _meets_nobody(self, node: fx.Node, labels: IntArray) -> bool:
        """Whether all other operands along the channels are parameters, or have the same channels, or are factors of
        them."""
        if node.op != "call_module" and op_name(node) in _PRODUCTS:
            return True
        others = (f for s in node.all_input_nodes if s.op != "get_attr" for f in self.flow.fields(s))
        return all(f is labels or not _beside(f, labels) or self._has_labels_of(f, labels) for f in others)

    def _behind(self, node: fx.Node, labels: IntArray) -> dict[fx.Node, IntArray]:
        """The node and all that its channels run through, in the order of the graph, each with what arrives there."""
        found, stack = {node: labels}, [node]
        while stack:
            here = stack.pop()
            carried = self._carried(here, found[here])
            for user in here.users if carried is not None else ():
                if user not in found and _gives_tensors(user):
                    assert carried is not None
                    found[user] = carried
                    stack.append(user)
        return {n: found[n] for n in sorted(found, key=self.place.__getitem__)}

    def _axes(self, node: fx.Node, labels: IntArray) -> Iterator[Axis]:
        """The axes of parameters that have a position for each channel that arrives at a node."""
        if node.op == "call_module":
            mine = [axis for axis, bound in self.bound.get(str(node.target), ()) if _overlap(bound, labels)]
            yield from sorted(mine, key=lambda axis: not axis.tensor.endswith("weight"))
        ties = [other for pair in self.tied.get(node.name, ()) for other in _other(pair, labels)]
        for weight in (s for s in node.all_input_nodes if s.op == "get_attr"):
            for dim in (d for f in self.flow.fields(weight) if any(_overlap(f, t) for t in ties) for d in _dims(f)):
                yield Axis(str(weight.target), dim)

    def _is_overwritten(self, source: fx.Node, nodes: Iterable[fx.Node]) -> bool:
        """Whether one of the nodes may share memory with the source, and that is written to from the first of them on:
        behind a copy of some channels, others wouldn't see it."""
        memory = next((found for found in self._written if source in found), set())
        shared, first = memory.intersection(nodes), min(map(self.place.__getitem__, nodes))
        return bool(shared) and any(n.meta.get("mutates") and self.place[n] >= first for n in memory)

    @cached_property
    def _written(self) -> list[set[fx.Node]]:
        """The values that may share memory, where anything is written into them."""
        if not any(node.meta.get("mutates") for node in self.place):
            return []
        program = self.flow.program
        found = memories(program.graph, program.state)
        return [memory for memory in found if any(node.meta.get("mutates") for node in memory)]


def _lines(flow: Flow, node: fx.Node) -> list[IntArray]:
    """The fields of a value that vary along one dimension, not the first: its channels."""
    return [f for f in flow.fields(node) if f.size == max(f.shape) > 1 and f.shape[0] == 1]


def _dims(labels: IntArray) -> list[int]:
    return [dim for dim, size in enumerate(labels.shape) if size > 1]


def _beside(one: IntArray, other: IntArray) -> bool:
    """Whether two fields vary along a common dimension, counted from the last."""
    return not {d - one.ndim for d in _dims(one)}.isdisjoint(d - other.ndim for d in _dims(other))


def _overlap(one: IntArray, other: IntArray) -> bool:
    """Whether two arrays have a label in common."""
    if one is other or not one.size or not other.size:
        return one is other
    if one.max() < other.min() or other.max() < one.min():
        return False
    found = np.intersect1d(one, other)
    return bool((found != FIXED).any())


def _other(pair: tuple[IntArray, IntArray], labels: IntArray) -> Iterator[IntArray]:
    """The sides of a pair that are tied to the labels."""
    left, right = pair
    if _overlap(left, labels):
        yield right
    if _overlap(right, labels):
        yield left


# -- channels that nobody reads ------------------------------------------------------------------------------------


def units_read(flow: Flow, unit_of: IntArray) -> dict[fx.Node, Units]:
    """Node -> the units that it reads, and doesn't hand on. A unit that some reader selects is read as that reader's.

    A product reads the labels that its value hasn't, though they may be of the same unit: a convolution in a residual
    branch. Leaving channels out, as a slice does, is no reading.
    """
    products = {product.node for product in flow.macs}
    found: dict[fx.Node, Units] = {}
    for node in flow.program.graph.nodes:
        given = list(_arrays(flow.values.get(node)))
        read = (f for source in node.all_input_nodes for f in _arrays(flow.read_as(source, node)))
        taken = [f for f in read if not any(f is g for g in given)]
        if not taken or not _reads(flow, node):
            continue
        if node.name in products:
            kept = np.unique(np.concatenate([g.ravel() for g in given] or [np.zeros(0, dtype=np.int64)]))
            units = _units(unit_of, *(f[~np.isin(f, kept)] for f in taken))
        else:
            units = _units(unit_of, *taken) - _units(unit_of, *given)
        if units:
            found[node] = units
    return found


def _reads(flow: Flow, node: fx.Node) -> bool:
    """Whether a node computes a tensor of its operands' elements, rather than moving some of them or asking a size."""
    row = row_for(flow, node) if node.op.startswith("call_") else None
    return not (row is not None and row.moves) and _gives_tensors(node)


def _gives_tensors(node: fx.Node) -> bool:
    """Whether a node gives tensors, or is the output, and no number or size."""
    return node.op == "output" or any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(node.meta.get("val")))


def _arrays(value: Labelled) -> Iterator[IntArray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _arrays(part)


@dataclass(frozen=True)
class Streams:
    """The units of values that readers select from. Such a unit goes by itself where none of its readers keeps it."""

    source: IntArray = field(default_factory=_none)
    """[pairs]: a unit that may go so, and ..."""
    reader: IntArray = field(default_factory=_none)
    """[pairs]: ... a unit of a reader that has a position of it."""
    covers: tuple[IntArray, ...] = ()
    """Sets of units of which one stays all the same."""

    def settled(self, keep: BoolArray) -> BoolArray:
        """[units]: what stays when the units in `keep` do, without the channels that no reader has kept."""
        if not self.source.size:
            return keep
        read = np.zeros(keep.size, dtype=bool)
        read[self.source[keep[self.reader]]] = True
        gone = self.source[~read[self.source]]
        if not gone.size:
            return keep
        left = keep.copy()
        left[gone] = False
        for units in self.covers:
            if not left[units].any():
                left[units[0]] = True
        return left


GOES_UNREAD = "goes by itself where no reader keeps it"


def streams(
    flow: Flow, unit_of: IntArray, pinned: dict[int, str], bound: Mapping[int, str], covers: Iterable[IntArray]
) -> Streams:
    """What the readers that select take from, once units are numbered. All units that they take from get pinned.

    `bound` says of units why they can't go by themselves; of each of `covers`, one has to stay.
    """
    pairs = [_pairs(unit_of, shared, mine) for _, shared, mine in flow.selections()]
    if not pairs:
        return Streams()
    source, reader = np.unique(np.concatenate(pairs), axis=0).T
    read = units_read(flow, unit_of)
    whole = {unit: node.name for node, units in reversed(read.items()) for unit in units}
    selected = set(reader.tolist())
    for unit in np.unique(source).tolist():
        if unit in selected:
            pinned.setdefault(unit, "is selected by one of its readers and read whole by another")
        elif unit in whole:
            pinned.setdefault(unit, f"is read whole at {whole[unit]}")
        else:
            pinned.setdefault(unit, bound.get(unit, GOES_UNREAD))
    free = np.array([pinned[unit] == GOES_UNREAD for unit in source.tolist()], dtype=bool)
    going = np.unique(source[free])
    return Streams(source[free], reader[free], tuple(units for units in covers if np.isin(units, going).all()))


def _pairs(unit_of: IntArray, shared: IntArray, mine: IntArray) -> IntArray:
    """[pairs, 2]: the units of a source's channels, each with the reader's own; not those that are one unit."""
    given = (shared != FIXED) & (mine != FIXED)
    pairs = np.stack([unit_of[shared[given]], unit_of[mine[given]]], 1)
    told = (pairs != NO_UNIT).all(1) & (pairs[:, 0] != pairs[:, 1])
    return np.asarray(pairs[told])


def _units(unit_of: IntArray, *arrays: IntArray) -> Units:
    """The units of labels."""
    flat = np.concatenate([a.ravel() for a in arrays] or [np.zeros(0, dtype=np.int64)])
    units = unit_of[flat[flat != FIXED]]
    return frozenset(np.unique(units[units != NO_UNIT]).tolist())
