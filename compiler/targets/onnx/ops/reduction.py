"""Reductions over dimensions, and softmax."""

from __future__ import annotations

import torch
from torch import nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op


def _dims(call: Call, position: int = 1) -> list[int] | None:
    """The reduced dimensions, counted from the front; None for all."""
    dim = call.literal(position, "dim")
    if dim is None or dim in ((), []):
        return None
    rank = call.rank_of(call.subject)
    return [call.bound(each, rank) for each in (dim if isinstance(dim, list | tuple) else [dim])]


def _mean(call: Call, name: str, dims: list[int] | None, keep: bool) -> str:
    """A mean; over the places of images it is a pool, which runtimes do in their own layout."""
    if call.rank_of(call.subject) == 4 and dims is not None and sorted(dims) == [2, 3]:
        pooled = call.add("GlobalAveragePool", name)
        shape = call.shape_of(call.subject)
        return pooled if keep else call.reshaped(pooled, (*shape[:2], 1, 1), shape[:2])
    return call.reduced("ReduceMean", name, dims, keep)


@on_op("mean")
def mean(call: Call) -> str:
    """Means over dimensions, or over all."""
    return _mean(call, call.name(call.subject, call.dtype), _dims(call), bool(call.literal(2, "keepdim", False)))


def _plain(kind: str, *names: str) -> None:
    @on_op(*names)
    def row(call: Call) -> str:
        return call.reduced(
            kind, call.name(call.subject, call.dtype), _dims(call), bool(call.literal(2, "keepdim", False))
        )


_plain("ReduceSum", "sum")
_plain("ReduceMax", "amax")
_plain("ReduceMin", "amin")
_plain("ReduceLogSumExp", "logsumexp")


@on_op("max", "min")
def extreme(call: Call) -> tuple[str, str] | str:
    """Over all elements, or along a dimension with the places; of two tensors, the larger of each pair."""
    kind = "Max" if "max" in call.kind else "Min"
    second = call.given(1, "dim")
    other = call.given(1, "other") if second is None else second
    if other is not None and call.is_tensor(other):
        return call.add(kind, call.name(call.subject, call.dtype), call.name(other, call.dtype))
    if second is None:
        return call.reduced(f"Reduce{kind}", call.first, None, False)
    dim, keep = call.bound(call.plain(second), call.rank_of(call.subject)), bool(call.literal(2, "keepdim", False))
    values = call.reduced(f"Reduce{kind}", call.first, [dim], keep)
    return values, call.add(f"Arg{kind}", call.first, axis=dim, keepdims=int(keep))


@on_op("argmax", "argmin")
def extreme_place(call: Call) -> str:
    """The first place of the extreme along a dimension."""
    kind = "ArgMax" if "max" in call.kind else "ArgMin"
    dims = _dims(call)
    if dims is None:
        call.decline("it counts over all elements")
    return call.add(kind, call.first, axis=dims[0], keepdims=int(bool(call.literal(2, "keepdim", False))))


@on_op("var", "std")
def variance(call: Call) -> str:
    """The mean of squared differences from the mean, times n / (n - correction)."""
    dims = call.literal(1, "dim")
    if isinstance(dims, bool):
        call.decline("it is called with a flag alone")
    reduced = _dims(call)
    keep, correction = bool(call.literal(3, "keepdim", False)), _correction(call)
    shape = call.shape_of(call.subject)
    counted = [call.fixed(shape[dim]) for dim in (range(len(shape)) if reduced is None else reduced)]
    count = int(torch.Size(counted).numel())
    if count <= correction:
        call.decline("there are too few elements")
    centred = call.add("Sub", call.first, call.reduced("ReduceMean", call.first, reduced, True))
    found = call.reduced("ReduceSum", call.add("Mul", centred, centred), reduced, keep)
    found = call.add("Div", found, call.scalar(count - correction))
    return call.add("Sqrt", found) if "std" in call.kind else found


def _correction(call: Call) -> int:
    if len(call.node.args) > 2:
        return int(call.plain(call.node.args[2]))
    return int(call.plain(call.node.kwargs.get("correction", call.node.kwargs.get("unbiased", True))))


@on_op("norm", "linalg_vector_norm")
def norm(call: Call) -> str:
    """The first and second norm over dimensions."""
    power = call.literal(1, "p" if "p" in call.node.kwargs else "ord", 2)
    if power not in (1, 2, "fro") or call.literal(4, "dtype") is not None:
        call.decline(f"the norm of power {power}")
    keep = bool(call.literal(3, "keepdim", False))
    return call.reduced("ReduceL1" if power == 1 else "ReduceL2", call.first, _dims(call, 2), keep)


@on_module(nn.Softmax, nn.LogSoftmax)
@on_op("softmax", "log_softmax")
def softmax(call: Call) -> str:
    """Shares along a dimension, or their logarithms."""
    kind = call.kind
    dim = call.option(1, "dim")
    if dim is None:
        call.decline("its dimension is left to torch")
    made = "LogSoftmax" if kind.lower().replace("_", "").startswith("log") else "Softmax"
    return call.add(made, call.name(call.subject, call.dtype), axis=call.bound(dim, call.rank))


@on_op("cumsum")
def cumulative_sum(call: Call) -> str:
    """Sums of all so far along a dimension."""
    axis = call.bound(call.literal(1, "dim"), call.rank)
    return call.add("CumSum", call.name(call.subject, call.dtype), call.graph.constant(axis, torch.int64))
