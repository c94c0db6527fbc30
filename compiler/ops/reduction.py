"""Reductions, softmax, sorting: operations that mix what lies along some dimensions, with the others passing.

What becomes of labels along the dimensions that are mixed follows from what a removed channel is, a zero wherever it is
read:

    sum, norm        a zero adds nothing, so the labels may go; the result has none
    mean             the same, but zeros are counted: mean(left) * share of the channels left (`mean_of_all`)
    amax, amin       a zero may be the largest: relu(x.amax(1)), over the channels left (`with_a_zero`)
    var, std         zeros are counted, too: from the mean and variance of the channels left (`variance_of_all`)
    softmax, sort    a zero changes the result: pinned
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, is_tensor, known, op_name, rank_of, shape_of_argument, words
from prunec.compiler.labels.broadcast import combine
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import dims_of, subject, unknown, without_labels
from prunec.compiler.labels.reduce import added_up, mixed
from prunec.compiler.labels.registry import Slim, on_module, on_op, rewriter
from prunec.compiler.ops.elementwise import elementwise
from prunec.compiler.ops.sign_analysis import not_negative

_DIM_AT = {"normalize": (2, 1), "norm": (2, None), "linalg_norm": (2, None), "linalg_vector_norm": (2, None)}
"""Position of `dim` and its default, where these aren't 1 and None."""
_LAST = {**_DIM_AT, "topk": (2, -1), "sort": (1, -1), "argsort": (1, -1), "msort": (9, 0), "kthvalue": (2, -1)}
_LAST |= {"mode": (1, -1)}
"""The same for operations that sort or select."""

LARGEST = frozenset(["amax", "max"])
EXTREMES = LARGEST | frozenset(["amin", "min"])
"""Reductions to the largest or the smallest element."""


@on_op("softmax", "log_softmax", "softmin", "cumsum", "cumprod", "logcumsumexp", reduces=True, carries_copies=True)
@on_module(nn.Softmax, nn.LogSoftmax, nn.Softmin, reduces=True, carries_copies=True)
def along_a_dimension(flow: Flow, node: fx.Node) -> Labelled:
    """Operations that mix one dimension and keep its size."""
    dim = argument(node, 1, "dim")
    if node.op == "call_module":
        dim = getattr(flow.program.state[str(node.target)], "dim", None)
    return mixed(flow, node, subject(flow, node), dims_of(flow, dim, rank_of(node)), "is normalised over")


@on_op("normalize", reduces=True, carries_copies=True)
def normalised(flow: Flow, node: fx.Node) -> Labelled:
    """Each vector divided by its norm, which zeros don't change."""
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
    """A product and two norms over one dimension: labels of both operands unify along it."""
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
    """Whether zeros among the operands don't change a reduction's result, or its rewriter can make up for them."""
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


_POWERS: Mapping[str, tuple[str, object]] = {
    "norm": ("p", "fro"),
    "normalize": ("p", 2.0),
    "linalg_norm": ("ord", None),
    "linalg_vector_norm": ("ord", 2),
}
"""The argument that says which norm it is, and its default, by operation."""


def _positive(power: object) -> bool:
    return isinstance(power, int | float) and power > 0


def _gives_values_alone(node: fx.Node) -> bool:
    """Whether only the values of `max(x, dim)` are read, not their places."""
    return op_name(node) in ("max", "min") and all(
        user.op == "call_function" and op_name(user) in ("getitem", "getattr") and user.args[1] in (0, "values")
        for user in node.users
    )


def _holds_reals(value: object) -> bool:
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(known, torch.Tensor) and known.is_floating_point()


def _is_spread(flow: Flow, node: fx.Node, gone: Sequence[int]) -> bool:
    """Whether a reduction is a variance or deviation that `variance_of_all` computes from the channels that are left.

    Where it is corrected for the number of elements, this must not depend on the input.
    """
    if op_name(node) not in ("var", "std"):
        return False
    if correction(node) == 0:
        return True
    fields = flow.fields(argument(node, 0, "input"))
    return all(any(labels.shape[dim] > 1 for labels in fields) for dim in gone)


def correction(node: fx.Node) -> float:
    """What a variance subtracts from the number of elements; `unbiased` may stand in the place of the dimensions."""
    if "correction" in node.kwargs:
        given = node.kwargs["correction"]
        return 1.0 if given is None else float(known(given))
    flags = [arg for arg in node.args[1:3] if isinstance(arg, bool)]
    unbiased = node.kwargs.get("unbiased", flags[0] if flags else True)
    return float(bool(unbiased))


@on_op(
    *words("""
        mean sum amax amin var std max min norm logsumexp any all argmax argmin median nansum nanmean var_mean std_mean
        aminmax linalg_norm linalg_vector_norm prod
    """),
    reduces=True,
    carries_copies=True,
)
def reduction(flow: Flow, node: fx.Node) -> Labelled:
    """Adds up or pins the labels along what is reduced, and drops these dimensions."""
    if op_name(node) in ("max", "min") and is_tensor(argument(node, 1, "other")):
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
    """Which element comes where depends on all of them: labels along the sorted dimension are pinned, others pass."""
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


