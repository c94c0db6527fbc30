"""The slices of a tensor along one dimension: as rows, their sums, and numbers for slices laid back over the tensor.

    weight [out, in, k, k], dim 0                       sums [out]
    dim 1                                               sums [in]
    grouped, weight [out, in / groups, k, k], dim 1     sums [in]: one for each channel, over the rows that read it

A grouped weight's dimension 1 is counted as in `Program.groups_along`. Of a transposed convolution it has the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def slice_sums(values: Tensor, dim: int, groups: int = 1) -> Tensor:
    """The sum of the elements of every slice, [slices]."""
    if groups > 1:
        parts = values.reshape(groups, -1, *values.shape[1:])
        return parts.sum([1, *range(3, parts.ndim)]).flatten()
    rest = [d for d in range(values.ndim) if d != dim]
    return values.sum(rest) if rest else values


def slice_rows(values: Tensor, dim: int, groups: int = 1) -> Tensor:
    """A view of a tensor whose slices come first: `[groups, slices / groups, ...]`."""
    if groups > 1:
        return values.view(groups, -1, *values.shape[1:]).movedim(2, 1)
    return values.movedim(dim, 0).unsqueeze(0)


def over_slices(numbers: Tensor, shape: Sequence[int], dim: int, groups: int = 1) -> Tensor:
    """A number for every slice, [slices], in a shape that broadcasts against the tensor's."""
    if groups > 1:
        grid = numbers.view(groups, 1, shape[1]).expand(groups, shape[0] // groups, shape[1])
        return grid.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
    return numbers.view([-1 if d == dim else 1 for d in range(len(shape))])
