"""Marks of operations that put elements at places of an image: fold, grid_sample, max_unpool. Whole channels are
removed.

    fold           [N, C * k, L] -> [N, C, H, W]    the k rows of a channel are all kept or all removed
    grid_sample    image and grid                   channels of the image; samples of the batch, in both
    max_unpool     values and indices               both lose the same channels
"""

from __future__ import annotations

import re
from typing import Any

from prunec.compiler.verify.masks import REMOVED, Call, collapse, mark, marks_of, meet, plain
from prunec.compiler.verify.ops.pooling import windows
from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row


@row("fold")
def _fold(call: Call) -> Any:
    """`F.fold`: columns of windows, [.., channels * kernel, windows], back to an image [.., channels, H, W]."""
    data, value = call.plain(), call.args[0]
    marks = collapse(call, marks_of(value), [plain(value).ndim - 1], "the removed elements are no whole channels")
    rows = marks.expand(*marks.shape[:-2], plain(value).shape[-2], 1)
    rows = rows.reshape(*rows.shape[:-2], data.shape[-3], -1)
    whole = collapse(call, rows, [rows.ndim - 1], "the removed elements are no whole channels")
    return mark(data, whole[..., None])


@row("grid_sample")
def _sample(call: Call) -> Any:
    """`F.grid_sample`: pixels of an image at the places that a grid names; a grid loses whole samples at most."""
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
    """`F.max_unpool2d` and its like: pixels put back where the indices say. Both lose the same channels; what the
    removed indices say doesn't matter."""
    data, pair = call.plain(), [*call.args[:2], *(call.kwargs[key] for key in ("indices",) if key in call.kwargs)]
    digits = re.search(r"(\d)d$", call.name)
    assert digits is not None, f"{call.name} names its dimensions"
    marks = meet(call, pair, plain(pair[0]).shape)
    space = range(data.ndim - int(digits.group(1)), data.ndim)
    return mark(data, collapse(call, marks, space, "the removed elements are no whole channels"))


row("pixel_shuffle", "pixel_unshuffle", "unfold")(moved)
row("interpolate", "upsample")(windows)
