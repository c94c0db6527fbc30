"""What operations along whole dimensions do to the marks of their arguments: rows of the verifier's table.

scatter, index_add     positions are counted along one dimension, which holds nothing removed
Fourier transforms     neither do the dimensions that they run over
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor

from prunec.compiler.masks import Call, Marked, collapse, mark, marks_of, meet, plain


def side_by_side(call: Call) -> Any:
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


def transform(call: Call) -> Any:
    """A Fourier transform: the dimensions that it runs over are whole."""
    data, rank = call.plain(), plain(call.args[0]).ndim
    shift = call.name.endswith("shift")
    given = call.bind("input", *([] if shift else ["n"]), "dim")["dim"]
    ending = call.name.rpartition("fft")[2]
    default = range(rank) if shift or ending == "n" else (-2, -1) if ending == "2" else (-1,)
    dims = default if given is None else [given] if isinstance(given, int) else given
    return mark(data, collapse(call, marks_of(call.args[0]), [d % rank for d in dims], "removed elements are mixed"))


_TRANSFORMS: Final = [f"fft_{kind}fft{end}" for kind in ("", "i", "r", "ir", "h", "ih") for end in ("", "2", "n")]
_SCATTERS: Final = ("index_add", "index_copy", "index_fill", "scatter", "scatter_add", "scatter_reduce")

ADDRESSED: Final[Mapping[str, Callable[[Call], Any]]] = {
    **dict.fromkeys(_SCATTERS, side_by_side),
    **dict.fromkeys([*_TRANSFORMS, "fft_fftshift", "fft_ifftshift"], transform),
}
