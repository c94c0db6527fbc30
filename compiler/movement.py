"""Operations that only move data: they are executed on the labels, and their literal sizes follow the labels.

Each row has two columns. `flow` gives the labels of the result, by executing the operation on the labels of its operands.
`rewrite` adapts the node's literal arguments so that the slim operation on slim operands gives the slim result:

    x.view(-1, 64 * 4 * 4)     ->  x.view(-1, 48 * 4 * 4)
    x.chunk(2, 1)              ->  x.split([20, 28], 1)
    x[:, :32]                  ->  x[:, :20]
    F.pad(x, (0, 0, 0, 0, 8, 8)) -> F.pad(x, (0, 0, 0, 0, 5, 6))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir import IntArray
from prunec.compiler.labels import FIXED, Fields, Flow, Labelled, expand, reshape_labels, shape_of_argument
from prunec.compiler.rules import (
    argument,
    combine,
    mixed,
    on_module,
    on_op,
    op_name,
    operand,
    rank_of,
    unknown,
)


class Slim(Protocol):
    """What a rewriter asks about the slim program, by nodes of the old one."""

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The slim shape of a node's value."""

    def kept(self, value: object, dim: int) -> np.ndarray[Any, Any]:
        """Which positions of a value's dimension are kept: a boolean array of the old size."""

    def value(self, argument: object) -> Any:
        """What an argument (a literal, or a node that gives a number) is in the slim program."""


Rewrite = Callable[[fx.Node, fx.Node, Slim], None]
"""(old node, new node, slim): sets the new node's arguments. Runs only where the node's sizes change."""

REWRITES: dict[str, Rewrite] = {}
"""By `op_name`; an operation without an entry needs no rewriting."""


def rewriter(*names: str) -> Callable[[Rewrite], Rewrite]:
    """Register how the literals of these operations follow the labels."""

    def register(rewrite: Rewrite) -> Rewrite:
        for name in names:
            assert name not in REWRITES, f"{name} is rewritten already"
            REWRITES[name] = rewrite
        return rewrite

    return register


def execute(fields: Fields, shape: Sequence[int], op: Callable[[torch.Tensor], torch.Tensor]) -> list[IntArray]:
    """Each field after the operation was executed on it."""
    return [op(torch.from_numpy(np.require(f, requirements="CW")).expand(*shape)).numpy() for f in fields]


# -- the same elements in another shape ----------------------------------------------------------------------------


