"""Marks of operations along whole dimensions: reductions, softmax, sorting.

sum, mean, norm, var    removed elements are zeros, and counted; a result is removed where all its terms are
amax, max               the same, but the index of the largest may not be read
softmax, sort, prod     along their dimension everything is kept or everything is removed
tril                    along the last two dimensions, likewise
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.ir.ops import words
from prunec.compiler.verify.masks import (
    FREE,
    KEPT,
    REMOVED,
    Call,
    Marked,
    Value,
    collapse,
    mark,
    marks_of,
    meet,
    plain,
    run_zeroed,
)
from prunec.compiler.verify.ops.elementwise import elementwise
from prunec.compiler.verify.table import row


def added_marks(marks: Tensor, dims: Iterable[int]) -> Tensor:
    """The marks of sums over `dims`, which stay with size 1: kept where any term is, removed where all terms are."""
    for dim in dims:
        kept, free = ((marks == bit).any(dim, keepdim=True) for bit in (KEPT, FREE))
        marks = torch.where(kept, KEPT, torch.where(free, FREE, REMOVED)).to(torch.uint8)
    return marks


def reduced_dims(call: Call, position: int = 1, default: int | None = None) -> list[int]:
    """The dimensions in a call's argument `dim` (or `axis`) at this position; else `default`, else all."""
    bound = call.bind("input", *["_"] * (position - 1), "dim")
    dim = call.kwargs.get("axis", bound["dim"])
    dim = default if dim is None or isinstance(dim, bool) else dim  # `x.var(False)` names none
    rank = plain(bound["input"]).ndim
    if dim is None or dim in ((), []):
        return list(range(rank))
    return [d % rank for d in ([dim] if isinstance(dim, int) else dim)] if rank else []


def _add_up(call: Call, position: int = 1) -> Any:
    """Sums, means, norms, variances: of data with zeros for what is removed."""
    dims = reduced_dims(call, position)
    marks, data = added_marks(marks_of(call.args[0]), dims), run_zeroed(call)
    return mark(data, marks if data.ndim == marks.ndim else marks.squeeze(dims))


@row("amax", "amin", "max", "min")
def _extreme(call: Call) -> Any:
    """The largest (or smallest) element, with zeros for removed ones, and its index.

    An index counts channels, of which a slim program has fewer. So it is marked REMOVED: nothing kept may come of it.
    """
    second = call.args[1] if len(call.args) > 1 else call.kwargs.get("other")
    if call.name not in ("max", "min") or (second is None and "dim" not in call.kwargs):
        return _add_up(call)
    removed = marks_of(call.args[0]) == REMOVED
    if isinstance(second, Tensor | Marked) or not any(removed.shape[dim] > 1 for dim in reduced_dims(call)):
        return _reduce(call)
    dims, largest = reduced_dims(call), run_zeroed(call)
    marks = added_marks(marks_of(call.args[0]), dims)
    values = mark(largest.values, marks if largest.values.ndim == marks.ndim else marks.squeeze(dims))
    return values, mark(largest.indices, torch.full([1] * largest.indices.ndim, REMOVED, dtype=torch.uint8))


@row("normalize")
def _normalize(call: Call) -> Any:
    """`F.normalize`: divided by the norm of what is kept."""
    return mark(run_zeroed(call), marks_of(call.args[0]))


@row("cosine_similarity")
def _similarity(call: Call) -> Any:
    """Cosine similarity: what is removed of one operand must be removed of the other."""
    left, right = call.args[:2]
    rank = max(plain(left).ndim, plain(right).ndim)
    given = getattr(call.module, "dim", None) if call.module is not None else (*call.args[2:], *call.kwargs.values())
    dim = (given if isinstance(given, int) else given[0] if given else 1) % rank
    shape = torch.broadcast_tensors(plain(left), plain(right))[0].shape  # type: ignore[no-untyped-call]
    return mark(run_zeroed(call), added_marks(meet(call, [left, right], shape), [dim]).squeeze(dim))


@row(
    *words("""
        prod var_mean std_mean median argmax argmin all any logsumexp mode cummax cummin softmax log_softmax
        softmin cumsum cumprod sort argsort topk msort kthvalue aminmax logcumsumexp nanmean
    """)
)
def _reduce(call: Call) -> Any:
    """Softmax, sort, prod and their like: along their dimension kept and removed elements may not mix."""
    if isinstance(call.args[1] if len(call.args) > 1 else call.kwargs.get("other"), Tensor | Marked):
        return elementwise(call)  # max(x, y)
    value, dims = call.args[0], reduced_dims(call, *DIMENSION_AT.get(call.name, (1, None)))
    marks = collapse(call, marks_of(value), dims, "an operation reduces over removed channels")
    return pytree.tree_map(partial(_mark_reduced, marks=marks, dims=tuple(dims)), call.plain())


def _mark_reduced(data: Tensor, *, marks: Tensor, dims: tuple[int, ...]) -> Value:
    """A result with the marks of its operand, of which `dims` are of size 1, or gone without `keepdim`."""
    return mark(data, marks if data.ndim == marks.ndim else marks.squeeze(dims))


DIMENSION_AT: Final[Mapping[str, tuple[int, int | None]]] = {
    "topk": (2, -1), "sort": (1, -1), "argsort": (1, -1), "msort": (9, 0), "kthvalue": (2, -1), "mode": (1, -1),
}  # fmt: skip
"""Operation -> the position of its argument `dim`, and its default."""


@row("tril", "triu")
def _triangle(call: Call) -> Any:
    """`tril` and `triu`: rows and columns of a matrix of tokens, of which none may be removed."""
    marks = marks_of(call.args[0])
    return mark(call.plain(), collapse(call, marks, [marks.ndim - 2, marks.ndim - 1], "removed tokens are cut"))


row("sum", "mean", "nansum", "var", "std")(_add_up)
row("norm", "linalg_norm", "linalg_vector_norm")(partial(_add_up, position=2))
