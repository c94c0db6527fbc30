"""Operations that take whole lines apart, and put samples together: Fourier transforms, deformable convolution.

fft of [N, 8, H, W] over (H, W)          every frequency of a channel goes with the channel
fft over the channels                    every result holds all of them: pinned
deform_conv2d(x, weight, offset)         like a convolution; offsets and masks are places, and stay
"""

from __future__ import annotations

from torch import fx

from prunec.compiler.ir.ops import argument, elements, op_name, rank_of, shape_of_argument
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import count_macs, dims_of, subject, unknown
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import on_op

_ONE = [f"fft_{kind}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")]
_TWO = [f"{name}2" for name in _ONE]
_MANY = [f"{name}n" for name in _ONE]


@on_op(*_ONE, *_TWO, *_MANY, carries_copies=True)
def transformed(flow: Flow, node: fx.Node) -> Labelled:
    """Labels along the dimensions that are transformed stay, others pass."""
    name, value, rank = op_name(node), subject(flow, node), rank_of(node)
    given = flow.constant(argument(node, 2, "dim", -1 if name in _ONE else (-2, -1) if name in _TWO else None))
    sizes = argument(node, 1, "s")
    if given is None and sizes is not None:
        given = tuple(range(-len(sizes), 0))
    return mixed(flow, node, value, dims_of(flow, given, rank), "is transformed")


@on_op("fft_fftshift", "fft_ifftshift", carries_copies=True)
def shifted(flow: Flow, node: fx.Node) -> Labelled:
    """Frequencies are rolled by half of their number."""
    dims = dims_of(flow, argument(node, 1, "dim"), rank_of(node))
    return mixed(flow, node, subject(flow, node), dims, "is rolled")


@on_op("deform_conv2d", carries_copies=True)
def deformable(flow: Flow, node: fx.Node) -> Labelled:
    """weight [out, in, k, k] reads and writes, in one group of weights and of offsets; of several nothing is known."""
    value, weight, offset, mask, bias = (
        argument(node, i, name) for i, name in enumerate(("input", "weight", "offset", "mask", "bias"))
    )
    groups = [flow.constant(argument(node, place, name)) for place, name in ((11, "groups"), (12, "offset_groups"))]
    if groups != [1, 1] or any(rank_of(part) != 4 for part in (value, weight)):
        return unknown(flow, node)
    for places in (offset, mask):
        flow.pin_all(flow.fields(places), f"is a place at {node.name}")
    arriving, rest = flow.along(value, 1, node)
    flow.pin_all(rest, f"is convolved over at {node.name}")
    flow.pin_all((f for f in flow.fields(weight) if max(f.shape[2:]) > 1), f"is a kernel dimension of {node.name}")
    written, columns = (flow.along(weight, dim, node)[0] for dim in (0, 1))
    flow.unify(columns, arriving, node)
    flow.count_matters(arriving, f"contracted at {node.name}")
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    places_out = elements(shape_of_argument(node)[2:]) * shape_of_argument(node)[0]
    count_macs(flow, node, elements(shape_of_argument(weight)) * places_out, (written, arriving))
    return flow.result(written, 4, 1)
