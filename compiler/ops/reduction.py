"""Operations that mix what lies along some dimensions: pooling, sums, softmax, GLU.

Labels along the other dimensions pass. What becomes of labels along the dimensions that are mixed follows from what a
removed channel is, a zero wherever it is read:

    sum, norm        a zero adds nothing, so the labels may go; the result has none
    mean             the same, but zeros are counted: the mean over what is left is scaled (`rewriting.mean_of_all`)
    amax, amin       a zero may be the largest: compared with what is left (`extremes.with_a_zero`)
    var, std         zeros are counted, too: had from the mean and variance of what is left (`variance.spread`)
    softmax          a zero counts: pinned
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, op_name, rank_of, shape_of_argument
from prunec.compiler.labels.broadcast import combine
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import dims_of, elementwise, subject, unknown, without_labels
from prunec.compiler.labels.reduce import added_up, mixed
from prunec.compiler.labels.registry import Rule, on_module, on_op
from prunec.compiler.ops.extremes import EXTREMES
from prunec.compiler.ops.variance import correction


def padded(flow: Flow, node: fx.Node) -> Labelled:
    """A padding module: the dimensions that it makes longer, or shorter, are mixed."""
    amounts = getattr(flow.program.state[str(node.target)], "padding", ())
    dims = {-1 - place // 2 for place, amount in enumerate(amounts) if amount}
    return mixed(flow, node, subject(flow, node), dims, "is padded")


def _local(width: int) -> Rule:
    def rule(flow: Flow, node: fx.Node) -> Labelled:
        dims = [dim for dim, still in zip(range(-width, 0), _stands(flow, node, width), strict=True) if not still]
        fields = mixed(flow, node, subject(flow, node), dims, "is pooled over")
        known = node.meta["val"]
        return fields if isinstance(known, torch.Tensor) else [fields for _ in known]

    return rule


def _stands(flow: Flow, node: fx.Node, width: int) -> list[bool]:
    """For each of the last dimensions, whether a pooling looks at one element at a time there, each in its turn."""
    module = flow.program.state.get(str(node.target)) if node.op == "call_module" else None
    name = type(module).__name__.lower() if module is not None else op_name(node)
    if "pool" not in name or "lp" in name:
        return [False] * width

    def each(position: int, key: str) -> list[Any]:
        given = getattr(module, key, None) if module is not None else flow.constant(argument(node, position, key))
        return [*given] if isinstance(given, tuple | list) and len(given) == width else [given] * width

    if name.startswith("adaptive"):
        return [size is None for size in each(1, "output_size")]
    kernels = each(1, "kernel_size")
    strides = [
        kernel if stride in (None, []) else stride for kernel, stride in zip(kernels, each(2, "stride"), strict=True)
    ]
    rims = each(3, "padding")
    return [
        (kernel, stride) == (1, 1) and rim in (0, None)
        for kernel, stride, rim in zip(kernels, strides, rims, strict=True)
    ]


for _width, _suffix in ((1, "1d"), (2, "2d"), (3, "3d")):
    for _pool in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool"):
        on_module(getattr(nn, _pool + _suffix), reduces=True, carries_copies=True)(_local(_width))
    on_op(
        *(f"{p}_pool{_suffix}" for p in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")),
        reduces=True,
        carries_copies=True,
    )(_local(_width))
    on_op(*(f"{p}_pool{_suffix}_with_indices" for p in ("max", "adaptive_max")), reduces=True, carries_copies=True)(
        _local(_width)
    )
    for _pad in ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"):
        on_module(getattr(nn, _pad + _suffix), reduces=True, carries_copies=True)(padded)


_DIM_AT = {"normalize": (2, 1), "norm": (2, None), "linalg_norm": (2, None), "linalg_vector_norm": (2, None)}
"""Position of `dim` and its default, where these aren't 1 and None."""
_LAST = {**_DIM_AT, "topk": (2, -1), "sort": (1, -1), "argsort": (1, -1), "msort": (9, 0), "kthvalue": (2, -1)}
_LAST |= {"mode": (1, -1)}


