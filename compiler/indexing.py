"""What an index takes of a value: elements of a tuple, slices, positions that a tensor holds, and assignments.

x[..., 0::2, :]        the slice is taken of the labels
table[index]           [P, heads] by positions [T, T]: rows are picked from, so that they stay; heads pass
x[:, 0] = y            what is written over goes with what it becomes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from prunec.compiler.combining import combine
from prunec.compiler.ir import IntArray
from prunec.compiler.labels import Fields, Flow, Labelled, compress, shape_of_argument
from prunec.compiler.movement import executed, writable
from prunec.compiler.reductions import mixed
from prunec.compiler.rewriting import index_dims, is_tensor
from prunec.compiler.rules import (
    argument,
    dims_of,
    on_op,
    operand,
    rank_of,
    subject,
    unknown,
    without_labels,
)


@on_op("getitem", "__getitem__")
def getitem(flow: Flow, node: fx.Node) -> Labelled:
    """An element of a tuple, or slices of a tensor."""
    value, index = node.args
    source = flow.values.get(value) if isinstance(value, fx.Node) else None
    if isinstance(source, list):
        return source[index] if isinstance(index, int | slice) else unknown(flow, node)
    if source is None:
        return without_labels(flow, node)
    entries = index if isinstance(index, tuple) else (index,)
    fields = _picked(flow, value, entries, node)
    return unknown(flow, node) if fields is None else fields


def _picked(flow: Flow, value: object, entries: Sequence[object], node: fx.Node) -> Fields | None:
    """The fields of `value[entries]`; None where the index isn't one that can follow."""
    if any(isinstance(entry, bool) for entry in entries):
        return None
    if any(is_tensor(entry) or isinstance(entry, list) for entry in entries):
        return _indexed_by_tensors(flow, value, entries, node)
    known = tuple(_constant_index(flow, entry) for entry in entries)
    rank = len(shape_of_argument(value))
    if sum(_strides(known[place], dim, flow.fields(value)) for place, dim in index_dims(known, rank)) > 1:
        return None  # what is kept of them can't be said in one index
    fields: list[IntArray] = []
    for labels in flow.fields(value):
        piece = compress(executed(labels, shape_of_argument(value), lambda t: t[known]))
        if _sliced_dims(known, labels):
            flow.covers.append(piece)
        fields += flow.moved((piece,), node)
    return flow.separate(fields, node)


def _strides(entry: object, dim: int, fields: Fields) -> bool:
    return isinstance(entry, slice) and entry.step not in (None, 1) and any(f.shape[dim] > 1 for f in fields)


def _indexed_by_tensors(flow: Flow, value: object, entries: Sequence[Any], node: fx.Node) -> Fields | None:
    """Tensors of positions along dimensions without labels (a table of biases by distance): the others pass.

    Along the dimensions that are picked from a field is of size 1, so that position 0 stands for all.
    """
    for entry in entries:
        if isinstance(entry, fx.Node) and entry.meta["val"].dtype in (torch.bool, torch.uint8):
            return None
        flow.pin_all(flow.fields(entry), f"is an index at {node.name}")
    places = index_dims(entries, len(shape_of_argument(value)))
    picked = [dim for place, dim in places if is_tensor(entries[place]) or isinstance(entries[place], list)]
    fields: list[IntArray] = []
    for labels in mixed(flow, node, value, picked, "is picked from"):
        small = list(entries)
        for place, dim in places:
            small[place] = _first_or_known(flow, entries[place], labels.shape[dim] > 1)
        if any(_strides(small[place], dim, (labels,)) for place, dim in places):
            return None
        piece = compress(writable(labels)[tuple(small)].numpy())
        if _sliced_dims(small, labels):
            flow.covers.append(piece)
        fields += flow.moved((piece,), node)
    return flow.separate(fields, node)


def _first_or_known(flow: Flow, entry: Any, varies: bool) -> Any:
    """An entry of an index for labels that don't vary along its dimension, or do."""
    if is_tensor(entry) or isinstance(entry, list):
        return torch.zeros((1,) * max(len(shape_of_argument(entry)), isinstance(entry, list)), dtype=torch.int64)
    if varies or entry is None or entry is Ellipsis:
        return _constant_index(flow, entry)
    return slice(None) if isinstance(entry, slice) else 0


@on_op("index_select")
def index_select(flow: Flow, node: fx.Node) -> Labelled:
    """Positions of one dimension without labels; the other dimensions pass."""
    value = subject(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim"), len(shape_of_argument(value)))
    return mixed(flow, node, value, [dim], "is picked from")


@on_op("embedding")
def functional_embedding(flow: Flow, node: fx.Node) -> Labelled:
    """Rows of a table that is a value of the graph: the width passes."""
    index, table = argument(node, 0, "input"), argument(node, 1, "weight")
    flow.pin_all(flow.fields(index), f"is looked up at {node.name}")
    if argument(node, 3, "max_norm") is not None:
        return unknown(flow, node)
    labels, rest = flow.along(table, 1, node)
    flow.pin_all(rest, f"is picked from at {node.name}")
    return flow.result(labels, rank_of(node), -1)


@on_op("setitem", "__setitem__")
def assigned(flow: Flow, node: fx.Node) -> Labelled:
    """`target[index] = value`: what is written over goes with what it becomes."""
    target, index, value = node.args
    entries = index if isinstance(index, tuple) else (index,)
    fields = _picked(flow, target, entries, node)
    if fields is None or not isinstance(target, fx.Node):
        return unknown(flow, node)
    blank = target.meta["val"].new_empty(()).expand(target.meta["val"].shape)
    shape = tuple(blank[fx.node.map_arg(index, known_value)].shape)
    combine(flow, node, ((fields, shape), operand(flow, value)))
    return None


def known_value(node: fx.Node) -> Any:
    """What a node gives: a number, or a tensor on the meta device."""
    return node.meta["val"]


def _constant_index(flow: Flow, entry: object) -> Any:
    if isinstance(entry, slice):
        return slice(*(flow.constant(part) for part in (entry.start, entry.stop, entry.step)))
    return flow.constant(entry)


def _sliced_dims(entries: Sequence[Any], labels: IntArray) -> bool:
    return any(labels.shape[d] > 1 and entries[i] != slice(None) for i, d in index_dims(entries, labels.ndim))
