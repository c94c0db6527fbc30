"""Attention heads: a product over heads loses whole heads, or the same positions of every head's width.

    q [n, heads, tokens, width] @ k^T      heads: all that share a head go together, and the head with them
                                           head_width: the same position of every head goes, and all heads stay

Which of these is the granularity `attention` of a plan. For head widths, a factor's labels are unified over the heads
before the product is formed, so that only the width is left to vary. Where the other factor spans the heads without
labels, heads can't go, so the widths are the units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Fields, Flow

Operand = tuple[Fields, tuple[int, ...]]


def by_width(flow: Flow, node: fx.Node, operands: Sequence[Operand], inner: Sequence[int]) -> list[Operand]:
    """The factors of a product, (fields, shape) pairs, once the granularity of their heads is decided.

    Where head widths are the units, the fields returned don't vary over heads. `inner` are the dimensions that aren't
    batched, counted from the back; all others (batch, heads) are aligned from the back too.
    """
    grids = [labels for fields, _ in operands for labels in fields if _is_grid(labels, inner)]
    if not grids:
        return list(operands)
    names = [name for labels in grids for name in flow.writers(labels)]
    choice = flow.divide("attention", node.name, _shape(grids[0], inner), names, fallback="heads")
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


def _without_heads(flow: Flow, node: fx.Node, labels: IntArray, inner: Sequence[int]) -> Fields:
    """A field with all labels that differ over the heads alone unified; one that varies over the heads only is
    pinned."""
    if not _is_grid(labels, inner):
        flow.pin(labels, f"varies over heads, which stay at {node.name}")
        return ()
    outer = _outer(labels, inner)
    first = labels[tuple(slice(0, 1) if d in outer else slice(None) for d in range(-labels.ndim, 0))]
    flow.unify(labels, np.broadcast_to(first, labels.shape), node)
    first = np.ascontiguousarray(first)
    wide = [d for d, size in enumerate(first.shape) if size > 1]
    return flow.result(first.reshape(-1), first.ndim, wide[0]) if len(wide) == 1 else flow.moved((first,), node)