@on_op("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp", reduces=True, carries_copies=True)
@on_module(nn.Softmax, nn.LogSoftmax, nn.Softmin, reduces=True, carries_copies=True)
def along_a_dimension(flow: Flow, node: fx.Node) -> Labelled:
    """Mixes one dimension and keeps its size."""
    dim = argument(node, 1, "dim")
    if node.op == "call_module":
        dim = getattr(flow.program.state[str(node.target)], "dim", None)
    return mixed(flow, node, subject(flow, node), dims_of(flow, dim, rank_of(node)), "is normalised over")


@on_op("local_response_norm", reduces=True, carries_copies=True)
@on_module(nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.Softmax2d, reduces=True, carries_copies=True)
def over_neighbours(flow: Flow, node: fx.Node) -> Labelled:
    """Each channel is divided by what its neighbours, or all channels, hold; dimension 1 but for an unbatched image."""
    return mixed(flow, node, subject(flow, node), (rank_of(node) - 3, 1), "is normalised over")


@on_op("normalize", reduces=True, carries_copies=True)
def normalised(flow: Flow, node: fx.Node) -> Labelled:
    """Divided by a norm, which zeros don't change."""
    value, rank = subject(flow, node), rank_of(node)
    dims = dims_of(flow, argument(node, 2, "dim", 1), rank)
    if not _ignores_zeros(flow, node):
        return mixed(flow, node, value, dims, "is normalised over")
    for labels in flow.fields(value):
        if any(labels.shape[d] > 1 for d in dims):
            flow.count_matters(labels.reshape(-1), f"is added up at {node.name}")
    return flow.fields(value)


@on_op("cosine_similarity", reduces=True, carries_copies=True)
@on_module(nn.CosineSimilarity, reduces=True, carries_copies=True)
def similarity(flow: Flow, node: fx.Node) -> Labelled:
    """A product and two norms over one dimension."""
    module = flow.program.state[str(node.target)] if node.op == "call_module" else None
    dim = module.dim if isinstance(module, nn.CosineSimilarity) else flow.constant(argument(node, 2, "dim", 1))
    pair = [argument(node, i, name) for i, name in enumerate(("x1", "x2"))]
    known = [shape_of_argument(value) for value in pair]
    gone = dim % max(map(len, known))
    if len(known[0]) != len(known[1]) or known[0][gone] != known[1][gone]:
        return unknown(flow, node)
    left, right = (flow.along(value, gone, node)[0] for value in pair)
    flow.unify(left, right, node)
    rest = [added_up(flow, node, value, (gone,)) for value in pair]
    shapes = [(*shape[:gone], 1, *shape[gone + 1 :]) for shape in known]
    fields = combine(flow, node, zip(rest, shapes, strict=True))
    return flow.moved((np.squeeze(f, axis=gone) for f in fields), node)


def _ignores_zeros(flow: Flow, node: fx.Node) -> bool:
    """Whether a reduction gives the same with zeros among its operands as without them, or can be told of them."""
    name = op_name(node)
    if name in ("sum", "nansum", "mean"):
        return True
    if name in EXTREMES:
        return _holds_reals(argument(node, 0, "input"))
    if name not in _POWERS:
        return False
    key, default = _POWERS[name]
    given = flow.constant(argument(node, 1, key, default))
    if name == "linalg_norm" and given is not None:
        dims = flow.constant(argument(node, 2, "dim"))
        return isinstance(dims, int) and _positive(given)  # of two dimensions it is a matrix norm
    return given in (None, "fro") or _positive(given)


def _gives_values_alone(node: fx.Node) -> bool:
    """Whether nobody reads the places of what `max(x, dim)` finds."""
    return op_name(node) in ("max", "min") and all(
        user.op == "call_function" and op_name(user) in ("getitem", "getattr") and user.args[1] in (0, "values")
        for user in node.users
    )


