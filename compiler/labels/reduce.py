"""What becomes of labels along dimensions that an operation mixes or adds up; rules of several families use it.

    mixed      x.softmax(1), a pooling over the image    labels along these dimensions alone are pinned
    added_up   x.sum(1)                                  they may go: a removed channel is a zero, which adds nothing

Both: a field that varies along other dimensions too, such as [heads, width], loses whole heads where the width is
mixed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import numpy as np
from torch import fx

from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.broadcast import pin_loose, whole
from prunec.compiler.labels.flow import Fields, Flow


def mixed(flow: Flow, node: fx.Node, value: object, dims: Iterable[int], verb: str) -> Fields:
    """The fields of `value` after an operation that mixes all positions of `dims`, which keep their sizes.

    One that varies there alone is pinned, for the reason `verb`; one that varies elsewhere too can lose what all
    positions of `dims` share.
    """
    rank = len(shape_of_argument(value))
    along = {d % max(rank, 1) for d in dims}
    kept: list[IntArray] = []
    for labels in flow.fields(value):
        here = [d for d in along if labels.shape[d] > 1]
        if here and labels.size == np.prod([labels.shape[d] for d in here]):
            if node in flow.renormalised:
                kept.append(labels)
            else:
                flow.pin(labels, f"{verb} at {node.name}")
            continue
        for dim in here:
            labels = whole(flow, labels, dim, node)
        kept.append(labels)
    return flow.moved(kept, node) if any(map(operator.is_not, kept, flow.fields(value))) else tuple(kept)


def added_up(flow: Flow, node: fx.Node, value: object, dims: Iterable[int]) -> Fields:
    """The fields of `value` after a sum along `dims`, which keep size 1: see `summed`."""
    return summed(flow, node, flow.fields(value), dims)


def summed(flow: Flow, node: fx.Node, fields: Fields, dims: Iterable[int]) -> Fields:
    """Fields after a sum along `dims`, which keep size 1: zeros add nothing.

    A field that varies there alone is gone, and its labels may be removed, but not merged. One that varies elsewhere
    too can lose what all positions of `dims` share.
    """
    rest: list[IntArray] = []
    dims = tuple(dims)
    for labels in fields:
        here = [d for d in dims if labels.shape[d] > 1]
        if here:
            flow.count_matters(labels.reshape(-1), f"is added up at {node.name}")
            pin_loose(flow, (labels,), f"is one of several copies that {node.name} adds up")
        if here and labels.size == np.prod([labels.shape[d] for d in here]):
            continue
        for dim in here:
            labels = whole(flow, labels, dim, node)
        rest.append(labels)
    return flow.moved(rest, node) if any(labels.size == 1 for labels in rest) else tuple(rest)
