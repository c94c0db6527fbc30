"""Attention heads: a product over heads loses whole heads, or the same positions of every head's width.

    q [n, heads, tokens, width] @ k^T      heads: all that share a head go together, and the head with them
                                           head_width: the same position of every head goes, and all heads stay

    norm(q), q @ w, conv(q of [n heads, d, t])      a layer that all heads share: whole heads, where the plan says so

Which of these is the granularity `attention` of a plan. For head widths, a factor's labels are unified over the heads
before the product is formed, so that only the width is left to vary. Where the other factor spans the heads without
labels, heads can't go, so the widths are the units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.ir.sizes import comes_again
from prunec.compiler.labels.broadcast import whole
from prunec.compiler.labels.flow import Fields, Flow

Operand = tuple[Fields, tuple[int, ...]]


def divided(flow: Flow, node: fx.Node, operands: Sequence[Operand], inner: Sequence[int]) -> list[Operand]:
    """The factors of a product once the granularity of their heads is decided: see `by_width`, which this begins with.

    Where heads are the units, the fields of what meets a head's label, or of all factors if the plan says so, don't
    vary over the widths.
    """
    narrowed = by_width(flow, node, operands, inner)
    block = flow.divided.get(node.name)
    if block is None or block.choice != "heads":
        return narrowed
    asked = flow.program.granularity.choice("attention", block.names) == "heads"
    lines = [[f for f in fields if _outer(f, inner) and not _is_grid(f, inner)] for fields, _ in narrowed]
    out: list[Operand] = []
    for index, (fields, shape) in enumerate(narrowed):
        met = any(flow.writers(f) for place, fs in enumerate(lines) if place != index for f in fs)
        whole = [
            _whole(flow, node, f, _inside(f, inner)) if (asked or met) and _is_grid(f, inner) else f for f in fields
        ]
        out.append((flow.separate(whole, node), shape))
    return out


def shared(flow: Flow, node: fx.Node, value: object, dim: int, fallback: str = "head_width") -> Fields:
    """The fields of what a layer reads along `dim` that every head runs through by itself.

    Where the plan says that its heads are the units, or, if it says nothing, where `fallback` does, a grid of heads and
    widths doesn't vary over the width any more, so that the layer stays as it is.
    """
    fields = flow.fields(value)
    if all(labels.size == labels.shape[dim] for labels in fields):
        return fields  # each varies along the dimension alone
    rank = len(shape_of_argument(value))
    inner = range(dim % rank - rank, 0)
    if not any(_is_shared(labels, inner) for labels in fields):
        return fields
    out: list[IntArray] = []
    for labels in fields:
        names = [*([str(node.target)] if node.op == "call_module" else []), *flow.writers(labels)]
        said = flow.program.granularity.choice("attention", [*names, node.name])
        if _is_shared(labels, inner) and said:
            flow.divide("attention", node.name, _shape(labels, inner), names, fallback, (labels,))
        heads = _is_shared(labels, inner) and (said or fallback) == "heads"
        out.append(_whole(flow, node, labels, _inside(labels, inner)) if heads else labels)
    return flow.moved(out, node) if any(a is not b for a, b in zip(out, fields, strict=True)) else fields


def _is_shared(labels: IntArray, inner: Sequence[int]) -> bool:
    """Whether a field varies over the first of the dimensions `inner`, which a layer reads, and over heads before it:
    each in one place, or folded into the batch. Pixels that a view made of channels are no heads."""
    if labels.shape[inner[0]] == 1 or any(labels.shape[d] > 1 for d in inner[1:]):
        return False
    outer = _outer(labels, inner)
    return bool(outer) and all(d == -labels.ndim or not comes_again(labels, d) for d in outer)


def _inside(labels: IntArray, inner: Sequence[int]) -> list[int]:
    """The inner dimensions along which a field varies."""
    return [d for d in inner if d >= -labels.ndim and labels.shape[d] > 1]


def _whole(flow: Flow, node: fx.Node, labels: IntArray, dims: Sequence[int]) -> IntArray:
    """A field at size 1 along `dims`, counted from the back; all labels that differ along these alone are unified."""
    for dim in dims:
        labels = whole(flow, labels, dim % labels.ndim, node)
    return labels


def by_width(flow: Flow, node: fx.Node, operands: Sequence[Operand], inner: Sequence[int]) -> list[Operand]:
    """The factors of a product, (fields, shape) pairs, once the granularity of their heads is decided.

    Where head widths are the units, the fields returned don't vary over heads. `inner` are the dimensions that aren't
    batched, counted from the back; all others (batch, heads) are aligned from the back too.
    """
    grids = [labels for fields, _ in operands for labels in fields if _is_grid(labels, inner)]
    if not grids:
        return list(operands)
    names = [name for labels in grids for name in flow.writers(labels)]
    choice = flow.divide("attention", node.name, _shape(grids[0], inner), names, "heads", grids)
    known = {found for labels in grids if flow.writers(labels) and (found := _known(flow, labels, inner))}
    if len(known) == 1 and choice not in known:
        [choice] = known
        flow.settle(node.name, choice)
    narrowed = []
    for index, (fields, shape) in enumerate(operands):
        others = [other for place, other in enumerate(operands) if place != index]
        kept: list[IntArray] = []
        for labels in fields:
            narrow = choice == "head_width" or (_is_grid(labels, inner) and _meets_fixed(labels, inner, others))
            if narrow:
                flow.settle(node.name, "head_width")
            kept += _without_heads(flow, node, labels, inner) if narrow and _outer(labels, inner) else (labels,)
        narrowed.append((tuple(kept), shape))
    return narrowed


def _outer(labels: IntArray, inner: Sequence[int]) -> list[int]:
    """The batched dimensions along which a field varies, counted from the back."""
    return [d for d in range(-labels.ndim, 0) if d not in inner and labels.shape[d] > 1]


def _is_grid(labels: IntArray, inner: Sequence[int]) -> bool:
    """Whether a field varies over heads and over an inner dimension."""
    return bool(_outer(labels, inner)) and any(d >= -labels.ndim and labels.shape[d] > 1 for d in inner)


def _shape(labels: IntArray, inner: Sequence[int]) -> str:
    """A grid's shape in words: `4 heads of 16`."""
    heads = int(np.prod([labels.shape[d] for d in _outer(labels, inner)]))
    return f"{heads} heads of {labels.size // heads}"


