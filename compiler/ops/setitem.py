"""Constants that the graph makes, and what is written into them.

    y = x.new_zeros(n, 8, h, w)      the channels get labels of their own
    y[:, :4] = self.a(x)             the first four go with a's channels
    y[:, 4:].copy_(self.b(x))        the others with b's

A constant's own labels belong to no parameter: such a position goes with what is written there or what it meets, and
stays where it meets nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import fx

from prunec.compiler.ir.ops import known_places, op_name, shape_of_argument
from prunec.compiler.labels.broadcast import combine, operand
from prunec.compiler.labels.flow import Fields, Flow, Labelled
from prunec.compiler.labels.propagate import bare, unknown
from prunec.compiler.labels.registry import Slim, on_op, rewriter
from prunec.compiler.ops.indexing import taken
from prunec.compiler.ops.reshape import fitting_sizes


@on_op("zeros", "empty", "new_zeros", "new_empty", "new", carries_copies=True)
def created(flow: Flow, node: fx.Node) -> Labelled:
    """New labels along the dimensions that may be channels: the second (the first of a vector) and the last. The first
    gets them where it meets heads that are folded into it (`broadcast.follow_folded`).

    Nobody misses a zero that goes. Other constants (ones) have no labels, and so stay.
    """
    known = node.meta.get("val")
    data = op_name(node) == "new" and any(not _is_size(arg) for arg in node.args[1:])
    if data or not isinstance(known, torch.Tensor) or not (known.is_floating_point() or known.is_complex()):
        return bare(known)
    if node in flow.parameter_free.filled:  # a table: what meets it picks its columns
        return bare(known)
    flow.blanks[node] = None
    fields: Fields = ()
    for dim in sorted({min(1, known.ndim - 1), known.ndim - 1}) if known.ndim else ():
        if known.shape[dim] > 1:
            fields += flow.result(flow.own(known.shape[dim]), known.ndim, dim)
    return fields


def _is_size(given: object) -> bool:
    """Whether an argument of `x.new` is a size, rather than data to copy."""
    value = given.meta.get("val") if isinstance(given, fx.Node) else given
    return isinstance(value, int | torch.Size)


@on_op("setitem", "__setitem__", carries_copies=True)
def assigned(flow: Flow, node: fx.Node) -> Labelled:
    """Labels of what is written unify with those of the places that it is written to."""
    target, index, value = node.args
    if _chooses_elements(target, index) and not isinstance(value, fx.Node):
        combine(flow, node, (operand(flow, target), operand(flow, index)))
        return None
    entries = index if isinstance(index, tuple) else (index,)
    piece = taken(flow, target, entries, node)
    if piece is None:
        return unknown(flow, node)
    written = target.meta["val"][fx.node.map_arg(index, partial(_as_index, flow))]  # type: ignore[union-attr]
    combine(flow, node, ((piece, tuple(written.shape)), operand(flow, value)))
    return None


def _as_index(flow: Flow, entry: fx.Node) -> Any:
    """A node's value as a tensor without data can be indexed by it; of a known mask, the places that it chooses."""
    known = entry.meta["val"]
    if not isinstance(known, torch.Tensor) or known.dtype != torch.bool:
        return known
    places = known_places(flow.constant(entry)) or ()
    return known.new_empty(len(places), dtype=torch.int64)


def _chooses_elements(target: object, index: object) -> bool:
    """Whether an index is a mask of the target's shape, so that a number is written to single elements."""
    known = index.meta.get("val") if isinstance(index, fx.Node) else None
    mask = isinstance(known, torch.Tensor) and known.dtype == torch.bool
    return mask and shape_of_argument(index) == shape_of_argument(target)


@on_op("new_ones", "new_full", "new_tensor", carries_copies=True)
def filled(flow: Flow, node: fx.Node) -> Labelled:
    """Only the type of the operand is read, so it gives no labels; literal sizes stay."""
    return bare(node.meta.get("val"))


@rewriter("zeros", "empty", "new_zeros", "new_empty", "new", sized=True)
def created_sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The sizes of a constant: those of what it meets."""
    first = 1 if op_name(old).startswith("new") else 0
    named = "size" in old.kwargs
    spread = not named and not isinstance(slim.value(old.args[first]), tuple | list)
    given: Any
    current: Any
    given, current = (
        node.kwargs["size"] if named else node.args[first:] if spread else node.args[first] for node in (old, new)
    )
    every = [given] * len(slim.value(given)) if isinstance(given, fx.Node) else given
    wanted = fitting_sizes(old, every, current, slim.shape(old), slim)
    if wanted is not None and named:
        new.kwargs = {**new.kwargs, "size": wanted}
    elif wanted is not None:
        new.args = (*new.args[:first], *(wanted if spread else (wanted,)))
