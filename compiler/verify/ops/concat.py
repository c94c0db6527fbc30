"""Marks of padded tensors: what is padded with is FREE (F), but REMOVED beside a line of removed elements.

    [C, W]    K K K    pad by 1    F K K K F
              R R R                R R R R R      statistics over channels don't count the rim of a removed one

`cat`, `stack`, `split` and their like only move data: they are run on the marks (`reshape.moved`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.compiler.ir.ops import words
from prunec.compiler.verify.masks import REMOVED, Call, full_marks, mark, plain
from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row


@row("pad", marking=True)
def _pad(call: Call) -> Any:
    """Padding with a constant as above; of the other modes, the padding itself is run on the marks, since reflected and
    repeated elements are what they are copied from."""
    data = call.plain()
    bound = call.bind("input", "padding" if call.module is not None else "pad", "mode")
    source = full_marks(bound["input"])
    if call.module is not None:
        constant = isinstance(call.module, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d)
        marks = _rimmed(source, bound["padding"]) if constant else call.run(source)
        return mark(data, marks.to(torch.uint8))
    mode = bound["mode"] or "constant"
    marks = _rimmed(source, plain(bound["pad"])) if mode == "constant" else F.pad(source, plain(bound["pad"]), mode)
    return mark(data, marks.to(torch.uint8))


def _rimmed(source: Tensor, pad: Sequence[int]) -> Tensor:
    """The marks `source`, padded by `pad` (as `F.pad` has it), one dimension after the other: with REMOVED beside a
    line of removed elements, else with FREE."""
    for index in range(0, len(pad), 2):
        dim = source.ndim - 1 - index // 2
        lost = (source == REMOVED).all(dim, keepdim=True).to(source.dtype) * REMOVED
        before, after = (max(amount, 0) for amount in pad[index : index + 2])
        rims = [lost.expand(*[-1] * dim, amount, *[-1] * (source.ndim - dim - 1)) for amount in (before, after)]
        kept = F.pad(source, [0] * index + [min(amount, 0) for amount in pad[index : index + 2]])
        source = torch.cat([rims[0], kept, rims[1]], dim)
    return source


row(
    *words("""
        cat concat concatenate stack hstack vstack dstack row_stack chunk split tensor_split split_with_sizes
        unsafe_chunk unsafe_split unbind narrow select
    """)
)(moved)
