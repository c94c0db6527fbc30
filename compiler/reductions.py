"""Operations that mix what lies along some dimensions: pooling, interpolation, sums, softmax, GLU.

Labels along the other dimensions pass. Labels along the dimensions that are mixed are pinned, for a mean over the kept
channels alone is another number.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.combining import whole
from prunec.compiler.ir import IntArray
from prunec.compiler.labels import Fields, Flow, Labelled, shape_of_argument
from prunec.compiler.rules import (
    Rule,
    argument,
    dims_of,
    elementwise,
    on_module,
    on_op,
    op_name,
    rank_of,
    subject,
    without_labels,
)


def mixed(flow: Flow, node: fx.Node, value: object, dims: Iterable[int], verb: str) -> Fields:
    """The fields as they are when nothing may vary along `dims`.

    One that varies there alone is pinned; one that varies elsewhere too can lose what all positions of `dims` share.
    """
    rank = len(shape_of_argument(value))
    along = {d % max(rank, 1) for d in dims}
    kept: list[IntArray] = []
    for labels in flow.fields(value):
        here = [d for d in along if labels.shape[d] > 1]
        if here and labels.size == np.prod([labels.shape[d] for d in here]):
            flow.pin(labels, f"{verb} at {node.name}")
            continue
        for dim in here:
            labels = whole(flow, labels, dim, node)
        kept.append(labels)
    return flow.moved(kept, node) if any(map(operator.is_not, kept, flow.fields(value))) else tuple(kept)


def _local(width: int) -> Rule:
    def rule(flow: Flow, node: fx.Node) -> Labelled:
        fields = mixed(flow, node, subject(flow, node), range(-width, 0), "is pooled over")
        known = node.meta["val"]
        return fields if isinstance(known, torch.Tensor) else [fields for _ in known]

    return rule


for _width, _suffix in ((1, "1d"), (2, "2d"), (3, "3d")):
    for _pool in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool"):
        on_module(getattr(nn, _pool + _suffix))(_local(_width))
    on_op(*(f"{p}_pool{_suffix}" for p in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")))(_local(_width))
    for _pad in ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"):
        on_module(getattr(nn, _pad + _suffix))(_local(_width))


@on_module(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
@on_op("interpolate", "upsample")
def interpolation(flow: Flow, node: fx.Node) -> Labelled:
    """Everything behind the channel dimension is mixed."""
    return mixed(flow, node, subject(flow, node), range(2, rank_of(node)), "is interpolated over")


_DIM_AT = {"normalize": (2, 1), "norm": (2, None)}
"""Position of `dim` and its default, where these aren't 1 and None."""


@on_op("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp", "normalize")
@on_module(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def along_a_dimension(flow: Flow, node: fx.Node) -> Labelled:
    """Mixes one dimension and keeps its size."""
    position, default = _DIM_AT.get(op_name(node), (1, None))
    dim = argument(node, position, "dim", default)
    if node.op == "call_module":
        dim = getattr(flow.program.state[str(node.target)], "dim", None)
    return mixed(flow, node, subject(flow, node), dims_of(flow, dim, rank_of(node)), "is normalised over")


@on_op("mean", "sum", "amax", "amin", "var", "std", "max", "min", "norm", "logsumexp", "any", "all", "argmax", "argmin")
@on_op("median", "nansum", "nanmean", "var_mean", "std_mean", "aminmax")
def reduction(flow: Flow, node: fx.Node) -> Labelled:
    """Pins what is reduced, and drops its dimensions."""
    if op_name(node) in ("max", "min") and _is_tensor(argument(node, 1, "other")):
        return elementwise(flow, node)
    value, known = subject(flow, node), node.meta["val"]
    rank = len(shape_of_argument(value))
    parts = known if isinstance(known, tuple | list) else (known,)
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        return without_labels(flow, node)
    position, default = _DIM_AT.get(op_name(node), (1, None))
    gone = dims_of(flow, argument(node, position, "dim", default), rank)
    fields = mixed(flow, node, value, gone, "is reduced over")
    if parts[0].ndim < rank:
        fields = flow.moved((np.squeeze(f, axis=gone) for f in fields), node)
    return fields if isinstance(known, torch.Tensor) else [fields for _ in parts]


def _is_tensor(value: object) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


@on_module(nn.GLU)
@on_op("glu")
def gated(flow: Flow, node: fx.Node) -> Labelled:
    """The halves of one dimension are multiplied: each position goes with its partner."""
    value = subject(flow, node)
    dim = flow.constant(argument(node, 1, "dim", -1))
    if node.op == "call_module":
        dim = getattr(flow.program.state[str(node.target)], "dim", -1)
    labels, rest = flow.along(value, dim, node)
    halves = labels.reshape(2, -1)
    flow.unify(halves[0], halves[1], node)
    return (*rest, *flow.result(halves[0].copy(), rank_of(node), dim))


@on_op("tril", "triu")
def triangle(flow: Flow, node: fx.Node) -> Labelled:
    """Part of the last two dimensions is set to zero."""
    return mixed(flow, node, subject(flow, node), (-2, -1), "is cut at its diagonal")


@on_op("view_as_complex")
def as_complex(flow: Flow, node: fx.Node) -> Labelled:
    """The last dimension holds the two parts of a number, which go together."""
    value = subject(flow, node)
    return flow.moved((whole(flow, f, f.ndim - 1, node)[..., 0] for f in flow.fields(value)), node)


@on_op("view_as_real")
def as_real(flow: Flow, node: fx.Node) -> Labelled:
    """Both parts of a number go with it."""
    return tuple(f[..., None] for f in flow.fields(subject(flow, node)))
