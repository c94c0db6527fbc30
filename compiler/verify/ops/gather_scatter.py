"""What operations that a tensor of positions steers do to the marks of their arguments: rows of the verifier's table.

scatter, index_add     positions are counted along one dimension, which holds nothing removed
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunec.compiler.verify.masks import Call, Marked, collapse, mark, marks_of, meet, plain
from prunec.compiler.verify.table import row


@row("index_add", "index_copy", "index_fill", "scatter", "scatter_add", "scatter_reduce")
def _side_by_side(call: Call) -> Any:
    """`scatter` and `index_add`: positions are counted along one dimension, which is whole; along the others the
    operands lose the same. An index that is a vector has no others."""
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