@on_op("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
@on_module(nn.Flatten, nn.Unflatten)
def reshape(flow: Flow, node: fx.Node) -> Labelled:
    """Row-major order stays, so the shapes say all."""
    value = argument(node, 0, "input")
    if not isinstance(node.meta.get("val"), torch.Tensor) or not shape_of_argument(value):
        return unknown(flow, node)
    old, new = shape_of_argument(value), shape_of_argument(node)
    return flow.moved((reshape_labels(f, old, new) for f in flow.fields(value)), node)


@rewriter("view", "reshape", "expand", "unflatten")
def sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Every size that isn't what the slim program needs becomes a literal; -1 and sizes that follow by themselves stay."""
    first = 2 if op_name(old) == "unflatten" else 1
    dim = argument(old, 1, "dim") % len(shape_of_argument(old.args[0])) if first == 2 else 0
    nested = len(old.args) > first and isinstance(old.args[first], tuple | list)
    given = list(old.args[first]) if nested else list(old.args[first:])  # type: ignore[arg-type]
    if not given:
        key = next(k for k in ("size", "shape", "sizes") if k in old.kwargs)
        given, nested = list(old.kwargs[key]), True  # type: ignore[arg-type]
        wanted = _sizes(old, given, given, dim, slim)
        new.kwargs = {**new.kwargs, key: tuple(wanted)}
        return
    current = new.args[first] if nested else new.args[first:]
    wanted = _sizes(old, given, list(current), dim, slim)  # type: ignore[call-overload]
    new.args = (*new.args[:first], tuple(wanted)) if nested else (*new.args[:first], *wanted)


def _sizes(old: fx.Node, given: list[Any], current: list[Any], dim: int, slim: Slim) -> list[Any]:
    target, before = slim.shape(old), shape_of_argument(old)
    wanted = []
    for index, (size, now) in enumerate(zip(given, current), start=dim):
        value = slim.value(size)
        settled = value == -1 or value == target[index] or (isinstance(size, fx.Node) and before[index] == target[index])
        wanted.append(now if settled else target[index])
    return wanted


@on_op("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "flip", "adjoint")
def permute(flow: Flow, node: fx.Node) -> Labelled:
    """Dimensions change places; a compressed field needs no expanding for that."""
    value = argument(node, 0, "input")
    rest, kwargs = node.args[1:], {k: v for k, v in node.kwargs.items() if k != "input"}
    name = op_name(node)
    return flow.moved(
        (getattr(torch.from_numpy(np.require(f, requirements="CW")), name)(*rest, **kwargs).numpy() for f in flow.fields(value)), node
    )


@on_op("expand", "expand_as", "broadcast_to")
def expansion(flow: Flow, node: fx.Node) -> Labelled:
    """New or longer dimensions, along which nothing varies."""
    rank = rank_of(node)
    return flow.moved(
        (f.reshape((1,) * (rank - f.ndim) + f.shape) for f in flow.fields(argument(node, 0, "input"))), node
    )


@on_op("repeat", "tile", "repeat_interleave", "pixel_shuffle", "pixel_unshuffle")
def executed(flow: Flow, node: fx.Node) -> Labelled:
    """One operand, moved around in ways that removing channels doesn't disturb."""
    value = argument(node, 0, "input")
    rest = [flow.constant(a) for a in fx.node.map_arg(node.args[1:], flow.constant)]
    kwargs = {k: flow.constant(v) for k, v in node.kwargs.items() if k != "input"}
    name, home = op_name(node), torch.nn.functional if hasattr(torch.nn.functional, op_name(node)) else torch.Tensor
    op = getattr(home, name)
    return flow.moved(execute(flow.fields(value), shape_of_argument(value), lambda t: op(t, *rest, **kwargs)), node)


@on_module(nn.PixelShuffle, nn.PixelUnshuffle)
def executed_module(flow: Flow, node: fx.Node) -> Labelled:
    """The module itself, on the labels."""
    value = argument(node, 0, "input")
    module = flow.program.state[str(node.target)]
    return flow.moved(execute(flow.fields(value), shape_of_argument(value), module), node)  # type: ignore[arg-type]


@on_module(nn.ChannelShuffle)
@on_op("channel_shuffle")
def channel_shuffle(flow: Flow, node: fx.Node) -> Labelled:
    """The same position of every group goes, so that groups stay equally wide."""
    value = argument(node, 0, "input")
    module = flow.program.state[str(node.target)] if node.op == "call_module" else None
    groups = module.groups if isinstance(module, nn.ChannelShuffle) else argument(node, 1, "groups")
    labels, rest = flow.along(value, 1, node)
    rows = labels.reshape(groups, -1)
    flow.unify(rows, rows[:1], node)
    return (*rest, *flow.result(np.ascontiguousarray(rows.T).reshape(-1).copy(), rank_of(node), 1))


@on_op("roll")
def roll(flow: Flow, node: fx.Node) -> Labelled:
    """Rolling along labelled dimensions would need another shift for every selection: those are pinned."""
    value = argument(node, 0, "input")
    dims = argument(node, 2, "dims")
    rank = rank_of(node)
    return mixed(flow, node, value, range(rank) if dims is None else [dims] if isinstance(dims, int) else dims, "is rolled")


@on_op("unfold")
def unfold(flow: Flow, node: fx.Node) -> Labelled:
    """`F.unfold`: every channel becomes kernel-size many columns of one dimension."""
    if node.op != "call_function":
        return unknown(flow, node)
    value = argument(node, 0, "input")
    labels, rest = flow.along(value, 1, node)
    flow.pin_all(rest, f"is unfolded at {node.name}")
    width = shape_of_argument(node)[1] // labels.size
    return flow.result(np.repeat(labels, width), rank_of(node), 1)


# -- joining -------------------------------------------------------------------------------------------------------


@on_op("cat", "concat", "concatenate")
def concatenate(flow: Flow, node: fx.Node) -> Labelled:
    """End to end along one dimension; along the others the operands must agree."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):
        return unknown(flow, node)
    dim = argument(node, 1, "dim", 0) % rank_of(node)
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


@on_op("stack")
def stack(flow: Flow, node: fx.Node) -> Labelled:
    """A new dimension: along the old ones the operands must agree."""
    parts = argument(node, 0, "tensors")
    rank = rank_of(node)
    dim = argument(node, 1, "dim", 0) % rank
    fields = combine(flow, node, [operand(flow, p) for p in parts])
    return tuple(np.expand_dims(f, dim) for f in fields)


@on_op("pad")
def pad(flow: Flow, node: fx.Node) -> Labelled:
    """Constant padding of channels adds positions of its own, that go with whatever they meet."""
    value, amounts = argument(node, 0, "input"), argument(node, 1, "pad")
    mode = argument(node, 2, "mode", "constant")
    rank = rank_of(node)
    padded = [rank - 1 - i // 2 for i in range(len(amounts)) if flow.constant(amounts[i])]
    if mode != "constant":
        return mixed(flow, node, value, padded, "is padded")
    out: list[IntArray] = []
    for labels in flow.fields(value):
        dims = [d for d in set(padded) if labels.shape[d] > 1]
        if not dims:
            out.append(labels)
            continue
        if len(dims) > 1 or labels.size != labels.shape[dims[0]]:
            flow.pin(labels, f"is padded at {node.name}")
            continue
        before, after = _amounts(flow, amounts, rank, dims[0])
        columns = [_padding(flow, before), flow.flat(labels), _padding(flow, after)]
        out += flow.result(np.concatenate(columns), rank, dims[0])
    return tuple(out)


def _padding(flow: Flow, size: int) -> IntArray:
    """Labels of zeros: fresh even for a single one, since it goes with what it is added to."""
    flow.count += size
    if size:
        flow.owners.append((flow.count - size, None))
    return np.arange(flow.count - size, flow.count, dtype=np.int64)


def _amounts(flow: Flow, amounts: Sequence[Any], rank: int, dim: int) -> tuple[int, int]:
    index = 2 * (rank - 1 - dim)
    return int(flow.constant(amounts[index])), int(flow.constant(amounts[index + 1]))


@rewriter("pad")
def pad_amounts(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """As many zeros on each side as are kept."""
    given, amounts = argument(old, 1, "pad"), list(argument(new, 1, "pad"))
    rank, before = rank_of(old), shape_of_argument(argument(old, 0, "input"))
    for dim in range(rank):
        kept = slim.kept(old, dim)
        index = 2 * (rank - 1 - dim)
        if kept.all() or index + 1 >= len(amounts):
            continue
        left = int(_known(given[index]))
        amounts[index] = int(kept[:left].sum())
        amounts[index + 1] = int(kept[left + before[dim] :].sum())
    _set(new, 1, "pad", tuple(amounts))


def _set(node: fx.Node, position: int, name: str, value: Any) -> None:
    """Put an argument where it was given, by position or by name."""
    if len(node.args) > position:
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


# -- taking apart --------------------------------------------------------------------------------------------------


@on_op("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split")
def split(flow: Flow, node: fx.Node) -> Labelled:
    """Consecutive pieces of one dimension; each must keep a position."""
    value = argument(node, 0, "input")
    shape = shape_of_argument(value)
    dim = argument(node, 2, "dim", 0) % len(shape)
    lengths = [part.shape[dim] for part in node.meta["val"]]
    starts = np.cumsum([0, *lengths])
    pieces: list[Labelled] = []
    for start, length in zip(starts, lengths):
        fields: list[IntArray] = []
        for labels in flow.fields(value):
            if labels.shape[dim] == 1:
                fields.append(labels)
                continue
            piece = labels[(slice(None),) * dim + (slice(start, start + length),)]
            flow.covers.append(piece)
            fields += flow.moved((piece,), node)
        pieces.append(tuple(fields))
    return pieces


@rewriter("chunk", "split", "tensor_split", "split_with_sizes")
def split_sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Literal lengths, since the pieces needn't be equally long any more."""
    value = argument(old, 0, "input")
    dim = argument(old, 2, "dim", 0) % len(shape_of_argument(value))
    kept = slim.kept(value, dim)
    if kept.all():
        return
    ends = np.cumsum([part.shape[dim] for part in old.meta["val"]])
    lengths = [int(part.sum()) for part in np.split(kept, ends[:-1])]
    new.op, new.target = ("call_function", torch.split)
    new.args, new.kwargs = (argument(new, 0, "input"), lengths, dim), {}


@on_op("unbind")
def unbind(flow: Flow, node: fx.Node) -> Labelled:
    """One piece a position of a dimension, which is gone."""
    value = argument(node, 0, "input")
    dim = argument(node, 1, "dim", 0) % len(shape_of_argument(value))
    return [
        flow.moved((np.take(f, min(i, f.shape[dim] - 1), axis=dim) for f in flow.fields(value)), node)
        for i in range(len(node.meta["val"]))
    ]


@on_op("getattr")
def attribute(flow: Flow, node: fx.Node) -> Labelled:
    """`x.shape` and the like are plain; `x.T` moves data."""
    value, name = node.args[0], node.args[1]
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    if name in ("T", "mT", "H", "mH"):
        return flow.moved((getattr(torch.from_numpy(np.require(f, requirements="CW")), str(name)).numpy() for f in flow.fields(value)), node)
    if name in ("data", "real"):
        return flow.fields(value)
    return unknown(flow, node)


@on_op("getitem", "__getitem__")
def getitem(flow: Flow, node: fx.Node) -> Labelled:
    """An element of a tuple, or slices of a tensor."""
    value, index = node.args
    source = flow.values.get(value) if isinstance(value, fx.Node) else None
    if isinstance(source, list):
        return source[index] if isinstance(index, int | slice) else unknown(flow, node)
    if source is None:
        return None
    entries = index if isinstance(index, tuple) else (index,)
    if any(isinstance(entry, fx.Node | torch.Tensor) and _is_tensor(entry) or isinstance(entry, list) for entry in entries):
        return _indexed_by_tensors(flow, node, entries)
    known = tuple(_constant_index(flow, entry) for entry in entries)
    fields: list[IntArray] = []
    for labels in flow.fields(value):
        [piece] = execute((labels,), shape_of_argument(value), lambda t: t[known])
        if _sliced_dims(known, labels):
            flow.covers.append(piece)
        fields += flow.moved((piece,), node)
    return flow.separate(fields, node)


def _is_tensor(entry: object) -> bool:
    return isinstance(entry, torch.Tensor) or (
        isinstance(entry, fx.Node) and isinstance(entry.meta.get("val"), torch.Tensor)
    )


def _indexed_by_tensors(flow: Flow, node: fx.Node, entries: Sequence[object]) -> Labelled:
    """Only dimensions that carry no labels may be indexed by tensors; the others pass."""
    value = node.args[0]
    tensors = [e for e in entries if e is not None and e is not Ellipsis]
    first = 0 if entries[0] is not Ellipsis else len(shape_of_argument(value)) - len(tensors)
    simple = len(tensors) == 1 and isinstance(tensors[0], fx.Node) and None not in entries
    labelled = [f for f in flow.fields(value) if any(s > 1 for s in f.shape[first : first + len(tensors)])]
    if not simple or labelled:
        return unknown(flow, node)
    index_rank = len(shape_of_argument(tensors[0]))
    if tensors[0].meta["val"].dtype == torch.bool:  # type: ignore[union-attr]
        return unknown(flow, node)
    out = [f.reshape(*f.shape[:first], *(1,) * index_rank, *f.shape[first + 1 :]) for f in flow.fields(value)]
    return flow.moved(out, node)


def _constant_index(flow: Flow, entry: object) -> Any:
    if isinstance(entry, slice):
        return slice(*(flow.constant(part) for part in (entry.start, entry.stop, entry.step)))
    return flow.constant(entry)


def _dims(entries: Sequence[Any], rank: int) -> list[tuple[int, int]]:
    """(place in the index, dimension that it indexes) of every entry that indexes one."""
    consuming = [i for i, e in enumerate(entries) if e is not None and e is not Ellipsis]
    dims: list[tuple[int, int]] = []
    dim = 0
    for place, entry in enumerate(entries):
        if entry is Ellipsis:
            dim = rank - sum(i > place for i in consuming)
        elif entry is not None:
            dims.append((place, dim))
            dim += 1
    return dims


def _sliced_dims(entries: Sequence[Any], labels: IntArray) -> bool:
    return any(labels.shape[d] > 1 and entries[i] != slice(None) for i, d in _dims(entries, labels.ndim))


@rewriter("getitem", "__getitem__")
def slices(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A slice of a labelled dimension takes the positions that are left of those that it took."""
    value, index = old.args
    if not _is_tensor(value):
        return
    entries = list(index) if isinstance(index, tuple) else [index]
    changed = list(new.args[1]) if isinstance(index, tuple) else [new.args[1]]  # type: ignore[arg-type]
    for place, dim in _dims(entries, len(shape_of_argument(value))):
        kept = slim.kept(value, dim)
        if not kept.all():
            changed[place] = _slim_index(entries[place], kept)
    new.args = (new.args[0], tuple(changed) if isinstance(index, tuple) else changed[0])


def _slim_index(entry: Any, kept: np.ndarray[Any, Any]) -> Any:
    number = np.cumsum(kept) - 1
    if not isinstance(entry, slice):
        return int(number[_known(entry) % kept.size])
    taken = np.arange(kept.size)[slice(*(_known(p) for p in (entry.start, entry.stop, entry.step)))]
    places = number[taken[kept[taken]]]
    if places.size == kept.sum():
        return slice(None)
    if places.size == 1 or bool((np.diff(places) == 1).all()):
        return slice(int(places[0]), int(places[-1]) + 1)
    return [int(p) for p in places]


def _known(entry: Any) -> Any:
    return entry.meta["val"] if isinstance(entry, fx.Node) else entry


@on_op("narrow", "select")
def narrow(flow: Flow, node: fx.Node) -> Labelled:
    """A piece of one dimension by start and length, or one position of it."""
    value, dim = argument(node, 0, "input"), argument(node, 1, "dim")
    dim %= len(shape_of_argument(value))
    start = flow.constant(argument(node, 2, "start" if op_name(node) == "narrow" else "index"))
    length = flow.constant(argument(node, 3, "length", 1))
    fields: list[IntArray] = []
    for labels in flow.fields(value):
        piece = labels
        if labels.shape[dim] > 1:
            piece = np.take(labels, range(start, start + length), axis=dim)
            flow.covers.append(piece)
        piece = piece if op_name(node) == "narrow" else np.take(piece, 0, axis=dim)
        fields += flow.moved((piece,), node)
    return tuple(fields)


@rewriter("narrow", "select")
def narrow_bounds(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Start and length, counted in kept positions."""
    value, dim = argument(old, 0, "input"), argument(old, 1, "dim")
    kept = slim.kept(value, dim % len(shape_of_argument(value)))
    if kept.all():
        return
    whole = op_name(old) == "narrow"
    start = int(_known(argument(old, 2, "start" if whole else "index"))) % kept.size
    _set(new, 2, "start" if whole else "index", int(kept[:start].sum()))
    if whole:
        length = int(_known(argument(old, 3, "length")))
        _set(new, 3, "length", int(kept[start : start + length].sum()))


@rewriter("layer_norm", "rms_norm")
def normalized_shape(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The trailing sizes."""
    width = len(argument(old, 1, "normalized_shape"))
    _set(new, 1, "normalized_shape", tuple(slim.shape(old)[-width:]))