@on_op("tril", "triu", reduces=True, carries_copies=True)
def triangle(flow: Flow, node: fx.Node) -> Labelled:
    """Part of the last two dimensions is set to zero: labels along these are pinned."""
    return mixed(flow, node, subject(flow, node), (-2, -1), "is cut at its diagonal")


# -- what is left, as if the removed were zeros --------------------------------------------------------------------


@rewriter("mean")
def mean_of_all(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The mean over the channels that are left, times their share: the removed ones count as zeros."""
    left, size = left_of(argument(old, 0, "input"), known(argument(old, 1, "dim")), slim)
    if left == size:
        return
    with new.graph.inserting_before(new):
        inner = new.graph.create_node(new.op, new.target, new.args, new.kwargs)
    inner.meta = {**new.meta, "val": new.meta["val"].new_empty(slim.shape(old))}
    new.op, new.target = "call_function", operator.mul
    new.args, new.kwargs = (inner, left / size), {}


@rewriter("var", "std")
def variance_of_all(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A variance or deviation over the channels that are left, as if the removed ones were there as zeros.

        x.var(1)    with a share s of the channels left, of mean m and variance v    ->    s v + s (1 - s) m^2

    Both terms are positive, so nothing cancels. A correction for the number of elements is that of the old number.
    """
    value, dim = argument(old, 0, "input"), argument(old, 1, "dim")
    dim = None if isinstance(dim, bool) else known(dim)
    left, size = left_of(value, dim, slim)
    if left == size:
        return
    keep = old.kwargs.get("keepdim", old.kwargs.get("keepdims", len(old.args) > 3 and old.args[3]))
    options = {"dim": dim, "keepdim": keep} if dim is not None else {}
    share, narrow = left / size, new.meta["val"].new_empty(slim.shape(old))

    def made(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = new.graph.call_function(target, args, kwargs)
        node.meta = {**new.meta, "val": narrow}
        return node

    with new.graph.inserting_before(new):
        source, off = argument(new, 0, "input"), correction(old)
        inner = made(operator.mul, made(torch.var, source, correction=0, **options), share)
        mean = made(torch.square, made(torch.mean, source, **options))
        both = made(operator.add, inner, made(operator.mul, mean, share * (1 - share)))
        root = made(torch.sqrt, both) if op_name(old) == "std" else both
    factor = size / (size - off)
    new.op, new.target, new.kwargs = "call_function", operator.mul, {}
    new.args = (root, factor**0.5 if op_name(old) == "std" else factor)


@rewriter(*EXTREMES)
def with_a_zero(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The largest or smallest over the channels that are left, compared with a zero for the removed ones.

        x.amax(1)      with some of the channels left      ->    relu(x.amax(1))
        x.max(1)[0]                                        ->    relu(x).max(1)[0]
        x.amin(1)                                          ->    clamp_max(x.amin(1), 0)

    Where nothing below zero can arrive (`sign_analysis.not_negative`), the largest stays what it was.
    """
    value, second = argument(old, 0, "input"), argument(old, 1, "dim", old.kwargs.get("other"))
    if is_tensor(second) or not slim.compares_zeros(old):
        return  # the larger of two tensors, element by element
    left, size = left_of(value, known(second), slim)
    if left == size:
        return
    bound, rest = (torch.relu, ()) if op_name(old) in LARGEST else (torch.clamp_max, (0,))
    with new.graph.inserting_before(new):
        if isinstance(old.meta["val"], torch.Tensor):
            inner = new.graph.create_node(new.op, new.target, new.args, new.kwargs)
            inner.meta = {**new.meta, "val": new.meta["val"].new_empty(slim.shape(old))}
            new.op, new.target, new.args, new.kwargs = "call_function", bound, (inner, *rest), {}
        else:  # values and places
            source = argument(new, 0, "input")
            bounded = new.graph.call_function(bound, (source, *rest))
            bounded.meta = {**new.meta, "val": source.meta["val"]}
            new.replace_input_with(source, bounded)


def compares_zeros(flow: Flow, node: fx.Node) -> bool:
    """Whether zeros among what `amax` and the like compare may change the result."""
    return op_name(node) not in LARGEST or not not_negative(flow, argument(node, 0, "input"))


def left_of(value: object, dim: Any, slim: Slim) -> tuple[int, int]:
    """How many positions are left of those that a reduction takes together, and how many there were; `dim` names one
    dimension, several, or none for all."""
    rank = len(shape_of_argument(value))
    asked = range(rank) if dim is None or dim in ([], ()) else dim if isinstance(dim, tuple | list) else [dim]
    masks = [slim.kept(value, int(known(each)) % rank) for each in asked]
    return prod(int(mask.sum()) for mask in masks), prod(mask.size for mask in masks)
