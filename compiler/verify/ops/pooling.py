"""Marks of pooling and interpolation: a window sees kept elements alone, or removed ones alone.

    K K R R R R    max_pool1d(2)    K R R
    K R R R R R    max_pool1d(2)    an error: the first window sees both

Mostly whole channels are removed, and the marks don't vary over the image at all.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.verify.masks import KEPT, REMOVED, Call, collapse, full_marks, mark, marks_of, plain
from prunec.compiler.verify.table import row


def windows(call: Call) -> Any:
    """Pooling and interpolation; the trailing dimensions that the name counts (`max_pool2d`: 2) are the image."""
    value = call.args[0] if call.args else call.kwargs["input"]
    digits = re.search(r"(\d)d", call.name)
    rank = plain(value).ndim
    space = range(rank - (int(digits.group(1)) if digits else rank - 2), rank)
    marks = marks_of(value)
    if "pool" in call.name and any(marks.shape[dim] > 1 for dim in space):
        marks = _pooled_marks(call, value)
    else:
        marks = collapse(call, marks, space, "the removed elements are no whole channels")
    return pytree.tree_map(partial(mark, marks=marks), call.plain())


def _pooled_marks(call: Call, value: Any) -> Tensor:
    """Marks that vary over the image, pooled: pooling, run on 0/1 tensors, says what each window has seen."""
    marks, dtype = full_marks(value), plain(value).dtype
    rest = {key: given for key, given in call.kwargs.items() if key != "input"}

    def seen(bit: int) -> Tensor:
        found: Tensor = pytree.tree_leaves(call.run((marks == bit).to(dtype), *call.args[1:], **rest))[0]
        return found > 0

    kept, removed = seen(KEPT), seen(REMOVED)
    if bool((kept & removed).any()):
        raise call.error("the removed elements are no whole channels")
    return kept.to(torch.uint8) * KEPT + removed.to(torch.uint8) * REMOVED


_POOLS: Final = [
    f"{adapt}{kind}_pool{rank}d" for adapt in ("", "adaptive_") for kind in ("avg", "max", "lp") for rank in (1, 2, 3)
]


row(*_POOLS, *(f"{pool}_with_indices" for pool in _POOLS))(windows)
