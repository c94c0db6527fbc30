"""Copies: expand, repeat, and tensors of one value."""

from __future__ import annotations

from typing import Final

import torch

from prunec.compiler.targets.onnx.call import Call, on_op
from prunec.compiler.targets.onnx.sizes import Size


@on_op("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> str:
    """One position seen as many; a dimension that is as long already needs no size."""
    old, new = call.shape_of(call.subject), call.shape
    if old == new:
        return call.first
    padded: list[Size] = [*[1] * (len(new) - len(old)), *old]
    sizes: list[Size] = [1 if a == b else b for a, b in zip(padded, new, strict=True)]
    return call.add("Expand", call.first, call.graph.shape(sizes))


@on_op("repeat", "tile")
def repeat(call: Call) -> str:
    """The whole of a dimension, several times."""
    given = call.node.args[1:] or tuple(call.node.kwargs.values())
    counts = list(call.plain(given[0] if len(given) == 1 and not isinstance(given[0], int) else given))
    counts = counts if all(isinstance(n, int) for n in counts) else call.decline("its counts are no numbers")
    rank, old = call.rank, call.shape_of(call.subject)
    whole: list[Size] = [*[1] * (rank - len(old)), *old]
    name = call.reshaped(call.first, old, whole)
    counts = [1] * (rank - len(counts)) + counts
    return name if all(n == 1 for n in counts) else call.add("Tile", name, call.numbers(*counts))


@on_op("repeat_interleave")
def repeat_each(call: Call) -> str:
    """Every position of a dimension, several times in a row."""
    count, dim = call.literal(1, "repeats"), call.literal(2, "dim")
    if not isinstance(count, int) or dim is None:
        call.decline("its counts differ")
    old = call.shape_of(call.subject)
    axis = call.bound(dim, len(old))
    column = call.add("Unsqueeze", call.first, call.numbers(axis + 1))
    sizes = [1] * (len(old) + 1)
    sizes[axis + 1] = count
    copied = call.add("Expand", column, call.numbers(*sizes))
    return call.reshaped(copied, (*old[: axis + 1], count, *old[axis + 1 :]), call.shape)


_VALUES: Final = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1}


@on_op(*_VALUES)
def filled(call: Call) -> str | torch.Tensor:
    """Zeros or ones: a constant where the shape is known, else as many as the batch asks for."""
    return _filled(call, _VALUES[call.kind])


@on_op("full", "full_like", "new_full")
def full(call: Call) -> str | torch.Tensor:
    """One number everywhere."""
    value = call.given(2 if call.kind == "new_full" else 1, "fill_value")
    if call.is_tensor(value):
        call.decline("its value is a tensor")
    return _filled(call, call.plain(value))


def _filled(call: Call, value: float) -> str | torch.Tensor:
    sizes = [size for size in call.shape if isinstance(size, int)]
    if len(sizes) == len(call.shape):
        return torch.full(sizes, value, dtype=call.dtype)
    return call.add("Expand", call.scalar(value), call.graph.shape(call.shape))
