"""Operations in which a tensor of positions steers one dimension: gather, scatter, index_add.

    out.index_add_(0, target, messages)       [nodes, channels] += [edges, channels] at whole rows
    torch.gather(scores, -1, index)           [heads, tokens, distances] by [heads, tokens, tokens]

Along the dimension that the positions count, labels are pinned. Along the others the operands stand side by side: a
position of one goes with the same position of the others, and of an index that was expanded to that width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from prunec.compiler.ir.ops import argument, rank_of, shape_of_argument
from prunec.compiler.labels.broadcast import combine
from prunec.compiler.labels.flow import Fields, Flow, Labelled
from prunec.compiler.labels.propagate import dims_of, pin_value, unknown
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import on_op

Operand = tuple[Fields, tuple[int, ...]]


@on_op("index_add", "index_copy", "index_fill", carries_copies=True)
def added_rows(flow: Flow, node: fx.Node) -> Labelled:
    """Whole slices of one operand are put into another, at the positions in a vector."""
    value, source = argument(node, 0, "input"), argument(node, 3, "source", argument(node, 3, "value"))
    [dim] = dims_of(flow, argument(node, 1, "dim"), rank_of(node))
    pin_value(flow, flow.values.get(argument(node, 2, "index")), f"is an index at {node.name}")
    wide = [x for x in (value, source) if shape_of_argument(x)]
    if any(len(shape_of_argument(x)) != rank_of(node) for x in wide):
        return unknown(flow, node)
    return combine(flow, node, [_beside(flow, node, x, dim) for x in wide])


@on_op("scatter", "scatter_add", "scatter_reduce", carries_copies=True)
def scattered(flow: Flow, node: fx.Node) -> Labelled:
    """Single elements are put into another tensor, at the positions in an index of their shape."""
    parts = [
        argument(node, 0, "input"),
        argument(node, 2, "index"),
        argument(node, 3, "src", argument(node, 3, "value")),
    ]
    wide = [x for x in parts if shape_of_argument(x)]
    [dim] = dims_of(flow, argument(node, 1, "dim"), rank_of(node))
    if not _side_by_side(wide, dim):
        return unknown(flow, node)
    return combine(flow, node, [_beside(flow, node, x, dim) for x in wide])


@on_op("gather", "take_along_dim", carries_copies=True)
def picked(flow: Flow, node: fx.Node) -> Labelled:
    """The elements at the positions in an index; along all other dimensions, value and index stand side by side."""
    value, index = argument(node, 0, "input"), argument(node, 2 if _is_gather(node) else 1, _index_name(node))
    given = argument(node, 1 if _is_gather(node) else 2, "dim")
    if given is None or not shape_of_argument(value):
        return unknown(flow, node)
    [dim] = dims_of(flow, given, len(shape_of_argument(value)))
    if not _side_by_side([value, index], dim):
        return unknown(flow, node)
    index_operand = flow.fields(index), shape_of_argument(index)
    return combine(flow, node, [_beside(flow, node, value, dim), index_operand])


def _is_gather(node: fx.Node) -> bool:
    return "gather" in str(getattr(node.target, "__name__", node.target))


def _index_name(node: fx.Node) -> str:
    return "index" if _is_gather(node) else "indices"


def _side_by_side(values: Sequence[Any], dim: int) -> bool:
    """Whether tensors are equally long along all dimensions but `dim`."""
    shapes = {(s[:dim], s[dim + 1 :]) for s in map(shape_of_argument, values)}
    return len(shapes) == 1


def _beside(flow: Flow, node: fx.Node, value: object, dim: int) -> Operand:
    """An operand as `combine` takes it, of size 1 along the dimension that positions count: labels there are pinned."""
    shape = shape_of_argument(value)
    return mixed(flow, node, value, (dim,), "is addressed"), (*shape[:dim], 1, *shape[dim + 1 :])
