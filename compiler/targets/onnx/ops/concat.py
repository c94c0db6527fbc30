"""Joining, cutting and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunec.compiler.targets.onnx.call import Call, on_op
from prunec.compiler.targets.onnx.ops.conv import padded


@on_op("cat", "concat", "concatenate")
def concat(call: Call) -> str:
    """Tensors side by side."""
    parts = call.given(0, "tensors")
    axis = call.bound(call.literal(1, "dim", 0), call.rank)
    names = [call.cast(name, dtype, call.dtype) for name, dtype in _typed(call, parts)]
    return names[0] if len(names) == 1 else call.add("Concat", *names, axis=axis)


def _typed(call: Call, parts: Any) -> list[tuple[str, Any]]:
    """Name and type of each tensor of a list; torch drops empty vectors, which are declined."""
    values = call.example(parts)
    if any(value.numel() == 0 for value in values):
        call.decline("a part is empty")
    return [(name, value.dtype) for name, value in zip(call.names(parts), values, strict=True)]


@on_op("stack")
def stack(call: Call) -> str:
    """Tensors along a new dimension."""
    axis = call.bound(call.literal(1, "dim", 0), call.rank)
    typed = _typed(call, call.given(0, "tensors"))
    names = [call.add("Unsqueeze", call.cast(name, dtype, call.dtype), call.numbers(axis)) for name, dtype in typed]
    return names[0] if len(names) == 1 else call.add("Concat", *names, axis=axis)


@on_op("chunk", "split", "tensor_split", "split_with_sizes")
def split(call: Call) -> Sequence[str]:
    """Pieces along a dimension; their sizes are known."""
    axis = call.bound(call.literal(2, "dim", 0), call.rank_of(call.subject))
    sizes = [call.fixed(shape[axis]) for shape in call.shapes]
    if len(sizes) == 1:
        return (call.first,)
    return call.graph.add_many("Split", len(sizes), call.first, call.numbers(*sizes), axis=axis)


@on_op("unbind")
def unbind(call: Call) -> Sequence[str]:
    """Each position of a dimension by itself."""
    axis = call.bound(call.literal(1, "dim", 0), call.rank_of(call.subject))
    count = len(call.shapes)
    if count != call.fixed_shape_of(call.subject, [axis])[0]:
        call.decline("the number of parts follows the batch")
    return [
        call.add("Gather", call.first, call.graph.constant(place, torch.int64), axis=axis) for place in range(count)
    ]


@on_op("narrow")
def narrow(call: Call) -> str:
    """Some positions in a row."""
    axis, start, length = call.literal(1, "dim"), call.literal(2, "start"), call.literal(3, "length")
    axis = call.bound(axis, call.rank)
    start = call.bound(start, call.fixed_shape_of(call.subject, [axis])[0])
    return call.add("Slice", call.first, call.numbers(start), call.numbers(start + length), call.numbers(axis))


@on_op("pad")
def pad(call: Call) -> str:
    """Torch counts from the last dimension: (left, right, top, bottom)."""
    given = list(call.literal(1, "pad"))
    mode, value = call.literal(2, "mode", "constant"), call.literal(3, "value")
    if not any(given):
        return call.first
    if min(given) < 0 and mode != "constant":
        call.decline("it cuts")
    pads = [*given[::2][::-1], *given[1::2][::-1]]
    return padded(call, call.first, call.rank, pads, mode, 0.0 if value is None else value)