def _holds_reals(value: object) -> bool:
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(known, torch.Tensor) and known.is_floating_point()


def _is_spread(flow: Flow, node: fx.Node, gone: Sequence[int]) -> bool:
    """Whether a reduction is a variance or deviation that can be had from what is left (`variance.spread`).

    Where it is corrected for the number of elements, this must not depend on the input.
    """
    if op_name(node) not in ("var", "std"):
        return False
    if correction(node) == 0:
        return True
    fields = flow.fields(argument(node, 0, "input"))
    return all(any(labels.shape[dim] > 1 for labels in fields) for dim in gone)


_POWERS: Mapping[str, tuple[str, object]] = {
    "norm": ("p", "fro"),
    "normalize": ("p", 2.0),
    "linalg_norm": ("ord", None),
    "linalg_vector_norm": ("ord", 2),
}
"""The argument that says which norm it is, and its default."""


def _positive(power: object) -> bool:
    return isinstance(power, int | float) and power > 0


@on_op(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "max",
    "min",
    "norm",
    "logsumexp",
    "any",
    "all",
    "argmax",
    "argmin",
    reduces=True,
    carries_copies=True,
)
@on_op(
    "median",
    "nansum",
    "nanmean",
    "var_mean",
    "std_mean",
    "aminmax",
    "linalg_norm",
    "linalg_vector_norm",
    "prod",
    reduces=True,
    carries_copies=True,
)
def reduction(flow: Flow, node: fx.Node) -> Labelled:
    """Adds up or pins what is reduced, and drops its dimensions."""
    if op_name(node) in ("max", "min") and _is_tensor(argument(node, 1, "other")):
        return elementwise(flow, node)
    value, known = subject(flow, node), node.meta["val"]
    rank = len(shape_of_argument(value))
    parts = known if isinstance(known, tuple | list) else (known,)
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        return without_labels(flow, node)
    position, default = _DIM_AT.get(op_name(node), (1, None))
    gone = dims_of(flow, argument(node, position, "dim", default), rank)
    lone = isinstance(known, torch.Tensor)
    if ((lone or _gives_values_alone(node)) and _ignores_zeros(flow, node)) or (lone and _is_spread(flow, node, gone)):
        fields = added_up(flow, node, value, gone)
    else:
        fields = mixed(flow, node, value, gone, "is reduced over")
    if parts[0].ndim < rank:
        fields = flow.moved((np.squeeze(f, axis=gone) for f in fields), node)
    return fields if isinstance(known, torch.Tensor) else [fields for _ in parts]


@on_op("sort", "argsort", "topk", "msort", "kthvalue", "mode", "cummax", "cummin", reduces=True, carries_copies=True)
def ordered(flow: Flow, node: fx.Node) -> Labelled:
    """Which element comes where depends on all that are there; the labels along other dimensions pass."""
    value, known, name = subject(flow, node), node.meta["val"], op_name(node)
    position, default = _LAST.get(name, (1, None))
    if name in ("sort", "argsort") and "stable" in node.kwargs:
        default = argument(node, 2, "dim", default)
    rank = len(shape_of_argument(value))
    gone = dims_of(flow, argument(node, position, "dim", default), rank)
    fields = mixed(flow, node, value, gone, "is sorted over")
    parts = known if isinstance(known, tuple | list) else (known,)
    if parts[0].ndim < rank:
        fields = flow.moved((np.squeeze(f, axis=gone) for f in fields), node)
    return fields if isinstance(known, torch.Tensor) else [fields for _ in parts]


def _is_tensor(value: object) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


@on_module(nn.GLU, reduces=True, carries_copies=True)
@on_op("glu", reduces=True, carries_copies=True)
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


@on_op("tril", "triu", reduces=True, carries_copies=True)
def triangle(flow: Flow, node: fx.Node) -> Labelled:
    """Part of the last two dimensions is set to zero."""
    return mixed(flow, node, subject(flow, node), (-2, -1), "is cut at its diagonal")
