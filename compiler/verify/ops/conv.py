"""Marks of convolutions: the input is zeroed at its removed channels, and the weight must lose the same ones.

    x [N, 4, H, W]        channels K R K K       zeroed at R; whole channels are removed
    weight [8, 4, 3, 3]   columns  K R K K       others than x's are an error
                          rows     K K R ...     removed channels of the result; the bias must lose the same

Which channels of the result are kept is counted (`verify.masks.contract`) on 0/1 vectors of channels, not on images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from prunec.compiler.verify.masks import (
    FREE,
    REMOVED,
    Call,
    Lined,
    Marked,
    collapse,
    contract,
    contract_lined,
    marks_of,
    plain,
    run_zeroed,
    with_bias,
)
from prunec.compiler.verify.table import row

_PLAIN: Final = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED: Final = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


@row(*(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)))
def _convolution(call: Call) -> Any:
    """Convolutions, grouped and transposed ones too. Along a dimension that a kernel of size 1 passes over
    (`_is_still`) the marks may vary."""
    transposed = "transpose" in call.name
    bound = call.bind(*_TRANSPOSED if transposed else _PLAIN)
    x, weight = bound["input"], bound["weight"]
    rank, problem = plain(x).ndim, "the removed elements are no whole channels"
    channel = rank + 1 - plain(weight).ndim  # 0 for an image without a batch
    shape = [-1 if dim == channel else 1 for dim in range(rank)]
    mixed = [dim for dim in range(channel + 1, rank) if not _is_still(bound, dim - channel - 1)]
    gone, rows = _lost_rows(collapse(call, marks_of(x), mixed, problem), channel)
    arriving = collapse(call, rows, [dim for dim in range(rank) if dim != channel], problem).reshape(1, -1, 1)
    arriving = arriving.expand(1, plain(x).shape[channel], 1)
    marks = _counted(call, bound, arriving, transposed)
    channels = Marked(plain(x), arriving.reshape(shape))  # with the free rim of a removed channel
    data = run_zeroed(replace(call, args=(channels, *call.args[1:])))
    return with_bias(call, data, torch.maximum(marks.reshape(shape), gone), bound["bias"], channel=channel)


def _counted(call: Call, bound: Mapping[str, Any], arriving: Tensor, transposed: bool) -> Tensor:
    """[channels]: the marks of the result, where the channels `arriving` [1, channels, 1] meet the weight's."""
    x, weight, groups = bound["input"], bound["weight"], bound["groups"] or 1
    if groups == 1 and isinstance(weight, Lined):
        product = torch.matmul if transposed else F.linear
        found = contract_lined(call, product, x, weight, marks=arriving.flatten(), across=1 - transposed)
        if found is not None:
            return found
    own = collapse(call, marks_of(weight), range(2, plain(weight).ndim), "the removed elements are no whole channels")
    own = own.flatten(2)[:, :, :1].expand(*plain(weight).shape[:2], 1)
    count = partial(F.conv_transpose1d if transposed else F.conv1d, groups=groups)
    return contract(call, count, x, weight, marks=(arriving, own))


def _is_still(bound: Mapping[str, Any], place: int) -> bool:
    """Whether a convolution mixes nothing along dimension `place` of its kernel: size 1, stride 1, no padding."""

    def at(name: str, default: int) -> int:
        given = default if bound[name] is None or isinstance(bound[name], str) else bound[name]
        return given if isinstance(given, int) else given[place if len(given) > 1 else 0]

    return plain(bound["weight"]).shape[2 + place] == 1 and at("stride", 1) == 1 and at("padding", 0) == 0


def _lost_rows(marks: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """Split marks at the rows whose channels are all removed (heads folded into the batch, say): marks that are REMOVED
    at these rows and FREE elsewhere, and the marks with these rows FREE, since only the others say which channels
    arrive."""
    gone = (marks == REMOVED).all(channel, keepdim=True)
    gone &= gone.numel() > 1 and not bool(gone.all())
    return gone.to(marks.dtype) * REMOVED, torch.where(gone, FREE, marks).to(marks.dtype)


@row("deform_conv2d")
def _deformed(call: Call) -> Any:
    """`torchvision.ops.deform_conv2d` in one group: as a convolution, at offsets and with masks that lose nothing."""
    x, weight, bias = call.args[0], call.args[1], call.args[4]
    if any(isinstance(places, Marked) and places.has_removed for places in call.args[2:4]):
        raise call.error("removed channels are used as places")
    problem = "the removed elements are no whole channels"
    arriving = collapse(call, marks_of(x), (0, 2, 3), problem).reshape(1, -1, 1).expand(1, plain(x).shape[1], 1)
    own = collapse(call, marks_of(weight), (2, 3), problem).flatten(2).expand(*plain(weight).shape[:2], 1)
    if tuple(call.args[11:13]) != (1, 1) and bool((arriving == REMOVED).any() | (own == REMOVED).any()):
        raise call.error("several groups lose channels")
    count = partial(F.conv1d, groups=call.args[11])
    marks = contract(call, count, x, weight, marks=(arriving, own))
    return with_bias(call, run_zeroed(call), marks.reshape(1, -1, 1, 1), bias, channel=1)
