"""What only moves elements: other shapes, dimensions in another order, rolls and flips."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from prunec.compiler.ir.graph import call as run
from prunec.compiler.targets.onnx.call import Call, on_module, on_op

_END: Final = 2**31 - 1
"""An end of a slice that reaches to the last element."""


@on_module(nn.Flatten, nn.Unflatten)
@on_op("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel")
def reshape(call: Call) -> str:
    """The shape that comes out is known."""
    if call.dtype != call.dtype_of(call.subject):
        call.decline("it reads the bytes as another type")
    return call.reshaped(call.first, call.shape_of(call.subject), call.shape)


@on_op("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint")
def permute(call: Call) -> str:
    """The order is what the call makes of a tensor whose sizes are all different."""
    rank = call.rank_of(call.subject)
    sizes = [2 + place for place in range(rank)]
    args, kwargs = _literals(call)
    probe = torch.empty(sizes, device="meta")
    moved = run(call.node, (probe, *args), kwargs)
    return call.transposed(call.first, [size - 2 for size in moved.shape])


def _literals(call: Call) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments behind the first operand."""
    given = {key: call.plain(value) for key, value in call.node.kwargs.items() if key not in {"input", "x", "a"}}
    return tuple(call.plain(value) for value in call.node.args[1:]), given


@on_op("getattr")
def attribute(call: Call) -> str:
    """`x.T`, `x.mT`, `x.data`."""
    name, rank = str(call.node.args[1]), call.rank_of(call.node.args[0])
    if name == "data":
        return call.name(call.node.args[0])
    orders = {"T": list(range(rank))[::-1], "mT": [*range(rank - 2), rank - 1, rank - 2]}
    if name not in orders:
        call.decline(f"the attribute '{name}'")
    return call.transposed(call.name(call.node.args[0]), orders[name])


@on_op("roll")
def roll(call: Call) -> str:
    """The last elements of a dimension come before the first."""
    shifts, dims = call.literal(1, "shifts"), call.literal(2, "dims")
    if dims is None or dims in ((), []):
        call.decline("it rolls over all elements")
    pairs = [(shifts, dims)] if isinstance(shifts, int) and isinstance(dims, int) else None
    pairs = list(zip(_listed(shifts), _listed(dims), strict=True)) if pairs is None else pairs
    name = call.first
    for shift, dim in pairs:
        axis = call.bound(dim, call.rank)
        size = call.fixed_shape_of(call.subject, [axis])[0]
        cut = size - shift % size if size else 0
        if 0 < cut < size:
            tail = call.add("Slice", name, call.numbers(cut), call.numbers(_END), call.numbers(axis))
            head = call.add("Slice", name, call.numbers(0), call.numbers(cut), call.numbers(axis))
            name = call.add("Concat", tail, head, axis=axis)
    return name


def _listed(value: object) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]


@on_op("flip")
def flip(call: Call) -> str:
    """Dimensions read backwards."""
    dims = call.literal(1, "dims") if "dims" in call.node.kwargs or len(call.node.args) == 2 else call.node.args[1:]
    axes = [call.bound(dim, call.rank) for dim in _listed(dims)]
    ones = [-1] * len(axes)
    return call.add(
        "Slice",
        call.first,
        call.numbers(*ones),
        call.numbers(*[-_END] * len(axes)),
        call.numbers(*axes),
        call.numbers(*ones),
    )
