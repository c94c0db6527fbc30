"""Norms and PReLU: layers that carry channels along, each with vectors as long as the channels.

    BatchNorm2d     weight, bias, running_* [C]   bound to the labels that arrive, which pass; any channel may go
    LayerNorm       weight, bias [C]              so too: the statistics are those of the channels that are kept
    GroupNorm       weight, bias [C]              groups go as a whole, or stay equally wide
    PReLU           weight [C]                    bound like a batch norm's

As functions they take the vectors as values of the graph, whose labels unify with those that arrive.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, known, op_name, put, rank_of, shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray
from prunec.compiler.labels.broadcast import combine, operand, whole
from prunec.compiler.labels.flow import FIXED, Fields, Flow, Labelled
from prunec.compiler.labels.grouped import granularity_of, keep_even
from prunec.compiler.labels.heads import shared
from prunec.compiler.labels.propagate import describe, subject
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import Slim, on_module, on_op, repeats_tensors, repeats_value, rewriter


def _carry(flow: Flow, node: fx.Node, labels: IntArray, names: Iterable[str], dim: int = 0) -> None:
    """Bind dimension `dim` of the module's vectors to flat labels; where it has none, its width (`Flow.same_width`)."""
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.Module)
    mine = [name for name in names if module._parameters.get(name, module._buffers.get(name)) is not None]
    for name in mine:
        flow.bind(Axis(f"{node.target}.{name}", dim), labels, node, "carrier")
    if not mine:
        flow.same_width(f"{node.target}[{dim}]", labels, node)


_VECTORS = ("weight", "bias", "running_mean", "running_var")


