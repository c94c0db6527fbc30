"""Operations that only move data: they are executed on the labels.

A compressed field is a small array, so that the real operation (or the same in numpy) is run on it: channel shuffle,
flatten before a classifier, space-to-depth and window partition come out right with no line of code for them. How
literal sizes follow the labels is told in `rewriting.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, is_tensor, op_name, rank_of, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.broadcast import combine, operand, whole
from prunec.compiler.labels.fields import reshape_labels
from prunec.compiler.labels.flow import FIXED, Flow, Gather, Labelled
from prunec.compiler.labels.propagate import dims_of, subject, unknown, without_labels
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import on_module, on_op
from prunec.compiler.ops.expand import copies
from prunec.compiler.ops.shuffle import gathered


def writable(labels: IntArray) -> torch.Tensor:
    """The labels as a tensor; torch takes no read-only memory."""
    return torch.from_numpy(np.require(labels, requirements=["C", "W"]))


def executed(labels: IntArray, shape: Sequence[int], op: Callable[[torch.Tensor], torch.Tensor]) -> IntArray:
    """A field after the operation was executed on it."""
    return op(writable(labels).expand(*shape)).numpy()


def constants(flow: Flow, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments behind the operand, as the numbers that they are."""
    rest = fx.node.map_arg(node.args[1:], flow.constant)
    named = {key: value for key, value in node.kwargs.items() if key != "input"}
    return rest, fx.node.map_arg(named, flow.constant)


# -- the same elements in another shape ----------------------------------------------------------------------------


@on_op("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", moves=True)
@on_module(nn.Flatten, nn.Unflatten, moves=True)
def reshape(flow: Flow, node: fx.Node) -> Labelled:
    """Row-major order stays, so the shapes say all."""
    value = subject(flow, node)
    old, new = shape_of_argument(value), shape_of_argument(node)
    if elements(old) != elements(new) or not elements(old):
        return unknown(flow, node)  # a view as another type
    if gathered(flow, node, value):
        return flow.values[node]
    return flow.moved((reshape_labels(f, old, new) for f in flow.fields(value)), node)


@on_op("view_as", "reshape_as", moves=True)
def reshape_as(flow: Flow, node: fx.Node) -> Labelled:
    """Reshaped, and as wide as the second operand whatever is removed."""
    value, other = argument(node, 0, "input"), argument(node, 1, "other")
    old, new = shape_of_argument(value), shape_of_argument(node)
    moved = flow.moved((reshape_labels(f, old, new) for f in flow.fields(value)), node)
    return combine(flow, node, ((moved, new), operand(flow, other)))


@on_op(
    "permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "flip", "adjoint", "rot90", moves=True
)
def permute(flow: Flow, node: fx.Node) -> Labelled:
    """Dimensions change places; a compressed field needs no expanding for that."""
    value, (rest, kwargs), name = subject(flow, node), constants(flow, node), op_name(node)
    arrays = (writable(f) for f in flow.fields(value))
    return flow.moved((getattr(array, name)(*rest, **kwargs).numpy() for array in arrays), node)


@on_op("expand", "broadcast_to", moves=True)
def expansion(flow: Flow, node: fx.Node) -> Labelled:
    """New or longer dimensions, along which nothing varies; copies go with what they meet."""
    rank, value = rank_of(node), subject(flow, node)
    sizes = argument(node, 1, "size") if len(node.args) < 3 else node.args[1:]
    fields = flow.moved((f.reshape((1,) * (rank - f.ndim) + f.shape) for f in flow.fields(value)), node)
    return fields + copies(flow, node, value, sizes, np.repeat)


@on_op("expand_as", moves=True)
def expansion_as(flow: Flow, node: fx.Node) -> Labelled:
    """As wide as the second operand, so what varies there varies here."""
    return combine(flow, node, (operand(flow, argument(node, 0, "input")), operand(flow, argument(node, 1, "other"))))


