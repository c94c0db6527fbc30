"""Copies that the graph makes along a dimension: a mask as wide as the channels, a table for every head.

    mask[:, :, None].expand(-1, -1, 64)        labels of its own along the 64, that go with what they meet
    mask.repeat_interleave(heads, dim=0)       [batch * heads, ...]: one label a head

A copy is missed by nobody once what it meets is removed; where it meets nothing that may go, all copies stay. So do
copies that a layer or a sum reads directly: these would miss one. The counts follow what is left of the copies
(`repeats`; for `expand`, `sizes` in ops/reshape.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.ops import argument, is_tensor, known, op_name, put, rank_of, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.broadcast import combine, with_picks
from prunec.compiler.labels.execute import constants, executed
from prunec.compiler.labels.flow import Fields, Flow, Labelled
from prunec.compiler.labels.propagate import subject, unknown
from prunec.compiler.labels.registry import Slim, on_op, rewriter

Layout = Callable[[IntArray, int], IntArray]
"""(a label for each copy, the length of what is copied) -> the labels along the dimension."""


def copies(flow: Flow, node: fx.Node, value: object, given: Any, layout: Layout) -> Fields:
    """Fields of new, loose labels along the dimensions without labels that a node makes longer by copying.

    `given` are the sizes or counts that the node was called with, `layout` how copies lie. A dimension whose size is
    the input's (tokens, the batch) gets none: its copies stay whatever they meet.
    """
    after = shape_of_argument(node)
    before = (1,) * (len(after) - len(shape_of_argument(value))) + shape_of_argument(value)
    fields: Fields = ()
    new = len(after) - len(shape_of_argument(value))
    for dim in range(len(after)):
        count = after[dim] // max(before[dim], 1)
        if dim >= new and any(labels.shape[dim - new] > 1 for labels in flow.fields(value)):
            continue  # copies of channels go with these
        if count > 1 and _is_width(flow, node, given, dim):
            own = flow.own(count)
            flow.loosen(own)
            fields += flow.result(np.ascontiguousarray(layout(own, before[dim])), len(after), dim)
    return fields


def _is_width(flow: Flow, node: fx.Node, given: Any, dim: int) -> bool:
    """Whether a literal, or the size of a labelled dimension, says how long a dimension is. A literal first dimension
    may be the batch, unless elements are repeated one by one."""
    if isinstance(given, fx.Node):
        return reads_labels(flow, given, dim)
    if not isinstance(given, Sequence):
        given = (given,)
    place = dim - rank_of(node) + len(given)
    if place < 0 or (dim == 0 and op_name(node) in ("expand", "broadcast_to")):
        return False  # samples of a batch
    if isinstance(given[place], fx.Node):
        return reads_labels(flow, given[place], None)
    return dim > 0 or op_name(node) == "repeat_interleave"


def reads_labels(flow: Flow, size: fx.Node, dim: int | None) -> bool:
    """Whether a number, or item `dim` of a size, comes from a dimension with labels."""
    if isinstance(size.meta.get("val"), torch.Tensor):
        return False
    source = size.args[0] if size.args else None
    name = op_name(size)
    if name == "size" or (name == "getattr" and size.args[1:] == ("shape",)):
        asked = size.args[1] if name == "size" and len(size.args) > 1 else size.kwargs.get("dim", dim)
        if not isinstance(asked, int):
            return False
        return any(-f.ndim <= asked < f.ndim and f.shape[asked] > 1 for f in flow.fields(source))
    if name in ("numel", "nelement"):
        return any(f.size > 1 for f in flow.fields(source))
    if name in ("len", "__len__"):
        return any(f.ndim and f.shape[0] > 1 for f in flow.fields(source))
    if name == "getitem" and isinstance(source, fx.Node) and isinstance(size.args[1], int):
        return reads_labels(flow, source, size.args[1])
    return any(reads_labels(flow, other, None) for other in size.all_input_nodes)


@on_op("expand", "broadcast_to", moves=True)
def expansion(flow: Flow, node: fx.Node) -> Labelled:
    """New dimensions before the old ones, and longer ones in place of size 1: copies along all of them."""
    rank, value = rank_of(node), subject(flow, node)
    sizes = argument(node, 1, "size") if len(node.args) < 3 else node.args[1:]
    fields = flow.moved((f.reshape((1,) * (rank - f.ndim) + f.shape) for f in flow.fields(value)), node)
    return fields + copies(flow, node, value, sizes, np.repeat)


@on_op("expand_as", moves=True)
def expansion_as(flow: Flow, node: fx.Node) -> Labelled:
    """Copies, as many as the second operand has positions; labels of the two unify as in a broadcast. Of a value that
    no parameter writes, the positions that are left are picked."""
    return combine(flow, node, with_picks(flow, node))


@on_op("repeat", "tile", "repeat_interleave", moves=True)
def repeated(flow: Flow, node: fx.Node) -> Labelled:
    """Every position several times; as often as a literal says, or as a number that doesn't depend on the input."""
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


@rewriter("repeat", "tile", "repeat_interleave", sized=True)
def repeats(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The counts: as many copies as are left of those that were made."""
    value, target = argument(old, 0, "input"), slim.shape(old)
    before = (1,) * (len(target) - len(shape_of_argument(value))) + tuple(slim.shape(value))
    wanted = [size // max(inner, 1) for size, inner in zip(target, before, strict=True)]
    if op_name(old) == "repeat_interleave":
        dim = known(argument(old, 2, "dim"))
        if dim is not None and not is_tensor(argument(old, 1, "repeats")):
            count = _copies_left(argument(old, 1, "repeats"), argument(new, 1, "repeats"), wanted[dim], slim)
            put(new, 1, "repeats", count)
        return
    spread = len(old.args) > 2 or isinstance(slim.value(argument(old, 1, "repeats", argument(old, 1, "dims"))), int)
    key = next((key for key in ("repeats", "dims") if key in old.kwargs), None)
    given: Any
    current: Any
    given, current = (x.args[1:] if spread else x.kwargs[key] if key else x.args[1] for x in (old, new))
    if isinstance(given, fx.Node) or len(given) != len(wanted):
        return
    counts = tuple(_copies_left(o, g, n, slim) for o, g, n in zip(given, current, wanted, strict=True))
    if key:
        new.kwargs = {**new.kwargs, key: counts}
    else:
        new.args = (new.args[0], *counts) if spread else (new.args[0], counts)


def _copies_left(old: Any, new: Any, wanted: int, slim: Slim) -> Any:
    """How many copies are made: as the old count says, where that follows; else a node that does, or the number."""
    if slim.follows(old, wanted):
        return new
    open_ = slim.scaled(old, wanted) if isinstance(old, fx.Node) else None
    return wanted if open_ is None else open_
