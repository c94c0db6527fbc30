"""What an index takes of a value: elements of a tuple, slices, positions that a tensor or a list holds.

    x[..., 0::2, :]        the slice is taken of the labels, too
    x[:, [2, 0, 1]]        so are positions that are known
    x[:, self.mask]        and those that a known mask chooses; the mask loses what x loses
    table[index]           [P, heads] by unknown positions [T, T]: the P rows are pinned, heads pass

Once positions are removed, a slice takes those that are left of its own (`slices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.ops import argument, index_dims, is_tensor, known, known_places, op_name, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.ir.sizes import comes_again
from prunec.compiler.labels.broadcast import whole
from prunec.compiler.labels.execute import executed, writable
from prunec.compiler.labels.fields import compress
from prunec.compiler.labels.flow import Fields, Flow, Gather, Labelled
from prunec.compiler.labels.propagate import dims_of, subject, unknown, without_labels
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import Slim, on_op, rewriter
from prunec.compiler.ops.expand import reads_labels


@on_op("getitem", "__getitem__", moves=True)
def getitem(flow: Flow, node: fx.Node) -> Labelled:
    """An element of a tuple, or slices of a tensor."""
    value, index = node.args
    source = flow.values.get(value) if isinstance(value, fx.Node) else None
    if isinstance(source, list):
        return source[index] if isinstance(index, int | slice) else unknown(flow, node)
    if source is None:
        return without_labels(flow, node)
    entries = index if isinstance(index, tuple) else (index,)
    fields = taken(flow, value, entries, node)
    return unknown(flow, node) if fields is None else fields


def taken(flow: Flow, value: object, entries: Sequence[object], node: fx.Node) -> Fields | None:
    """The fields of `value[entries]`; None where labels can't follow such an index."""
    if any(isinstance(entry, bool) for entry in entries):
        return None
    if any(map(_is_picking, entries)):
        return _indexed_by_tensors(flow, value, entries, node)
    known = tuple(_constant_index(flow, entry) for entry in entries)
    rank = len(shape_of_argument(value))
    places = index_dims(known, rank)
    stepped = [dim for place, dim in places if _strides(known[place], dim, flow.fields(value))]
    if len(stepped) == 1 and all(isinstance(known[place], slice) for place, _ in places):
        stepped = []  # what is kept can be said in one index
    _keep_samples(flow, value, [known[place] for place, dim in places if dim == 0], node)
    held = [f for f in flow.fields(value) if any(f.shape[dim] > 1 for dim in stepped)]
    flow.pin_all(held, f"is taken in steps at {node.name}, beside other indices")
    fields: list[IntArray] = []
    for labels in (f for f in flow.fields(value) if all(f.shape[dim] == 1 for dim in stepped)):
        piece = compress(executed(labels, shape_of_argument(value), lambda t: t[known]))
        if not piece.size:
            continue  # an empty piece holds no channels
        if _sliced_dims(known, labels):
            flow.covers.append(piece)
        _keep_the_rest(flow, entries, labels, piece, node)
        fields += flow.moved((piece,), node)
    return flow.separate(fields, node)


def _keep_samples(flow: Flow, value: object, entries: Sequence[object], node: fx.Node) -> None:
    """Pin channels that are folded into the batch where a slice takes other places of them in a larger batch: in steps,
    or counted from the end or up to it."""
    for entry in (entry for entry in entries if isinstance(entry, slice) and entry != slice(None)):
        counted = [place for place in (entry.start or 0, entry.stop) if not isinstance(place, int) or place < 0]
        if counted or entry.step not in (None, 1):
            for labels in (f for f in flow.fields(value) if f.shape[0] > 1 and comes_again(f, 0)):
                if labels.size == labels.shape[0]:
                    flow.pin(labels, f"lies beside samples, of which {node.name} takes some")
                else:
                    whole(flow, labels, 0, node)


def _keep_the_rest(flow: Flow, entries: Sequence[Any], labels: IntArray, piece: IntArray, node: fx.Node) -> None:
    """Pin what a slice leaves out (rows of a table of positions) where its bounds are read off the input: another input
    may want it."""
    for place, dim in index_dims(entries, labels.ndim):
        entry = entries[place]
        bounds = [x for x in (entry.start, entry.stop) if isinstance(x, fx.Node)] if isinstance(entry, slice) else []
        if labels.shape[dim] > 1 and bounds and not any(reads_labels(flow, bound, None) for bound in bounds):
            flow.pin(np.setdiff1d(labels, piece), f"is left out at {node.name} for this size of the input alone")


def _strides(entry: object, dim: int, fields: Fields) -> bool:
    """Whether an entry is a slice with a step along a dimension with labels."""
    return isinstance(entry, slice) and entry.step not in (None, 1) and any(f.shape[dim] > 1 for f in fields)


def _indexed_by_tensors(flow: Flow, value: object, entries: Sequence[Any], node: fx.Node) -> Fields | None:
    """The fields of a value at positions in tensors or lists; None where labels can't follow.

    Along one labelled dimension the positions must be known. Else labels along the dimensions picked from are pinned,
    and others pass (a table of biases by distance: its heads): there a field is of size 1, so that position 0 stands
    for all.
    """
    masks = [known_places(flow.constant(entry)) for entry in entries if _is_mask(entry)]
    if any(places is None for places in masks):
        return None
    places = index_dims(entries, len(shape_of_argument(value)))
    picked = [dim for place, dim in places if _is_picking(entries[place])]
    for place, dim in places:
        for labels in flow.fields(entries[place]):
            if _is_mask(entries[place]):
                flow.unify(flow.flat(labels), flow.along(value, dim, node)[0], node)
            else:
                flow.pin(labels, f"is an index at {node.name}")
    rest = [entry for entry in entries if not _is_picking(entry)]
    if len(picked) == 1 and all(entry is Ellipsis or entry == slice(None) for entry in rest):
        known = _at_places(flow, value, picked[0], next(filter(_is_picking, entries)), node)
        if known is not None:
            return known
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