@on_op("repeat", "tile", "repeat_interleave", moves=True)
def repeated(flow: Flow, node: fx.Node) -> Labelled:
    """Every position several times; as often as a literal says, or as a number that doesn't change."""
    value, (rest, kwargs) = subject(flow, node), constants(flow, node)
    if any(isinstance(a, fx.Node) and is_tensor(a) for a in (*node.args[1:], *node.kwargs.values())):
        return unknown(flow, node)
    shape, op = shape_of_argument(value), getattr(torch.Tensor, op_name(node))
    fields = flow.moved((executed(f, shape, lambda t: op(t, *rest, **kwargs)) for f in flow.fields(value)), node)
    if op_name(node) != "repeat_interleave":
        counts = argument(node, 1, "repeats", argument(node, 1, "dims")) if len(node.args) < 3 else node.args[1:]
        return fields + copies(flow, node, value, counts, np.repeat)
    dim = argument(node, 2, "dim")
    counts = [1] * rank_of(node)
    if dim is not None:
        counts[int(flow.constant(dim))] = argument(node, 1, "repeats")
    return fields + copies(flow, node, value, counts if dim is not None else (), np.tile)


@on_module(nn.ChannelShuffle, moves=True)
@on_op("channel_shuffle", moves=True)
def channel_shuffle(flow: Flow, node: fx.Node) -> Labelled:
    """The same position of every group goes, so that groups stay equally wide; or what a plan asks for."""
    value = subject(flow, node)
    module = flow.program.state[str(node.target)] if node.op == "call_module" else None
    groups = module.groups if isinstance(module, nn.ChannelShuffle) else flow.constant(argument(node, 1, "groups"))
    labels, rest = flow.along(value, 1, node)
    rows = labels.reshape(groups, -1)
    names = [str(node.target)] if module is not None else []
    choice = flow.divide("grouped", node.name, f"{groups} groups of {rows.shape[1]}", names, fallback="same")
    if choice == "equal":
        flow.balance(rows, node)
    elif choice != "free":
        flow.unify(rows, rows[:, :1] if choice == "whole" else rows[:1], node)
    order = np.arange(labels.size, dtype=np.int64).reshape(groups, -1).T.reshape(-1)
    flow.gathers[node] = Gather(value, 1, order, blocks=(rows,))
    return (*rest, *flow.result(np.ascontiguousarray(rows.T).reshape(-1).copy(), rank_of(node), 1))


@on_op("roll", moves=True)
def roll(flow: Flow, node: fx.Node) -> Labelled:
    """What is kept rolls as well, by as much as is kept of what comes round (`rewriting.shifts`)."""
    value, (rest, kwargs) = subject(flow, node), constants(flow, node)
    dims = argument(node, 2, "dims")
    if dims is None or dims == ():  # the whole value as one line
        return mixed(flow, node, value, range(rank_of(node)), "is rolled")
    shape = shape_of_argument(value)
    return flow.moved((executed(f, shape, lambda t: t.roll(*rest, **kwargs)) for f in flow.fields(value)), node)


@on_op("view_as_complex", moves=True)
def as_complex(flow: Flow, node: fx.Node) -> Labelled:
    """The last dimension holds the two parts of a number, which go together."""
    value = subject(flow, node)
    return flow.moved((whole(flow, f, f.ndim - 1, node)[..., 0] for f in flow.fields(value)), node)


@on_op("view_as_real", moves=True)
def as_real(flow: Flow, node: fx.Node) -> Labelled:
    """Both parts of a number go with it."""
    return tuple(f[..., None] for f in flow.fields(subject(flow, node)))


# -- joining -------------------------------------------------------------------------------------------------------


