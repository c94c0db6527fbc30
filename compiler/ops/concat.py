"""Operations that put tensors together along a dimension, and those that take them apart or lengthen them.

torch.cat([a, image, b], 1)       labels of a, FIXED for the image's channels, labels of b
torch.stack([a, b], 1)            a and b unify, position by position
x.split([16, 16], 1)              each piece carries its labels, and must keep one
F.pad(x, (0, 0, 0, 0, 8, 8))      new labels before and behind, which go with what they meet
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, known, op_name, put, rank_of, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.broadcast import combine, operand, whole
from prunec.compiler.labels.flow import FIXED, Fields, Flow, Labelled
from prunec.compiler.labels.heads import shared
from prunec.compiler.labels.propagate import dims_of, subject, unknown
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import Slim, on_module, on_op, rewriter

# -- joining and padding -------------------------------------------------------------------------------------------


@on_op("cat", "concat", "concatenate", moves=True)
def concatenate(flow: Flow, node: fx.Node) -> Labelled:
    """End to end along one dimension; along the others the operands unify."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):
        return unknown(flow, node)
    parts = [part for part in parts if shape_of_argument(part) != (0,)]  # a list that starts with torch.tensor([])
    if any(len(shape_of_argument(part)) != rank_of(node) for part in parts):
        return unknown(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim", 0), rank_of(node))
    return _concatenated(flow, node, parts, dim)


def _concatenated(flow: Flow, node: fx.Node, parts: Sequence[fx.Node], dim: int) -> Labelled:
    """The fields of a concatenation: those across `dim`, unified, and one along it."""
    parts = [p for p in parts if shape_of_argument(p)[dim] or flow.fields(p)]  # an empty piece holds no channels
    carried = [flow.fields(p) for p in parts]
    if len({any(f.size > f.shape[dim] > 1 for f in fields) for fields in carried}) == 2:
        carried = [shared(flow, node, p, dim) for p in parts]  # beside heads, a part that all of them share
    shapes = [shape_of_argument(p) for p in parts]
    across = [tuple(f for f in fields if f.shape[dim] == 1) for fields in carried]
    fields = combine(flow, node, [(f, (*s[:dim], 1, *s[dim + 1 :])) for f, s in zip(across, shapes, strict=True)])
    along = _joined(flow, node, list(zip(carried, shapes, strict=True)), dim)
    return fields if along is None else flow.separate((*fields, along), node)


def _joined(flow: Flow, node: fx.Node, parts: Sequence[tuple[Fields, tuple[int, ...]]], dim: int) -> IntArray | None:
    """The operands' labels along `dim`, one behind the other, as a field; None where no operand has any. `parts` are
    (fields, shape) pairs."""
    mine = [[f for f in fields if f.shape[dim] > 1] for fields, _ in parts]
    if not any(mine):
        return None
    if all(len(fs) == 0 or (len(fs) == 1 and fs[0].size == fs[0].shape[dim]) for fs in mine):
        columns = [
            flow.flat(fs[0]) if fs else np.full(shape[dim], FIXED) for fs, (_, shape) in zip(mine, parts, strict=True)
        ]
        return flow.result(np.concatenate(columns), rank_of(node), dim)[0]
    sizes = {tuple(s for d, s in enumerate(f.shape) if d != dim) for fs in mine for f in fs}
    if all(len(fs) == 1 for fs in mine) and len(sizes) == 1:  # such as halves of the width of every head
        return next(iter(flow.moved((np.concatenate([fs[0] for fs in mine], dim),), node)), None)
    flat = [flow.along_of(fields, shape, dim, node)[0] for fields, shape in parts]
    return next(iter(flow.result(np.concatenate(flat), rank_of(node), dim)), None)


@on_op("hstack", "vstack", "dstack", "row_stack", moves=True)
def stacked_along(flow: Flow, node: fx.Node) -> Labelled:
    """A concatenation along the dimension that the function's name implies, if all operands have it."""
    parts, dim = argument(node, 0, "tensors"), {"hstack": 1, "dstack": 2}.get(op_name(node), 0)
    if isinstance(parts, fx.Node) or any(len(shape_of_argument(part)) < max(dim + 1, 2) for part in parts):
        return unknown(flow, node)
    return _concatenated(flow, node, parts, dim)


@on_op("stack", moves=True)
def stack(flow: Flow, node: fx.Node) -> Labelled:
    """A new dimension: along the old ones the operands unify."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):
        return unknown(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim", 0), rank_of(node))
    fields = combine(flow, node, [operand(flow, p) for p in parts])
    return tuple(np.expand_dims(f, dim) for f in fields)


@on_op("pad", moves=True)
def pad(flow: Flow, node: fx.Node) -> Labelled:
    """Constant padding of a labelled dimension adds new labels, which go with what they meet; a negative one crops."""
    value, amounts = subject(flow, node), [flow.constant(a) for a in flow.constant(argument(node, 1, "pad"))]
    rank = rank_of(node)
    padded = [rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount]
    if argument(node, 2, "mode", "constant") != "constant":
        return mixed(flow, node, value, padded, "is padded")
    out: list[IntArray] = []
    for labels in flow.fields(value):
        dims = [d for d in set(padded) if labels.shape[d] > 1]
        if not dims:
            out.append(labels)
        elif len(dims) > 1 or labels.size != labels.shape[dims[0]]:
            flow.pin(labels, f"is padded at {node.name}")
        else:
            columns = _rimmed(flow, flow.flat(labels), amounts[2 * (rank - 1 - dims[0]) :][:2])
            out += flow.result(columns, rank, dims[0])
    return tuple(out)


def _rimmed(flow: Flow, labels: IntArray, rims: Sequence[int]) -> IntArray:
    """The labels with so many `own` ones before and behind them; where a number is negative, fewer of them."""
    before, after = rims
    inside = labels[max(-before, 0) : labels.size - max(-after, 0)]
    if inside.size < labels.size:
        flow.covers.append(inside)
    return np.concatenate([flow.own(max(before, 0)), inside, flow.own(max(after, 0))])


def padded(flow: Flow, node: fx.Node) -> Labelled:
    """A padding module: single labels along a dimension that it pads, or crops, can't be removed."""
    amounts = getattr(flow.program.state[str(node.target)], "padding", ())
    dims = {-1 - place // 2 for place, amount in enumerate(amounts) if amount}
    return mixed(flow, node, subject(flow, node), dims, "is padded")


for _pad in ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"):
    on_module(*(getattr(nn, f"{_pad}{rank}d") for rank in (1, 2, 3)), carries_copies=True)(padded)


# -- taking apart --------------------------------------------------------------------------------------------------


@on_op("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", moves=True)
def split(flow: Flow, node: fx.Node) -> Labelled:
    """Consecutive pieces of one dimension; each must keep a position."""
    value = subject(flow, node)
    [dim] = dims_of(flow, argument(node, 2, "dim", 0), len(shape_of_argument(value)))
    lengths = [part.shape[dim] for part in node.meta["val"]]
    starts = np.cumsum([0, *lengths])
    pieces: list[Labelled] = []
    for start, length in zip(starts[:-1], lengths, strict=True):
        fields: list[IntArray] = []
        for labels in flow.fields(value):
            if labels.shape[dim] == 1:
                fields.append(labels)
                continue
            if not length:
                continue
            piece = labels[(slice(None),) * dim + (slice(start, start + length),)]
            flow.covers.append(piece)
            fields += flow.moved((piece,), node)
        pieces.append(tuple(fields))
    return pieces


@on_op("unbind", moves=True)
def unbind(flow: Flow, node: fx.Node) -> Labelled:
    """A piece for each position of a dimension that is gone. All carry the same labels: no single position can go."""
    value = subject(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim", 0), len(shape_of_argument(value)))
    fields = [whole(flow, f, dim, node) if f.shape[dim] > 1 else f for f in flow.fields(value)]
    piece = flow.moved((np.squeeze(f, axis=dim) for f in fields), node)
    return [piece for _ in node.meta["val"]]


@on_op("narrow", "select", moves=True)
def narrow(flow: Flow, node: fx.Node) -> Labelled:
    """A piece of one dimension by start and length, or one position of it."""
    value = subject(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim"), len(shape_of_argument(value)))
    start = flow.constant(argument(node, 2, "start" if op_name(node) == "narrow" else "index"))
    length = flow.constant(argument(node, 3, "length", 1))
    if start is None or length is None:
        return unknown(flow, node)
    fields: list[IntArray] = []
    for labels in flow.fields(value):
        piece = labels
        if labels.shape[dim] > 1:
            piece = np.take(labels, range(start, start + length), axis=dim)
            flow.covers.append(piece)
        piece = piece if op_name(node) == "narrow" else np.take(piece, 0, axis=dim)
        fields += flow.moved((piece,), node)
    return tuple(fields)


# -- literal sizes -------------------------------------------------------------------------------------------------


@rewriter("pad")
def pad_amounts(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """On each side, as many positions as are kept of those that were padded, or fewer where it crops."""
    given, amounts = known(argument(old, 1, "pad")), list(argument(new, 1, "pad"))
    rank, before = rank_of(old), shape_of_argument(argument(old, 0, "input"))
    for dim in range(rank):
        kept, inner = slim.kept(old, dim), slim.kept(argument(old, 0, "input"), dim)
        index = 2 * (rank - 1 - dim)
        if (kept.all() and inner.all()) or index + 1 >= len(amounts):
            continue
        rims = [int(known(amount)) for amount in given[index : index + 2]]
        amounts[index] = int(kept[: rims[0]].sum()) if rims[0] >= 0 else -int(inner[: -rims[0]].sum())
        last = int(kept[max(rims[0], 0) + before[dim] + min(rims[0], 0) :].sum())
        amounts[index + 1] = last if rims[1] >= 0 else -int(inner[before[dim] + rims[1] :].sum())
    put(new, 1, "pad", tuple(amounts))


@rewriter("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split")
def split_sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The pieces' lengths as literals, since they needn't be equally long any more."""
    value = argument(old, 0, "input")
    dim = int(known(argument(old, 2, "dim", 0))) % len(shape_of_argument(value))
    kept = slim.kept(value, dim)
    if kept.all():
        return
    ends = np.cumsum([part.shape[dim] for part in old.meta["val"]])
    lengths = [int(part.sum()) for part in np.split(kept, ends[:-1])]
    new.op, new.target = ("call_function", torch.split)
    new.args, new.kwargs = (argument(new, 0, "input"), lengths, dim), {}


@rewriter("narrow", "select")
def narrow_bounds(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Start and length, counted in kept positions."""
    value, dim = argument(old, 0, "input"), int(known(argument(old, 1, "dim")))
    kept = slim.kept(value, dim % len(shape_of_argument(value)))
    if kept.all():
        return
    whole = op_name(old) == "narrow"
    start = int(known(argument(old, 2, "start" if whole else "index"))) % kept.size
    put(new, 2, "start" if whole else "index", int(kept[:start].sum()))
    if whole:
        length = int(known(argument(old, 3, "length")))
        put(new, 3, "length", int(kept[start : start + length].sum()))