def _meets_fixed(labels: IntArray, inner: Sequence[int], others: Sequence[Operand]) -> bool:
    """Whether another factor spans the heads, and has no labels there that could go with them."""
    for fields, shape in others:
        spanned = [d for d in _outer(labels, inner) if d >= -len(shape) and shape[d] > 1]
        if any(all(d < -f.ndim or f.shape[d] == 1 for f in fields) for d in spanned):
            return True
    return False


def _known(flow: Flow, labels: IntArray, inner: Sequence[int]) -> str:
    """The granularity that a grid has already, since an operation before has unified its heads or its widths; else
    ''."""
    joined = flow.squashed(labels)
    across = {"head_width": _outer(labels, inner), "heads": [d for d in inner if labels.shape[d] > 1]}
    for choice, dims in across.items():
        first = joined[tuple(slice(0, 1) if d in dims else slice(None) for d in range(-labels.ndim, 0))]
        if bool((joined == first).all()):
            return choice
    return ""


def _without_heads(flow: Flow, node: fx.Node, labels: IntArray, inner: Sequence[int]) -> Fields:
    """A field with all labels that differ over the heads alone unified; one that varies over the heads only is
    pinned."""
    if not _is_grid(labels, inner):
        flow.pin(labels, f"varies over heads, which stay at {node.name}")
        return ()
    outer = _outer(labels, inner)
    first = labels[tuple(slice(0, 1) if d in outer else slice(None) for d in range(-labels.ndim, 0))]
    flow.squash(labels, first, node)
    return flow.moved((first,), node)
