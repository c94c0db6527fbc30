"""Marks of gathers and scatters along one dimension.

index_add(x, dim, index, source)   along `dim`, what goes to a place is kept or removed as the place is
scatter(x, dim, index, src)        along the others, all parts lose the same
gather                             the same elements are picked from the marks (`ops.reshape.moved`)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.verify.masks import (
    FREE,
    KEPT,
    REMOVED,
    Call,
    Marked,
    collapse,
    full_marks,
    mark,
    marks_of,
    meet,
    plain,
    run_zeroed,
)
from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row


@row("index_add", "index_copy", "index_fill", "scatter", "scatter_add", "scatter_reduce")
def _put(call: Call) -> Any:
    """`x`, `src` and, of scatter, `index` lose the same along all dimensions but `dim`. The index of `index_add` is a
    vector along `dim`, which has no others."""
    bound = call.bind("input", "dim", "index", "src")
    source = next(
        (x for x in (bound["src"], call.kwargs.get("source"), call.kwargs.get("value")) if x is not None), None
    )
    given = [bound["input"], source] + ([] if call.name.startswith("index") else [bound["index"]])
    rank = plain(bound["input"]).ndim
    dim = plain(bound["dim"]) % rank
    parts = [x for x in given if isinstance(x, Tensor | Marked) and plain(x).ndim == rank]
    if any(bool((marks_of(x).narrow(dim, 0, 1) != marks_of(x)).any()) for x in parts):
        return _into_places(call, bound["input"], dim, plain(bound["index"]), source)
    flat = [
        Marked(plain(x).narrow(dim, 0, 1), collapse(call, marks_of(x), [dim], "removed elements are addressed"))
        for x in parts
    ]
    shape = [size if d != dim else 1 for d, size in enumerate(plain(bound["input"]).shape)]
    return mark(call.plain(), meet(call, flat, shape))


def _into_places(call: Call, value: Any, dim: int, index: Tensor, source: Any) -> Any:
    """What comes to a removed place must be removed; a constant's place is what comes to it. Where something is added,
    removed terms are zeros; elsewhere all that comes to one place is kept, or all of it is removed."""
    base = full_marks(value)
    if not isinstance(source, Tensor | Marked) or plain(source).ndim != base.ndim:
        return mark(run_zeroed(call), base.to(torch.uint8))  # a number is kept or removed with its place
    own = full_marks(source)

    def comes(bit: int) -> Tensor:
        counts = torch.zeros_like(base)
        terms = (own == bit).float()
        return (counts.index_add(dim, index, terms) if index.ndim == 1 else counts.scatter_add(dim, index, terms)) > 0

    kept, gone, free = comes(KEPT), comes(REMOVED), comes(FREE)
    adds = call.name in ("index_add", "scatter_add")
    if bool(((base == REMOVED) & (kept | free)).any()) or (not adds and bool((kept & gone).any())):
        raise call.error("what is kept is put in a place that is removed, or beside what is removed")
    put = torch.where(kept | (free & ~gone), KEPT, torch.where(gone, REMOVED, FREE))
    marks = torch.where((base == FREE) & (kept | gone | free), put, base)
    if not adds and bool(((base == KEPT) & gone & ~kept).any()):
        raise call.error("what is removed is put in a place that is kept")
    return mark(_with_places(call, index), marks.to(torch.uint8))


def _with_places(call: Call, index: Tensor) -> Tensor:
    """The result of zeros for what is removed; the index stays as it is, also where what it places is removed."""
    given = pytree.tree_map(lambda x: index if plain(x) is index else x, (call.args, dict(call.kwargs)))
    result = run_zeroed(replace(call, args=given[0], kwargs=given[1]))
    assert isinstance(result, Tensor), f"{call.name} gives a tensor"
    return result


row("gather", "take_along_dim")(moved)
