"""Marks of Fourier transforms: along the dimensions that they run over, everything is kept or everything is removed.

rfft2 of [N, C, H, W]    runs over H and W: whole channels may be removed
fft of [N, L, C]         runs over C: the channels must all stay
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prunec.compiler.verify.masks import Call, collapse, mark, marks_of, plain
from prunec.compiler.verify.table import row


def _transformed(call: Call, default: int | tuple[int, int] | None, shifts: bool = False) -> Any:
    """Fourier transforms and, with `shifts`, `fftshift` and its inverse; `default` are the dimensions of a call that
    names none (None: all of them, or the last ones, where `s` gives their sizes)."""
    value, bound = call.args[0], call.bind("input", "dim") if shifts else call.bind("input", "s", "dim")
    dims = default if bound["dim"] is None else bound["dim"]
    if dims is None:
        dims = range(-len(bound["s"]), 0) if bound.get("s") is not None else range(plain(value).ndim)
    along = [dim % plain(value).ndim for dim in ([dims] if isinstance(dims, int) else dims)]
    return mark(call.plain(), collapse(call, marks_of(value), along, "a transform runs over removed channels"))


for _kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    for _end, _dims in (("", -1), ("2", (-2, -1)), ("n", None)):
        row(f"fft_{_kind}{_end}")(partial(_transformed, default=_dims))
row("fft_fftshift", "fft_ifftshift")(partial(_transformed, default=None, shifts=True))
