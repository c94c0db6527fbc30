"""What products do to the marks of their factors: linear layers, matrix products, einsum, attention; see `masks`.

The data are zeroed where they are removed; which results are kept is found by counting terms (`masks.contract`), so
that a weight whose removed positions aren't those that arrive is an error.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunec.compiler.verify.masks import (
    Call,
    Marked,
    Value,
    collapse,
    contract,
    expanded,
    mark,
    marks_of,
    meet,
    plain,
    run_zeroed,
)
from prunec.compiler.verify.table import row


def _matmul_marks(call: Call, left: Value, right: Value) -> Tensor:
    rows = [-2] if plain(left).ndim > 1 else []
    columns = [-1] if plain(right).ndim > 1 else []
    return contract(call, torch.matmul, left, right, marks=(expanded(left, *rows), expanded(right, *columns)))


@row("matmul", "bmm", "mm", "mv")
def _matmul(call: Call) -> Any:
    left, right = call.args[0], call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()))
    return mark(run_zeroed(call), _matmul_marks(call, left, right))


@row("addmm", "baddbmm")
def _added_product(call: Call) -> Any:
    bound = call.bind("input", *(("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")))
    added, left, right = bound.values()
    data = run_zeroed(call)
    product = mark(data, _matmul_marks(call, left, right))
    return mark(data, meet(call, [product, added], data.shape))


@row("outer", "ger")
def _outer(call: Call) -> Any:
    data = call.plain()
    left, right = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs["vec2"]
    column = mark(plain(left)[:, None], marks_of(left)[:, None])
    row = mark(plain(right)[None], marks_of(right)[None])
    return mark(data, meet(call, [column, row], data.shape))


@row("einsum")
def _einsum(call: Call) -> Any:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    own = [_einsum_marks(x, term, "".join(terms)) for x, term in zip(operands, terms, strict=True)]
    marks = contract(call, partial(torch.einsum, equation), *operands, marks=own)
    return mark(run_zeroed(call), marks)


def _einsum_marks(value: Value, term: str, letters: str) -> Tensor:
    """The operand's marks, compressed along the letters that stand in no other operand."""
    own = [] if "." in letters else [dim for dim, letter in enumerate(term) if letters.count(letter) == 1]
    return expanded(value, *own)


@row("scaled_dot_product_attention")
def _attention(call: Call) -> Any:
    """Scaled dot-product attention: two matrix products around a softmax over the keys."""
    bound = call.bind("query", "key", "value", "attn_mask")
    if call.kwargs.get("enable_gqa"):
        times = plain(bound["query"]).shape[-3] // plain(bound["key"]).shape[-3]
        bound |= {name: _repeated_heads(bound[name], times) for name in ("key", "value")}
    query, key, value, bias = (bound[name] for name in ("query", "key", "value", "attn_mask"))
    flipped = mark(plain(key).mT, marks_of(key).mT)
    marks = _matmul_marks(call, query, flipped)
    shape = [*plain(query).shape[:-1], plain(key).shape[-2]]
    scores = mark(torch.empty(1).expand(shape), marks)
    if isinstance(bias, Tensor | Marked):
        marks = meet(call, [scores, bias], shape)
    marks = collapse(call, marks, [marks.ndim - 1], "softmax over removed positions")
    return mark(run_zeroed(call), _matmul_marks(call, mark(plain(scores), marks), value))


def _repeated_heads(value: Value, times: int) -> Value:
    marks = marks_of(value)
    wide = marks if marks.shape[-3] == 1 else marks.repeat_interleave(times, -3)
    return mark(plain(value).repeat_interleave(times, -3), wide)
