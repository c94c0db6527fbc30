"""Operations in which a tensor of positions steers one dimension: gather, scatter, index_add.

    out.index_add_(0, target, messages)       [nodes, channels] += [edges, channels] at whole rows
    torch.gather(scores, -1, index)           [heads, tokens, distances] by [heads, tokens, tokens]
    sums.index_add_(2, self.segment, x)       [N, T, segments] += [N, T, channels]: a channel goes with its segment

Along the dimension that the positions count, labels are pinned, unless the positions are known and the same everywhere:
then what is put in a place goes with the place, and what is gathered is an `index_select`. Along the others the
operands stand side by side: a position of one goes with the same position of the others, and of an index that was
expanded to that width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from prunec.compiler.ir.ops import argument, is_tensor, known, op_name, put, rank_of, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.broadcast import combine, pin_loose
from prunec.compiler.labels.flow import Fields, Flow, Gather, Labelled
from prunec.compiler.labels.propagate import dims_of, pin_value, unknown
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import Slim, on_op, rewriter

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
    placed = _placed(flow, node, wide, dim, argument(node, 2, "index"), 0)
    if placed is not None:
        return placed
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
    source = parts[2] if shape_of_argument(parts[2]) else None
    if source is not None and shape_of_argument(source) == shape_of_argument(parts[1]):
        placed = _placed(flow, node, (parts[0], source), dim, parts[1], dim)
        if placed is not None:
            return placed
    return combine(flow, node, [_beside(flow, node, x, dim) for x in wide])


def _placed(flow: Flow, node: fx.Node, values: Sequence[Any], dim: int, index: object, along: int) -> Fields | None:
    """The fields of a value (the first) into which another is put at known places of `dim`: what comes to a place goes
    with it. None where the places aren't known, or no channels lie along `dim`; `along` is the index's dimension."""
    line = flow.known.line(index, along) if isinstance(index, fx.Node) else None
    met = [labels for value in values for labels in flow.fields(value) if labels.shape[dim] > 1]
    if line is None or all(map(flow.is_own, met)):
        return None
    places = line.cpu().numpy()
    operands: list[Operand] = []
    there: list[IntArray] = []
    for value in values:
        labels, rest = flow.along(value, dim, node)
        there.append(labels)
        shape = shape_of_argument(value)
        operands.append((rest, (*shape[:dim], 1, *shape[dim + 1 :])))
    if len(there) > 1:
        flow.unify(there[0][places], there[1], node)
        flow.count_matters(there[1], f"is put in a place at {node.name}")
        pin_loose(flow, (there[1],), f"is one of several copies that {node.name} adds up")
    if len(shape_of_argument(index)) == rank_of(node):
        labels, rest = flow.along(index, along, node)
        if flow.fields(index) != rest:
            flow.unify(labels, there[-1], node)
        operands.append((rest, (*shape_of_argument(index)[:dim], 1, *shape_of_argument(index)[dim + 1 :])))
    fields = combine(flow, node, operands)
    labels = there[0]
    if len(there) > 1 and all(map(flow.is_own, met[:1])):
        labels = labels.copy()
        labels[places] = there[1]
    return flow.separate((*fields, *flow.result(labels, rank_of(node), dim)), node)


@rewriter("index_add", "index_copy", "index_fill", "scatter", "scatter_add", "scatter_reduce")
def slim_places(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The known places of what is left, counted among the places that are left."""
    value, index = argument(old, 0, "input"), argument(old, 2, "index")
    rank = rank_of(old)
    dim = int(known(argument(old, 1, "dim"))) % rank
    vector = op_name(old).startswith("index_")
    kept = slim.kept(value, dim)
    name = "src" if not vector else "source"
    source = argument(old, 3, name)
    given = slim.kept(source, dim) if is_tensor(source) and shape_of_argument(source) else None
    if kept.all() and (given is None or given.all()):
        return
    line = slim.line(index, 0 if vector else dim)
    assert line is not None, "channels go along a dimension only where the places are known"
    places = line.cpu().numpy()
    stay = kept[places] if given is None else given
    left = slim.index((np.cumsum(kept) - 1)[places[stay]], new)
    put(new, 2, "index", left if vector else _spread(left, new, argument(new, 3, "src"), dim, rank))


def _spread(index: fx.Node, before: fx.Node, like: fx.Node, dim: int, rank: int) -> fx.Node:
    """A vector of places as an index of the shape of `like`, the same along all dimensions but `dim`."""
    shape = [-1 if d == dim else 1 for d in range(rank)]
    with before.graph.inserting_before(before):
        view = before.graph.call_method("view", (index, *shape))
        wide = before.graph.call_method("expand_as", (view, like))
    size = index.meta["val"].shape[0]
    view.meta = {**index.meta, "val": index.meta["val"].new_empty([size if d == dim else 1 for d in range(rank)])}
    wide.meta = {**index.meta, "val": index.meta["val"].new_empty(like.meta["val"].shape)}
    return wide


@on_op("gather", "take_along_dim", carries_copies=True)
def picked(flow: Flow, node: fx.Node) -> Labelled:
    """The elements at the positions in an index; along all other dimensions, value and index stand side by side."""
    value, index = argument(node, 0, "input"), argument(node, 2 if _is_gather(node) else 1, _index_name(node))
    given = argument(node, 1 if _is_gather(node) else 2, "dim")
    if given is None or not shape_of_argument(value):
        return unknown(flow, node)
    [dim] = dims_of(flow, given, len(shape_of_argument(value)))
    taken = _taken(flow, node, value, dim, index)
    if taken is not None:
        return taken
    if not _side_by_side([value, index], dim):
        return unknown(flow, node)
    index_operand = flow.fields(index), shape_of_argument(index)
    return combine(flow, node, [_beside(flow, node, value, dim), index_operand])


def _taken(flow: Flow, node: fx.Node, value: object, dim: int, index: object) -> Fields | None:
    """The fields of what is gathered at known positions of a labelled dimension, the same everywhere; else None."""
    line = flow.known.line(index, dim) if isinstance(index, fx.Node) else None
    before, after = shape_of_argument(value), shape_of_argument(node)
    if line is None or (*before[:dim], *before[dim + 1 :]) != (*after[:dim], *after[dim + 1 :]):
        return None
    if not isinstance(value, fx.Node) or all(labels.shape[dim] == 1 for labels in flow.fields(value)):
        return None
    places = line.cpu().numpy() % before[dim]
    flow.pin_all(flow.fields(index), f"is an index at {node.name}")
    flow.gathers[node] = Gather(value, dim, places)
    fields: list[IntArray] = []
    for labels in flow.fields(value):
        piece = np.take(labels, places, axis=dim) if labels.shape[dim] > 1 else labels
        if piece is not labels:
            flow.covers.append(piece)
        fields.append(piece)
    return flow.moved(fields, node)


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
