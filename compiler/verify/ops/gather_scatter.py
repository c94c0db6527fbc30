"""Marks of operations that write at given positions: scatter, index_add and their like.

    x.scatter_add(1, index, src)    along dimension 1 a line is kept whole or removed whole: positions count along it
                                    along the others x, index and src lose the same

Reading at given positions only moves data: it is run on the marks (`reshape.moved`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunec.compiler.verify.masks import Call, Marked, collapse, mark, marks_of, meet, plain
from prunec.compiler.verify.ops.reshape import moved
from prunec.compiler.verify.table import row


@row("index_add", "index_copy", "index_fill", "scatter", "scatter_add", "scatter_reduce")
def _side_by_side(call: Call) -> Any:
    """`x`, `src` and, of scatter, `index` lose the same along all dimensions but `dim`. The index of `index_add` is a
    vector along `dim`, which has no others."""
    bound = call.bind("input", "dim", "index", "src")
    given = [bound["input"], bound["src"], call.kwargs.get("source"), call.kwargs.get("value")]
    given += [] if call.name.startswith("index") else [bound["index"]]
    rank = plain(bound["input"]).ndim
    dim = plain(bound["dim"]) % rank
    parts = [x for x in given if isinstance(x, Tensor | Marked) and plain(x).ndim == rank]
    flat = [
        Marked(plain(x).narrow(dim, 0, 1), collapse(call, marks_of(x), [dim], "removed elements are addressed"))
        for x in parts
    ]
    shape = [size if d != dim else 1 for d, size in enumerate(plain(bound["input"]).shape)]
    return mark(call.plain(), meet(call, flat, shape))


row("gather", "take_along_dim")(moved)
