"""The elements of a parameter that belong to each position of one of its axes, as rows of a matrix.

Conv2d weight [out, in, k, k]             axis 0: [out, in * k * k]     axis 1: [in, out * k * k]
grouped, weight [out, in / groups, k, k]  axis 0: the same              axis 1: [in, out / groups * k * k]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from prunec.compiler.ir.program import Axis, Program

SCRATCH: Final = 2**18
"""Elements that are computed at a time: new memory takes longer to get than to fill."""


def axis_rows(program: Program, axis: Axis, values: Tensor | None = None) -> Tensor:
    """The axis's tensor as a matrix [positions, elements]: row p holds what is removed with position p.

    `values` takes the tensor's place where figures of its elements are asked for (gradients); it has its shape.

    Dimension 1 of a grouped convolution's weight (see `Program.groups_along`) has a row for each channel that it
    counts, holding the columns that read it.
    """
    tensor = program.tensors[axis.tensor].detach() if values is None else values
    groups = program.groups_along(axis)
    if groups == 1:
        return tensor.movedim(axis.dim, 0).reshape(tensor.shape[axis.dim], -1)
    rows = tensor.reshape(groups, -1, *tensor.shape[1:])  # [groups, rows of a group, dim 1, kernel...]
    return rows.movedim(2, 1).flatten(0, 1).flatten(1)


def axis_sums(
    program: Program, axis: Axis, function: Callable[..., Tensor], memo: dict[str, tuple[Tensor, Tensor]]
) -> Tensor:
    """For each position of an axis, the sum of an elementwise function over its elements; in float32 at least.

    `function` takes a parameter `out`, like `torch.square`. `memo` holds, by tensor, the sums of its rows and of its
    columns, which are found in one pass.
    """
    tensor = program.tensors[axis.tensor].detach()
    if axis.dim > 1 or tensor.ndim < 2 or program.size(axis) != tensor.shape[axis.dim]:  # the last: grouped
        return _row_sums(axis_rows(program, axis), function)[0]
    if axis.tensor not in memo:
        memo[axis.tensor] = _row_sums(tensor.flatten(1), function, tensor.shape[1])
    return memo[axis.tensor][axis.dim]


def _row_sums(rows: Tensor, function: Callable[..., Tensor], columns: int = 1) -> tuple[Tensor, Tensor]:
    """The sums of rows, and of runs of `columns` columns. Some rows at a time, always in the same memory."""
    if rows.numel() <= SCRATCH:
        block, dtype = function(rows), torch.promote_types(rows.dtype, torch.float32)
        return block.sum(1, dtype=dtype), block.sum(0, dtype=dtype).view(columns, -1).sum(1)
    count = max(1, SCRATCH // max(rows.shape[1], 1))
    scratch = rows.new_empty(min(count, len(rows)), rows.shape[1])
    dtype = torch.promote_types(rows.dtype, torch.float32)
    beside = rows.new_empty(len(rows), dtype=dtype)
    below = rows.new_zeros(rows.shape[1], dtype=dtype)
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        block = function(part, out=scratch[: len(part)])
        torch.sum(block, 1, dtype=dtype, out=beside[start : start + count])
        below += block.sum(0, dtype=dtype)
    return beside, below.view(columns, -1).sum(1)
