"""Elements, slices and positions of a value: the index is run on the marks.

A mask among the indices may lose positions, if the value loses the same along the dimension that it chooses from, or
has constants there: then it is run as it was, and what it chooses of the removed positions is removed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.verify.masks import KEPT, REMOVED, Call, Marked, full_marks, plain
from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row


@row("getitem")
def _chosen(call: Call) -> Any:
    """`x[index]`, or an element of a tuple."""
    return moved(replace(call, args=(call.args[0], settled_index(call, call.args[0], call.args[1]))))


def settled_index(call: Call, value: Any, index: Any) -> Any:
    """An index with its masks as plain tensors. Raises `VerifyError` where a mask has lost other positions than `value`
    along its dimension."""
    entries = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(entry, Marked) and entry.has_removed for entry in entries):
        return index
    settled = [_plain_mask(call, value, entries, place) for place in range(len(entries))]
    return tuple(settled) if isinstance(index, tuple) else settled[0]


def _plain_mask(call: Call, value: Any, entries: tuple[Any, ...], place: int) -> Any:
    entry = entries[place]
    if not isinstance(entry, Marked) or entry.data.dtype != torch.bool or entry.data.ndim != 1:
        return entry
    used = [1 if isinstance(x, Tensor | Marked) else int(x is not None) for x in entries]
    if Ellipsis in [x for x in entries[:place] if not isinstance(x, Tensor | Marked)]:
        dim = plain(value).ndim - sum(used[place:])
    else:
        dim = sum(used[:place])
    marks = full_marks(value).movedim(dim, 0).flatten(1)
    gone = (entry.marks == REMOVED).expand(entry.data.shape)
    if bool((marks[gone] == KEPT).any()) or bool((marks[~gone] == REMOVED).any()):
        raise call.error("a mask has lost other positions than what it chooses from")
    return entry.data


row("index_select")(moved)