def _is_picking(entry: object) -> bool:
    return is_tensor(entry) or isinstance(entry, list)


def _is_mask(entry: object) -> bool:
    """Whether an index's entry is a tensor of truth values."""
    return isinstance(entry, fx.Node) and is_tensor(entry) and entry.meta["val"].dtype in (torch.bool, torch.uint8)


def _at_places(flow: Flow, value: object, dim: int, index: object, node: fx.Node) -> Fields | None:
    """The fields of a value at known positions of one labelled dimension, given by a list or a constant vector.

    None where they aren't known, the dimension has no labels, or they look up rows of a table several times.
    """
    places = known_places(flow.constant(index))
    if places is None or all(labels.shape[dim] == 1 for labels in flow.fields(value)):
        return None
    given = shape_of_argument(node)
    if given and given[dim] != len(places):
        return None  # a mask of a program that was read from text, which holds no values
    if isinstance(value, fx.Node) and value.op == "get_attr" and len(set(places)) < len(places):
        return None
    fields: list[IntArray] = []
    if op_name(node) == "index_select" and isinstance(value, fx.Node):
        flow.gathers[node] = Gather(value, dim, np.array(places, dtype=np.int64) % shape_of_argument(value)[dim])
    for labels in flow.fields(value):
        piece = np.take(labels, places, axis=dim) if labels.shape[dim] > 1 else labels
        if piece is not labels:
            flow.covers.append(piece)
        fields += flow.moved((piece,), node)
    return flow.separate(fields, node)


def _first_or_known(flow: Flow, entry: Any, varies: bool) -> Any:
    """An index's entry as a field sees it: itself where the field varies along its dimension, else position 0."""
    if _is_picking(entry):
        return torch.zeros((1,) * max(len(shape_of_argument(entry)), isinstance(entry, list)), dtype=torch.int64)
    if varies or entry is None or entry is Ellipsis:
        return _constant_index(flow, entry)
    return slice(None) if isinstance(entry, slice) else 0


@on_op("index_select", moves=True)
def index_select(flow: Flow, node: fx.Node) -> Labelled:
    """An index that is a vector, along one dimension."""
    value, index = argument(node, 0, "input"), argument(node, 2, "index")
    [dim] = dims_of(flow, argument(node, 1, "dim"), len(shape_of_argument(value)))
    fields = _at_places(flow, value, dim, index, node)
    return mixed(flow, node, subject(flow, node), [dim], "is picked from") if fields is None else fields


def _constant_index(flow: Flow, entry: object) -> Any:
    if isinstance(entry, slice):
        return slice(*(flow.constant(part) for part in (entry.start, entry.stop, entry.step)))
    return flow.constant(entry)


def _sliced_dims(entries: Sequence[Any], labels: IntArray) -> bool:
    return any(labels.shape[d] > 1 and entries[i] != slice(None) for i, d in index_dims(entries, labels.ndim))


@rewriter("getitem", "__getitem__", "setitem", "__setitem__")
def slices(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A slice of a labelled dimension takes (or sets) the positions that are left of those that it took."""
    value, index = old.args[:2]
    if not is_tensor(value):
        return
    entries = list(index) if isinstance(index, tuple) else [index]
    changed = list(new.args[1]) if isinstance(index, tuple) else [new.args[1]]  # type: ignore[arg-type]
    for place, dim in index_dims(entries, len(shape_of_argument(value))):
        kept = slim.kept(value, dim)
        if not kept.all():
            changed[place] = _slim_index(entries[place], changed[place], kept, slim)
    new.args = (new.args[0], tuple(changed) if isinstance(index, tuple) else changed[0], *new.args[2:])


def _slim_index(entry: Any, new: Any, kept: np.ndarray[Any, Any], slim: Slim) -> Any:
    """An index's entry for a dimension of which the positions `kept` are left; `new` is its node in the slim graph."""
    if _is_mask(entry) and np.array_equal(slim.kept(entry, 0), kept):
        return new  # a mask that has lost the same positions
    number = np.cumsum(kept) - 1
    places = known_places(slim.constant(entry)) if is_tensor(entry) or isinstance(entry, list) else None
    if places is None and not isinstance(entry, slice):
        return int(number[known(entry) % kept.size])
    index = places if places is not None else slice(*(known(p) for p in (entry.start, entry.stop, entry.step)))
    taken = np.arange(kept.size)[index]
    return _as_index(number[taken[kept[taken]]], int(kept.sum()))


def _as_index(places: np.ndarray[Any, Any], size: int) -> Any:
    """Places among `size` as a slice where they follow each other, else as a list."""
    if not places.size:
        return slice(0, 0)
    if places.size == 1 or bool((np.diff(places) == 1).all()):
        whole = places.size == size
        return slice(None) if whole else slice(int(places[0]), int(places[-1]) + 1)
    return [int(p) for p in places]