@on_op("cat", "concat", "concatenate", moves=True)
def concatenate(flow: Flow, node: fx.Node) -> Labelled:
    """End to end along one dimension; along the others the operands must agree."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):
        return unknown(flow, node)
    parts = [part for part in parts if shape_of_argument(part) != (0,)]  # a list that starts with torch.tensor([])
    if any(len(shape_of_argument(part)) != rank_of(node) for part in parts):
        return unknown(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim", 0), rank_of(node))
    return _concatenated(flow, node, parts, dim)


def _concatenated(flow: Flow, node: fx.Node, parts: Sequence[fx.Node], dim: int) -> Labelled:
    parts = [p for p in parts if shape_of_argument(p)[dim] or flow.fields(p)]  # an empty piece holds no channels
    across = [([f for f in flow.fields(p) if f.shape[dim] == 1]) for p in parts]
    shapes = [shape_of_argument(p) for p in parts]
    fields = combine(
        flow, node, [(tuple(f), (*s[:dim], 1, *s[dim + 1 :])) for f, s in zip(across, shapes, strict=True)]
    )
    along = _joined(flow, node, parts, dim)
    return fields if along is None else flow.separate((*fields, along), node)


def _joined(flow: Flow, node: fx.Node, parts: Sequence[fx.Node], dim: int) -> IntArray | None:
    mine = [[f for f in flow.fields(p) if f.shape[dim] > 1] for p in parts]
    if not any(mine):
        return None
    if all(len(fs) == 0 or (len(fs) == 1 and fs[0].size == fs[0].shape[dim]) for fs in mine):
        columns = [
            flow.flat(fs[0]) if fs else np.full(shape_of_argument(p)[dim], FIXED)
            for fs, p in zip(mine, parts, strict=True)
        ]
        return flow.result(np.concatenate(columns), rank_of(node), dim)[0]
    flat = [flow.along(p, dim, node)[0] for p in parts]
    return next(iter(flow.result(np.concatenate(flat), rank_of(node), dim)), None)


@on_op("hstack", "vstack", "dstack", "row_stack", moves=True)
def stacked_along(flow: Flow, node: fx.Node) -> Labelled:
    """A concatenation along a dimension that the name says, where the operands have it."""
    parts, dim = argument(node, 0, "tensors"), {"hstack": 1, "dstack": 2}.get(op_name(node), 0)
    if isinstance(parts, fx.Node) or any(len(shape_of_argument(part)) < max(dim + 1, 2) for part in parts):
        return unknown(flow, node)
    return _concatenated(flow, node, parts, dim)


@on_op("stack", moves=True)
def stack(flow: Flow, node: fx.Node) -> Labelled:
    """A new dimension: along the old ones the operands must agree."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):
        return unknown(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim", 0), rank_of(node))
    fields = combine(flow, node, [operand(flow, p) for p in parts])
    return tuple(np.expand_dims(f, dim) for f in fields)


@on_op("pad", moves=True)
def pad(flow: Flow, node: fx.Node) -> Labelled:
    """Constant padding of channels adds positions of its own, that go with what they meet; a crop takes some off."""
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
    """The labels with so many new ones before and behind them, or, where a number is negative, fewer."""
    before, after = rims
    inside = labels[max(-before, 0) : labels.size - max(-after, 0)]
    if inside.size < labels.size:
        flow.covers.append(inside)
    return np.concatenate([flow.own(max(before, 0)), inside, flow.own(max(after, 0))])


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
    """One piece a position of a dimension, which is gone; so none of its positions can go alone."""
    value = subject(flow, node)
    [dim] = dims_of(flow, argument(node, 1, "dim", 0), len(shape_of_argument(value)))
    fields = [whole(flow, f, dim, node) if f.shape[dim] > 1 else f for f in flow.fields(value)]
    piece = flow.moved((np.squeeze(f, axis=dim) for f in fields), node)
    return [piece for _ in node.meta["val"]]


@on_op("getattr", moves=True)
def attribute(flow: Flow, node: fx.Node) -> Labelled:
    """`x.shape` and the like are plain; `x.T` moves data."""
    value, name = node.args[0], node.args[1]
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return without_labels(flow, node)
    source = flow.values.get(value) if isinstance(value, fx.Node) else None
    if isinstance(source, list):
        fields = getattr(type(node.args[0].meta["val"]), "_fields", ())  # type: ignore[union-attr]
        return source[fields.index(name)] if name in fields else unknown(flow, node)
    if name in ("T", "mT", "H", "mH"):
        arrays = (writable(f) for f in flow.fields(value))
        return flow.moved((getattr(array, str(name)).numpy() for array in arrays), node)
    if name in ("data", "real", "imag"):
        return flow.fields(value)
    return unknown(flow, node)


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
