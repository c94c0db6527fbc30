"""Marks of tensors that a forward makes, and of what is written into them.

y = torch.zeros(2, 4)     F F F F    a constant
y[:, :2] = x              K R F F    x's marks, where its data go
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.ir.ops import words
from prunec.compiler.verify.masks import Call, Marked, compressed, freely, full_marks, plain
from prunec.compiler.verify.ops.indexing import settled_index
from prunec.compiler.verify.table import row


@row(
    *words("""
        zeros ones full empty arange linspace eye tensor zeros_like ones_like full_like empty_like new_zeros
        new_ones new_full new_empty new_tensor new rand_like randn_like
    """),
    marking=True,
)
def _create(call: Call) -> Any:
    """Constructors, also those after another tensor (`zeros_like`): all FREE."""
    return freely(call.plain())


@row("setitem")
def _assign(call: Call) -> None:
    """`x[index] = value`: the value's marks are written as its data are. Into a tensor that is kept everywhere, and so
    has no marks, nothing removed may be written."""
    target, index, value = call.args
    index = settled_index(call, target, index)
    if not isinstance(target, Marked):
        if any(isinstance(x, Marked) and x.has_removed for x in pytree.tree_leaves((index, value))):
            raise call.error("removed channels are written into a tensor that is kept")
        call.plain()
        return
    if not isinstance(value, Tensor | Marked):
        call.plain()  # a number is kept or removed with the channel that it is written to
        return
    marks = full_marks(target).clone()
    marks[plain(index)] = full_marks(value)
    call.plain()
    target.write(compressed(marks.to(torch.uint8)))
