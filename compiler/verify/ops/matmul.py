"""Marks of matrix products: matmul, addmm, outer, einsum, scaled dot-product attention.

    a [.., m, k] @ b [.., k, n]    along k both must lose the same, and are zeroed there
                                   a's rows and b's columns are removed rows and columns of the result

Which elements of the result are kept is found by counting terms (`verify.masks.contract`).
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
    """The marks of `left @ right`."""
    rows = [-2] if plain(left).ndim > 1 else []
    columns = [-1] if plain(right).ndim > 1 else []
    return contract(call, torch.matmul, left, right, marks=(expanded(left, *rows), expanded(right, *columns)))


@row("matmul", "bmm", "mm", "mv")
def _matmul(call: Call) -> Any:
    left, right = call.args[0], call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()))
    return mark(run_zeroed(call), _matmul_marks(call, left, right))


@row("addmm", "baddbmm")
def _added_product(call: Call) -> Any:
    """`addmm` and `baddbmm`: what is added must be removed where the product is."""
    bound = call.bind("input", *(("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")))
    added, left, right = bound.values()
    data = run_zeroed(call)
    product = mark(data, _matmul_marks(call, left, right))
    return mark(data, meet(call, [product, added], data.shape))


@row("outer", "ger")
def _outer(call: Call) -> Any:
    """The outer product: each vector's removed elements are removed rows, or columns, of the result."""
    data = call.plain()
    left, right = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs["vec2"]
    down = mark(plain(left)[:, None], marks_of(left)[:, None])
    across = mark(plain(right)[None], marks_of(right)[None])
    return mark(data, meet(call, [down, across], data.shape))


@row("einsum")
def _einsum(call: Call) -> Any:
    """`torch.einsum` of any equation, with its operands in a list or one by one."""
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
    """Scaled dot-product attention: two products around a softmax over the keys, of which none may be removed."""
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
    """Grouped-query attention: keys or values [.., heads, S, d] with every head repeated."""
    marks = marks_of(value)
    wide = marks if marks.shape[-3] == 1 else marks.repeat_interleave(times, -3)
    return mark(plain(value).repeat_interleave(times, -3), wide)
