"""Fourier transforms: labels along the transformed dimensions are pinned, others pass.

fft of [N, 8, H, W] over (H, W)          every frequency of a channel goes with the channel
fft over the channels                    every result holds all of them: pinned
"""

from __future__ import annotations

from torch import fx

from prunec.compiler.ir.ops import argument, op_name, rank_of
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import dims_of, subject
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import on_op

_ONE = [f"fft_{kind}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")]
_TWO = [f"{name}2" for name in _ONE]
_MANY = [f"{name}n" for name in _ONE]


@on_op(*_ONE, *_TWO, *_MANY, carries_copies=True)
def transformed(flow: Flow, node: fx.Node) -> Labelled:
    """Labels along the dimensions that are transformed are pinned, others pass."""
    name, value, rank = op_name(node), subject(flow, node), rank_of(node)
    given = flow.constant(argument(node, 2, "dim", -1 if name in _ONE else (-2, -1) if name in _TWO else None))
    sizes = argument(node, 1, "s")
    if given is None and sizes is not None:
        given = tuple(range(-len(sizes), 0))
    return mixed(flow, node, value, dims_of(flow, given, rank), "is transformed")


@on_op("fft_fftshift", "fft_ifftshift", carries_copies=True)
def shifted(flow: Flow, node: fx.Node) -> Labelled:
    """Frequencies are rolled by half of their number; labels along the rolled dimensions are pinned."""
    dims = dims_of(flow, argument(node, 1, "dim"), rank_of(node))
    return mixed(flow, node, subject(flow, node), dims, "is rolled")
