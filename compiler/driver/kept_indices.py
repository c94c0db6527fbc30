"""What a lock says of a tensor, as indices into it.

    lock["removed"]["conv.weight"]    {"0": [1], "1": [1]}
    lock["grouped"]                   {"conv.weight": 2}          conv.weight [2, 2, 3, 3]: 2 groups of 2 input channels

A lock counts the input channels of a grouped convolution over all groups, as its input has them, and so it counts past
the size of the weight's dimension 1: position p is column `p % columns` in the rows of group `p // columns`. (Of a
transposed convolution, whose weight is [in, out / groups, ...], these are output channels.) Everywhere else a position
is an index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def kept_indices(lock: Mapping[str, Any], name: str, shape: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Indices into a parameter or buffer of the original, which give what is left of it.

    `original[kept_indices(lock, name, original.shape)]` has the shape of the slim tensor of that name; and its values,
    where the passes only removed channels. One int64 tensor a dimension, which broadcast to the slim tensor's shape.
    `lock` is `Result.lock`, or what plan.lock.json holds.

    Raises ValueError where the shape isn't the original's.
    """
    removed = lock["removed"].get(name, {})
    if any(int(dim) >= len(shape) for dim in removed):
        raise ValueError(f"{name} has {len(shape)} dimensions, and the lock removes from {', '.join(removed)}")
    groups = (lock.get("grouped") or {}).get(name, 1)
    sizes = [size * (groups if dim == 1 else 1) for dim, size in enumerate(shape)]
    masks = [_mask(name, size, removed.get(str(dim), [])) for dim, size in enumerate(sizes)]
    kept = [mask.nonzero().flatten() for mask in masks]
    indices = [_along(index, dim, len(shape)) for dim, index in enumerate(kept)]
    if groups > 1:
        group = kept[0] // (shape[0] // groups)  # of each row that is left
        columns = masks[1].reshape(groups, shape[1])[group].nonzero()[:, 1].reshape(len(kept[0]), -1)
        indices[1] = columns.reshape(*columns.shape, *[1] * (len(shape) - 2))
    return tuple(indices)


def _mask(name: str, size: int, removed: Sequence[int]) -> torch.Tensor:
    """Which positions of a dimension are left."""
    if removed and max(removed) >= size:
        raise ValueError(f"{name} has {size} positions where the lock removes position {max(removed)}")
    mask = torch.ones(size, dtype=torch.bool)
    mask[torch.tensor(removed, dtype=torch.long)] = False
    return mask


def _along(index: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    return index.reshape([-1 if d == dim else 1 for d in range(rank)])
