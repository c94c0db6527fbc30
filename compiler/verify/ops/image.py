"""What padding, pooling and cuts do to the marks of their arguments: rows of the verifier's table.

pad         constants are free, but for the rim of a removed channel
pooling     a window sees kept elements alone, or removed ones
tril        tokens are cut, of which none is removed
"""

from __future__ import annotations

import re
from typing import Any

from prunec.compiler.verify.masks import REMOVED, Call, collapse, mark, marks_of, meet, plain
from prunec.compiler.verify.table import row

# --- windows --------------------------------------------------------------------------------------------------------


@row("fold")
def _fold(call: Call) -> Any:
    """Windows [.., channels * kernel, places] back to an image: all columns of a channel are removed, or none is."""
    data, value = call.plain(), call.args[0]
    marks = collapse(call, marks_of(value), [plain(value).ndim - 1], "the removed elements are no whole channels")
    rows = marks.expand(*marks.shape[:-2], plain(value).shape[-2], 1)
    rows = rows.reshape(*rows.shape[:-2], data.shape[-3], -1)
    whole = collapse(call, rows, [rows.ndim - 1], "the removed elements are no whole channels")
    return mark(data, whole[..., None])


@row("grid_sample")
def _sample(call: Call) -> Any:
    """Pixels taken from the places of a grid: whole rows of a batch may be removed, in both."""
    image, grid = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs["grid"]
    data, rank = call.plain(), marks_of(image).ndim
    marks = collapse(call, marks_of(image), range(2, rank), "the removed elements are no whole channels")
    rows = collapse(call, marks_of(grid), range(1, rank), "removed channels are used as a grid")
    if not bool((rows == REMOVED).any()):
        return mark(data, marks)
    shapes = [*data.shape[:2], *[1] * (rank - 2)], [data.shape[0], *[1] * (rank - 1)]
    pair = [mark(data.new_empty(1).expand(shape), each) for shape, each in zip(shapes, (marks, rows), strict=True)]
    return mark(data, meet(call, pair, shapes[0]))


@row("max_unpool1d", "max_unpool2d", "max_unpool3d")
def _unpool(call: Call) -> Any:
    """Pixels put back where the indices say; both lose the same channels. Removed indices may be any."""
    data, pair = call.plain(), [*call.args[:2], *(call.kwargs[key] for key in ("indices",) if key in call.kwargs)]
    digits = re.search(r"(\d)d$", call.name)
    assert digits is not None, f"{call.name} names its dimensions"
    marks = meet(call, pair, plain(pair[0]).shape)
    space = range(data.ndim - int(digits.group(1)), data.ndim)
    return mark(data, collapse(call, marks, space, "the removed elements are no whole channels"))
