"""Distances: p-norms of differences, summed over the last dimension.

    torch.cdist(x, y)               [.., P, C] and [.., R, C] -> [.., P, R]
    F.pairwise_distance(x, y)       [.., C] and [.., C] -> [..]; `eps` is added to every difference
    torch.dist(x, y)                one number
    F.pdist(x)                      [N, C] -> all pairs of rows

A channel that is gone from both is a difference of zero, which adds nothing to a norm of p >= 0. Of a pairwise
distance each such channel adds its `eps`, which the rewriter makes up for (`with_eps`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.ops import argument, known, shape_of_argument
from prunec.compiler.labels.broadcast import combine, operand
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import unknown
from prunec.compiler.labels.reduce import added_up, mixed, summed
from prunec.compiler.labels.registry import Slim, on_op, rewriter
from prunec.compiler.ops.matmul import contracted
from prunec.compiler.ops.reduction import left_of


@on_op("cdist", reduces=True, carries_copies=True)
def between_rows(flow: Flow, node: fx.Node) -> Labelled:
    """Every row of one operand with every row of the other."""
    pair = [argument(node, i, name) for i, name in enumerate(("x1", "x2"))]
    shapes = [shape_of_argument(value) for value in pair]
    if shapes[0][-1] != shapes[1][-1]:
        return unknown(flow, node)
    left = operand(flow, pair[0])
    right = tuple(np.swapaxes(labels, -1, -2) for labels in flow.fields(pair[1])), (*shapes[1][:-2], *shapes[1][:-3:-1])
    _, rows, columns = contracted(flow, node, (left, -1), (right, -2))
    return combine(flow, node, ((rows, (*shapes[0][:-1], 1)), (columns, (*shapes[1][:-2], 1, shapes[1][-2]))))


@on_op("pairwise_distance", reduces=True, carries_copies=True)
def between_vectors(flow: Flow, node: fx.Node) -> Labelled:
    """The norm of a difference along the last dimension."""
    pair = [argument(node, i, name) for i, name in enumerate(("x1", "x2"))]
    shapes = [shape_of_argument(value) for value in pair]
    power = argument(node, 2, "p", 2.0)
    if not all(shapes) or shapes[0][-1] != shapes[1][-1] or not _counts_no_zeros(power):
        return unknown(flow, node)
    met = combine(flow, node, [operand(flow, value) for value in pair])
    fields = summed(flow, node, met, (max(map(len, shapes)) - 1,))
    if argument(node, 4, "keepdim", False):
        return fields
    return flow.moved((np.squeeze(labels, axis=-1) for labels in fields), node)


@on_op("dist", reduces=True, carries_copies=True)
def of_all(flow: Flow, node: fx.Node) -> Labelled:
    """The norm of a difference, over all elements."""
    pair = [argument(node, 0, "input"), argument(node, 1, "other")]
    if not _counts_no_zeros(argument(node, 2, "p", 2)) or len({shape_of_argument(value) for value in pair}) > 1:
        return unknown(flow, node)
    met = combine(flow, node, [operand(flow, value) for value in pair])
    summed(flow, node, met, range(len(shape_of_argument(pair[0]))))
    return ()


@on_op("pdist", reduces=True, carries_copies=True)
def between_all_rows(flow: Flow, node: fx.Node) -> Labelled:
    """The distances of all pairs of rows: rows stay, channels are added up."""
    value = argument(node, 0, "input")
    mixed(flow, node, value, (0,), "is compared with all rows")
    added_up(flow, node, value, (1,))
    return ()


def _counts_no_zeros(power: object) -> bool:
    """Whether zeros add nothing to the norm of that power: not to the smallest element, or to a negative power."""
    return isinstance(power, int | float) and power >= 0


@rewriter("pairwise_distance")
def with_eps(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The distance d over the channels that are left, with the `eps` that each of the n removed ones adds.

    p = 2      sqrt(d^2 + n eps^2)         p = inf    max(d, eps)
    p          (d^p + n eps^p)^(1/p)       p = 0      d + n
    """
    value = argument(old, 0, "x1")
    power, eps = float(known(argument(old, 2, "p", 2.0))), abs(float(known(argument(old, 3, "eps", 1e-6))))
    left, size = left_of(value, -1, slim)
    if left == size or not eps:
        return
    narrow = new.meta["val"].new_empty(slim.shape(old))

    def made(target: Callable[..., Any], *args: Any) -> fx.Node:
        node = new.graph.call_function(target, args)
        node.meta = {**new.meta, "val": narrow}
        return node

    gone = size - left
    with new.graph.inserting_before(new):
        inner = new.graph.create_node(new.op, new.target, new.args, new.kwargs)
        inner.meta = {**new.meta, "val": narrow}
        final: tuple[Callable[..., Any], tuple[Any, ...]]
        if power == 0:
            final = operator.add, (inner, float(gone))
        elif math.isinf(power):
            final = torch.clamp_min, (inner, eps)
        elif power == 1:
            final = operator.add, (inner, gone * eps)
        elif power == 2:
            final = torch.sqrt, (made(operator.add, made(torch.square, inner), gone * eps**2),)
        else:
            final = operator.pow, (made(operator.add, made(operator.pow, inner, power), gone * eps**power), 1 / power)
    new.op, new.kwargs = "call_function", {}
    new.target, new.args = final
