"""Fourier transforms and the parts of complex numbers.

A transform mixes the dimensions that it runs over, whose positions stay; labels along the others (the channels of a
signal) pass.
"""

from __future__ import annotations

from torch import fx

from prunec.compiler.labels import Flow, Labelled
from prunec.compiler.reductions import mixed
from prunec.compiler.rules import argument, dims_of, on_op, op_name, rank_of, subject

_LAST = {"": -1, "2": (-2, -1), "n": None}
"""The ending of a transform's name -> the dimensions that it runs over where none are named."""


@on_op(*(f"fft_{kind}fft{end}" for kind in ("", "i", "r", "ir", "h", "ih") for end in _LAST))
@on_op("fft_fftshift", "fft_ifftshift")
def transform(flow: Flow, node: fx.Node) -> Labelled:
    """`torch.fft.rfft(x, n, dim)` and the like."""
    shift = op_name(node).endswith("shift")
    default = None if shift else _LAST[op_name(node).rpartition("fft")[2]]
    dims = dims_of(flow, argument(node, 1 if shift else 2, "dim", default), rank_of(node))
    return mixed(flow, node, subject(flow, node), dims, "is transformed")


@on_op("conj", "conj_physical", "resolve_conj", "resolve_neg", "real", "imag", "angle")
def part(flow: Flow, node: fx.Node) -> Labelled:
    """One number from each."""
    return flow.fields(subject(flow, node))
