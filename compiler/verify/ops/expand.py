"""Copies of a value: of several, each may go with what it meets.

mask [N, 1, H, W]    kept        .expand(-1, C, -1, -1)  ->  [N, C, H, W]    FREE along the copies
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec.compiler.ir.ops import words
from prunec.compiler.verify.masks import FREE, KEPT, Call, Marked, mark, marks_of, plain
from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row


@row(*words("expand broadcast_to repeat tile repeat_interleave"), marking=True)
def _copied(call: Call) -> Any:
    """`expand`, `repeat` and their like: the copies of a kept element are FREE, since each may go with what it meets.
    Samples of a batch, which `expand` makes of one, stay kept."""
    copies = moved(call)
    if not isinstance(copies, Tensor | Marked):
        return copies
    before, after = plain(call.args[0]).shape, plain(copies).shape
    aligned = (1,) * (len(after) - len(before)) + tuple(before)
    longer = [d for d in range(len(after)) if after[d] > aligned[d]]
    samples = call.name in ("expand", "broadcast_to") and longer == [0] and aligned[0] == 1 and len(after) > 1
    if not longer or samples:
        return copies
    marks = marks_of(copies)
    return mark(plain(copies), torch.where(marks == KEPT, FREE, marks).to(torch.uint8))
