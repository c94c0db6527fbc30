"""The elements of a parameter that belong to each position of one of its axes, as rows of a matrix.

Conv2d weight [out, in, k, k]             axis 0: [out, in * k * k]     axis 1: [in, out * k * k]
grouped, weight [out, in / groups, k, k]  axis 0: the same              axis 1: [in, out / groups * k * k]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.ir.program import Axis, BoolArray, Program

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


def zero_rows(program: Program, axis: Axis) -> BoolArray:
    """[positions of the axis]: which hold zeros alone. A tensor none of whose rows begins with a zero isn't read
    further."""
    tensor = program.tensors[axis.tensor].detach()
    if program.groups_along(axis) == 1 and tensor.numel():
        firsts = _firsts(tensor, axis.dim)
        if bool(firsts.all()):
            return np.zeros(len(firsts), dtype=bool)
    return np.asarray((axis_rows(program, axis, tensor) == 0).all(1).numpy(force=True))


def _firsts(tensor: Tensor, dim: int) -> np.ndarray[Any, Any]:
    """The first element of each row along a dimension, as numpy has it, which is faster with few: only whether they
    are zero counts."""
    place = tuple(slice(None) if d == dim else 0 for d in range(tensor.ndim))
    known = tensor.dtype is torch.float32 and tensor.device.type == "cpu"
    return tensor.numpy()[place] if known else (tensor[place] != 0).numpy(force=True)


Sums = tuple[Tensor | None, Tensor | None]
"""The sums of a tensor's rows and columns, as far as they are known."""


def axis_sums(
    program: Program, axis: Axis, function: Callable[..., Tensor], memo: dict[str, Sums], *, both: bool = False
) -> Tensor:
    """For each position of an axis, the sum of an elementwise function over its elements; in float32 at least.

    `function` takes a parameter `out`, like `torch.square`. `memo` holds the sums of tensors that were found before;
    where `both` rows and columns will be asked for, they are found in one pass.
    """
    tensor = program.tensors[axis.tensor].detach()
    if axis.dim > 1 or tensor.ndim < 2 or program.size(axis) != tensor.shape[axis.dim]:  # the last: grouped
        return _known(_sums(axis_rows(program, axis), function, 1, (True, False))[0])
    found = memo.get(axis.tensor, (None, None))
    if found[axis.dim] is None:
        new = _sums(tensor.flatten(1), function, tensor.shape[1], (both or axis.dim == 0, both or axis.dim == 1))
        found = memo[axis.tensor] = (new[0] if found[0] is None else found[0], new[1] if found[1] is None else found[1])
    return _known(found[axis.dim])


def _known(sums: Tensor | None) -> Tensor:
    assert sums is not None, "these sums were asked for"
    return sums


def _sums(rows: Tensor, function: Callable[..., Tensor], columns: int, wanted: tuple[bool, bool]) -> Sums:
    """The sums of rows, and of runs of `columns` columns, where they are wanted. Some rows at a time, always in the
    same memory."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    if rows.numel() <= SCRATCH:
        block = function(rows)
        beside = block.sum(1, dtype=dtype) if wanted[0] else None
        return beside, block.sum(0, dtype=dtype).view(columns, -1).sum(1) if wanted[1] else None
    count = max(1, SCRATCH // max(rows.shape[1], 1))
    scratch = rows.new_empty(min(count, len(rows)), rows.shape[1])
    beside = rows.new_empty(len(rows), dtype=dtype) if wanted[0] else None
    below = rows.new_zeros(rows.shape[1], dtype=dtype) if wanted[1] else None
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        block = function(part, out=scratch[: len(part)])
        if beside is not None:
            torch.sum(block, 1, dtype=dtype, out=beside[start : start + count])
        if below is not None:
            below += block.sum(0, dtype=dtype)
    return beside, None if below is None else below.view(columns, -1).sum(1)
