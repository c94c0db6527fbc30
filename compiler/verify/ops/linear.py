"""Marks of layers whose channels lie along the last dimension: linear, bilinear, embedding, embedding_bag.

linear       x [.., 4]  K R K K    x is zeroed at R; weight [8, 4] must lose the same columns
             weight's rows         removed features of the result; the bias must lose the same
embedding    weight's columns      removed features of the result
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from prunec.compiler.verify.masks import (
    Call,
    Lined,
    contract,
    contract_lined,
    expanded,
    full_marks,
    mark,
    marks_of,
    meet,
    plain,
    run_zeroed,
    with_bias,
    zeroed,
)
from prunec.compiler.verify.table import row


@row("linear")
def _linear(call: Call) -> Any:
    """`F.linear`: counted by the operation itself (`verify.masks.contract`)."""
    bound = call.bind("input", "weight", "bias")
    x, weight = bound["input"], bound["weight"]
    arriving, marks = expanded(x, *range(plain(x).ndim - 1)), None
    if isinstance(weight, Lined) and arriving.numel() == arriving.shape[-1] and plain(weight).ndim == 2:
        marks = contract_lined(call, F.linear, x, weight, marks=arriving.flatten(), across=1)
    if marks is None:
        marks = contract(call, F.linear, x, weight, marks=(arriving, expanded(weight, 0)))
    else:
        marks = marks.reshape(*arriving.shape[:-1], -1)
    return with_bias(call, run_zeroed(call), marks, bound["bias"], channel=-1)


@row("bilinear")
def _bilinear(call: Call) -> Any:
    """`nn.Bilinear`: two inputs and a weight [out, in1, in2]; counted by the operation itself."""
    (left, right), weight, bias = call.args[:2], call.params["weight"], call.params.get("bias")
    operands = [marks_of(x).expand(*marks_of(x).shape[:-1], plain(x).shape[-1]) for x in (left, right)]
    own = full_marks(weight).to(torch.uint8)
    rank = plain(left).ndim
    lead = [max(sizes) for sizes in zip(*(m.shape[:-1] for m in operands), strict=True)]
    wide = [m.expand(*lead, m.shape[-1]) for m in operands]
    marks = contract(call, F.bilinear, left, right, weight, marks=(*wide, own))
    assert call.module is not None, "the row is for the module"
    data = call.run(zeroed(left), zeroed(right))
    result = mark(data, marks)
    if bias is None:
        return result
    vector = plain(bias).reshape([1] * (rank - 1) + [-1]), marks_of(bias).reshape([1] * (rank - 1) + [-1])
    return mark(data, meet(call, [result, mark(*vector)], data.shape))


@row("embedding")
def _embed(call: Call) -> Any:
    """`F.embedding`: the same rows are picked from the weight's marks."""
    bound = call.bind("input", "weight")
    return mark(call.plain(), F.embedding(plain(bound["input"]), full_marks(bound["weight"])).to(torch.uint8))


@row("embedding_bag")
def _bag(call: Call) -> Any:
    """`F.embedding_bag`: rows of the weight, added up. Its columns are the channels."""
    weight = call.bind("input", "weight")["weight"]
    data = call.plain()
    return mark(data, full_marks(weight)[:1].to(torch.uint8).expand(1, data.shape[-1]))
