"""Marks of distances: sums of differences over the last dimension, of which both operands must lose the same.

cdist               x [.., P, C], y [.., R, C]    along C as in a matrix product; rows of x, rows of y
pairwise_distance   x [.., C], y [.., C]          zeros are counted: each adds its `eps`
dist, pdist         all elements; all rows        likewise
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunec.compiler.verify.masks import (
    KEPT,
    Call,
    collapse,
    contract,
    expanded,
    mark,
    marks_of,
    meet,
    plain,
    run_zeroed,
)
from prunec.compiler.verify.ops.reduction import added_marks
from prunec.compiler.verify.table import row


@row("cdist")
def _between_rows(call: Call) -> Any:
    """Terms are counted as in `x @ y.mT`."""
    bound = call.bind("x1", "x2")
    pair = list(bound.values())
    marks = contract(call, _product, *pair, marks=[expanded(x, plain(x).ndim - 2) for x in pair])
    return mark(run_zeroed(call), marks)


def _product(left: Tensor, right: Tensor) -> Tensor:
    return left @ right.mT


@row("pairwise_distance")
def _between_vectors(call: Call) -> Any:
    """A norm of a difference along the last dimension."""
    bound = call.bind("x1", "x2", "p", "eps", "keepdim")
    data, pair = run_zeroed(call), [bound["x1"], bound["x2"]]
    shape = (plain(pair[0])[..., :0] + plain(pair[1])[..., :0]).shape
    width = plain(pair[0]).shape[-1]
    marks = added_marks(meet(call, pair, (*shape[:-1], width)), [len(shape) - 1])
    return mark(data, marks if bound["keepdim"] else marks.squeeze(-1))


@row("dist")
def _of_all(call: Call) -> Any:
    """A norm over all elements: one number, which is kept."""
    pair = list(call.bind("input", "other").values())
    meet(call, pair, plain(pair[0]).shape)
    return run_zeroed(call)


@row("pdist")
def _between_all_rows(call: Call) -> Any:
    """All pairs of rows, of which none may be removed."""
    rows = added_marks(marks_of(call.args[0]), [1])
    if bool((rows != KEPT).any()):
        collapse(call, rows, [0], "removed rows are compared")
    return run_zeroed(call)
