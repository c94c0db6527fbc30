"""What products do to the marks of their factors: linear layers, matrix products, einsum, attention; see `masks`.

The data are zeroed where they are removed; which results are kept is found by counting terms (`masks.contract`), so
that a weight whose removed positions aren't those that arrive is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.verify.masks import Call, Marked, Value, collapse, contract, mark, marks_of, meet, plain, zeroed


def run_zeroed(call: Call) -> Any:
    """The operation on data that are zero where they are removed."""
    clean = pytree.tree_map(
        lambda x: zeroed(x) if isinstance(x, Tensor | Marked) else x, (call.args, dict(call.kwargs))
    )
    return call.run(*clean[0], **clean[1])


def _linear(call: Call) -> Any:
    bound = call.bind("input", "weight", "bias")
    x, weight = bound["input"], bound["weight"]
    marks = contract(call, F.linear, x, weight, marks=(expanded(x, *range(plain(x).ndim - 1)), expanded(weight, 0)))
    return with_bias(call, run_zeroed(call), marks, bound["bias"], channel=-1)


def expanded(value: Value, *small: int) -> Tensor:
    """The value's marks at the data's size, except along the `small` dimensions.

    Dimensions that two factors share must be of full size in both, or a factor that is kept along all of it would pass
    for one that is used as long as any of it is.
    """
    sizes = list(plain(value).shape)
    for dim in small:
        sizes[dim] = marks_of(value).shape[dim]
    return marks_of(value).expand(sizes)


def _matmul_marks(call: Call, left: Value, right: Value) -> Tensor:
    rows = [-2] if plain(left).ndim > 1 else []
    columns = [-1] if plain(right).ndim > 1 else []
    return contract(call, torch.matmul, left, right, marks=(expanded(left, *rows), expanded(right, *columns)))


def _matmul(call: Call) -> Any:
    left, right = call.args[0], call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()))
    return mark(run_zeroed(call), _matmul_marks(call, left, right))


def _added_product(call: Call) -> Any:
    bound = call.bind("input", *(("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")))
    added, left, right = bound.values()
    data = run_zeroed(call)
    product = mark(data, _matmul_marks(call, left, right))
    return mark(data, meet(call, [product, added], data.shape))


def _outer(call: Call) -> Any:
    data = call.plain()
    left, right = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs["vec2"]
    column = mark(plain(left)[:, None], marks_of(left)[:, None])
    row = mark(plain(right)[None], marks_of(right)[None])
    return mark(data, meet(call, [column, row], data.shape))


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


def with_bias(call: Call, data: Tensor, marks: Tensor, bias: Value | None, *, channel: int) -> Value:
    """A product with its bias, which must be removed where the product is."""
    if bias is None:
        return mark(data, marks)
    return mark(data, meet(call, [Marked(data, marks), along_channels(bias, data.ndim, channel)], data.shape))


def along_channels(value: Value, rank: int, channel: int = 1) -> Value:
    """A vector as a value of `rank` dimensions that lies along one of them."""
    shape = [-1 if dim == channel % rank else 1 for dim in range(rank)]
    if isinstance(value, Marked):
        return Marked(value.data.reshape(shape), value.marks.reshape(shape))
    return value.reshape(shape)


PRODUCTS: Final[Mapping[str, Callable[[Call], Any]]] = {
    "linear": _linear,
    **dict.fromkeys(["matmul", "bmm", "mm", "mv"], _matmul),
    **dict.fromkeys(["addmm", "baddbmm"], _added_product),
    **dict.fromkeys(["outer", "ger"], _outer),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