@on_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@on_module(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def channel_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Each channel by itself: dimension 1 passes; of an image without a batch, dimension 0."""
    value, module = subject(flow, node), flow.program.state[str(node.target)]
    dim = 0 if isinstance(module, nn.modules.instancenorm._InstanceNorm) and _is_single(module, rank_of(node)) else 1
    fields = shared(flow, node, value, dim)
    labels, rest = flow.along_of(fields, shape_of_argument(value), dim, node)
    normalised = [f for f in rest if any(size > 1 for size in f.shape[dim + 1 :])]
    flow.pin_all(normalised, f"is normalised over at {node.name}")
    if rest and getattr(module, "running_mean", None) is None:
        flow.pin_all(rest, f"is normalised over at {node.name}")
    _carry(flow, node, labels, _VECTORS)
    return fields


def _is_single(module: nn.modules.instancenorm._InstanceNorm, rank: int) -> bool:
    return rank == int(module._get_no_batch_dim())  # type: ignore[no-untyped-call]


@on_module(nn.LayerNorm, nn.RMSNorm)
def layer_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Statistics over the trailing dimensions, of the channels that are kept."""
    module, value = flow.program.state[str(node.target)], subject(flow, node)
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    rank = len(module.normalized_shape)
    fields = _by_heads(flow, node, value, rank)
    for index in range(rank):
        labels = _line(flow, fields, shape_of_argument(value), index - rank)
        flow.count_matters(labels, f"is counted by {describe(flow, node)}")
        _carry(flow, node, labels, ("weight", "bias"), dim=index)
    return fields


def _by_heads(flow: Flow, node: fx.Node, value: object, rank: int) -> Fields:
    """The fields before statistics over the last `rank` dimensions. One that varies elsewhere too (the widths of all
    heads) loses whole heads: the norm's vectors, which all heads share, stay. Where the plan says so, it loses the same
    positions of every head, and of the vectors."""
    before = flow.fields(value)
    out: list[IntArray] = []
    for labels in shared(flow, node, value, -1, fallback="heads") if rank == 1 else before:
        mine = [d for d in range(labels.ndim - rank, labels.ndim) if labels.shape[d] > 1]
        if labels.size > elements([labels.shape[d] for d in mine]) or len(mine) > 1:
            block = flow.divided.get(node.name)
            if rank == 1 and block is not None and block.kind == "attention" and mine:
                out += flow.result(flow.collapse(labels, mine[0], node), labels.ndim, mine[0])
                continue
            for dim in mine:
                labels = whole(flow, labels, dim, node)
        out.append(labels)
    same = len(out) == len(before) and all(a is b for a, b in zip(out, before, strict=True))
    return before if same else flow.moved(out, node)


def _line(flow: Flow, fields: Fields, shape: tuple[int, ...], dim: int) -> IntArray:
    """The flat labels of a dimension along which at most one field varies; FIXED where none does."""
    found = next((f for f in fields if f.shape[dim] > 1), None)
    return np.full(shape[dim], FIXED, dtype=np.int64) if found is None else flow.flat(found)


@on_module(nn.GroupNorm)
def group_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Statistics over each group of channels."""
    module, value = flow.program.state[str(node.target)], subject(flow, node)
    assert isinstance(module, nn.GroupNorm)
    labels = _group_statistics(flow, node, value, module.num_groups)
    _carry(flow, node, labels, ("weight", "bias"))
    return flow.fields(value)


def _group_statistics(flow: Flow, node: fx.Node, value: object, groups: int) -> IntArray:
    """Bring the channels of a group norm under its granularity: groups stay equally wide or go as a whole; of groups of
    one channel, any may go. Returns their flat labels."""
    labels, rest = flow.along(value, 1, node)
    flow.pin_all((f for f in rest if any(size > 1 for size in f.shape[2:])), f"is normalised over at {node.name}")
    if groups < labels.size:
        rows = labels.reshape(groups, -1)
        if granularity_of(flow, node, f"{groups} groups of {rows.shape[1]}", labels) == "whole":
            flow.unify(rows, rows[:, :1], node)
        else:
            keep_even(flow, node, rows)
        flow.count_matters(labels, f"is counted by {describe(flow, node)}")
    return labels


@on_op("group_norm")
def functional_group_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; weight and bias are values of the graph."""
    value, groups = argument(node, 0, "input"), int(flow.constant(argument(node, 1, "num_groups")))
    labels = _group_statistics(flow, node, value, groups)
    for vector in (argument(node, 2 + i, name) for i, name in enumerate(("weight", "bias"))):
        if isinstance(vector, fx.Node):
            flow.unify(labels, flow.along(vector, 0, node)[0], node)
    return flow.fields(value)


@on_op("layer_norm", "rms_norm")
def functional_layer_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; weight and bias are values of the graph."""
    value, shape = argument(node, 0, "input"), flow.constant(argument(node, 1, "normalized_shape"))
    names = ("weight", "bias") if op_name(node) == "layer_norm" else ("weight",)
    parts = [argument(node, 2 + i, name) for i, name in enumerate(names)]
    fields = _by_heads(flow, node, value, len(shape))
    for labels in fields:
        if any(size > 1 for size in labels.shape[-len(shape) :]):
            flow.count_matters(flow.flat(labels), f"is counted by {node.name}")
    operands = [(fields, shape_of_argument(value)), *(operand(flow, p) for p in parts if p is not None)]
    return combine(flow, node, operands)


@on_op("batch_norm", "instance_norm")
def functional_batch_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; the four vectors are values of the graph, or constants."""
    value = argument(node, 0, "input")
    fields = shared(flow, node, value, 1)
    labels, rest = flow.along_of(fields, shape_of_argument(value), 1, node)
    by_itself = op_name(node) == "batch_norm" and isinstance(argument(node, 1, "running_mean"), fx.Node)
    mixes = [f for f in rest if not by_itself or any(size > 1 for size in f.shape[2:])]
    flow.pin_all(mixes, f"is normalised over at {node.name}")
    for index, name in enumerate(("running_mean", "running_var", "weight", "bias"), start=1):
        vector = argument(node, index, name)
        if isinstance(vector, fx.Node):
            flow.unify(labels, flow.along(vector, 0, node)[0], node)
    return fields


@on_module(nn.PReLU)
def prelu(flow: Flow, node: fx.Node) -> Labelled:
    """One slope, or one a channel."""
    value, module = subject(flow, node), flow.program.state[str(node.target)]
    assert isinstance(module, nn.PReLU)
    if module.num_parameters > 1:
        _carry(flow, node, flow.along(value, 1, node)[0], ("weight",))
    return flow.fields(value)


@on_op("prelu")
def functional_prelu(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; the slopes are a value of the graph."""
    value, weight = argument(node, 0, "input"), argument(node, 1, "weight")
    if np.prod(shape_of_argument(weight)) > 1:
        flow.unify(flow.along(weight, 0, node)[0], flow.along(value, 1, node)[0], node)
    return flow.fields(value)


@on_op("local_response_norm", reduces=True, carries_copies=True)
@on_module(nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.Softmax2d, reduces=True, carries_copies=True)
def over_neighbours(flow: Flow, node: fx.Node) -> Labelled:
    """Each channel is divided by what its neighbours, or all channels, hold: labels along the channels are pinned."""
    return mixed(flow, node, subject(flow, node), (rank_of(node) - 3, 1), "is normalised over")


# -- literal sizes -------------------------------------------------------------------------------------------------


@rewriter("layer_norm", "rms_norm", sized=True)
def normalized_shape(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The trailing sizes, as they are now."""
    given = slim.value(argument(old, 1, "normalized_shape"))
    wanted = tuple(slim.shape(old)[-len(given) :])
    if tuple(slim.value(size) for size in given) != wanted:
        put(new, 1, "normalized_shape", wanted)


@rewriter("group_norm")
def norm_groups(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """As many groups as keep a channel."""
    groups = int(known(argument(old, 1, "num_groups")))
    left = groups_left(slim.kept(old, 1), groups)
    if left != groups:
        put(new, 1, "num_groups", left)


# -- sizes that the modules repeat ---------------------------------------------------------------------------------


def groups_left(kept: npt.NDArray[np.bool_], groups: int) -> int:
    """How many of the equally wide groups of channels keep any."""
    return int(kept.reshape(groups, -1).any(axis=1).sum())


repeats_tensors(nn.modules.batchnorm._NormBase)(lambda m, t: {"num_features": len(next(iter(t.values())))})
repeats_tensors(nn.LayerNorm, nn.RMSNorm)(lambda m, t: {"normalized_shape": tuple(t["weight"].shape)})
repeats_tensors(nn.GroupNorm)(lambda m, t: {"num_channels": len(t["weight"])})
repeats_tensors(nn.PReLU)(lambda m, t: {"num_parameters": len(t["weight"])})

repeats_value(nn.modules.batchnorm._NormBase)(lambda m, shape, kept: {"num_features": shape[1]})
repeats_value(nn.LayerNorm, nn.RMSNorm)(lambda m, shape, kept: {"normalized_shape": shape[-len(m.normalized_shape) :]})
repeats_value(nn.GroupNorm)(
    lambda m, shape, kept: {"num_channels": shape[1], "num_groups": groups_left(kept, m.num_groups)}
)
