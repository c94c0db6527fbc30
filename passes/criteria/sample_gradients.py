"""The gradients of a weight for each sample by itself, from one run of all of them: their absolute values, summed.

    linear           dC_n/dW = sum over rows l of  g[n, l] x[n, l]'
    convolution      the same, where row l of x holds the window at position l of the map
    transposed       the same, with the windows of g, and x in g's place
    several calls    the rows of all of them: a sample's gradients add up before the absolute value is taken

x is what the layer reads, g the gradient of what it gives. Of [samples, out, in, kernel] numbers only some stand in
memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunec.passes.criteria.layer_calls import LayerCall, samples_first

SCRATCH: Final = 2**23
"""Numbers that are computed at a time."""

Part = tuple[LayerCall, Tensor, Tensor]
"""A call of a layer, what it has read, and the gradient of what it gave."""


def absolute_sums(parts: Sequence[Part], scratch: int = SCRATCH, *, both: bool = True) -> tuple[Tensor, Tensor]:
    """For each sample, the summed absolute gradients of the weight's elements that belong to a position of dimension 0,
    and of dimension 1: two tensors [samples, positions]. Where `both` aren't wanted, the second is zero.

    `parts` are all calls with this weight for the same samples. Dimension 1 of a grouped convolution counts the
    channels of all groups. Some `scratch` numbers are computed at a time, more where one sample and filter need them.
    """
    samples = parts[0][1].shape[parts[0][0].batch] // parts[0][0].rows
    each = sum(x.numel() * _kernel(call) + g.numel() for call, x, g in parts) // samples
    step = max(1, scratch // max(each, 1))
    found = [
        _sums([_rows(call, *_some(call, start, step, x, g)) for call, x, g in parts], scratch, both)
        for start in range(0, samples, step)
    ]
    rows, columns = (torch.cat(each) for each in zip(*found, strict=True))
    return rows, columns


def _kernel(call: LayerCall) -> int:
    """How many elements of a window a channel has."""
    return 1 if call.conv is None else call.conv.weight[0, 0].numel()


def _some(call: LayerCall, start: int, step: int, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.narrow(call.batch, low := start * call.rows, _length(x, call, low, step)) for x in values)


def _length(values: Tensor, call: LayerCall, low: int, step: int) -> int:
    return min(step * call.rows, values.shape[call.batch] - low)


_Rows = tuple[Tensor, Tensor, int]
"""Windows [samples, groups, channels * kernel, rows], gradients [samples, groups, filters, rows], and the kernel."""


def _rows(call: LayerCall, source: Tensor, gradient: Tensor) -> _Rows:
    if call.conv is None:
        x, g = samples_first(source, call), samples_first(gradient, call)
        return x.transpose(1, 2)[:, None], g.transpose(1, 2)[:, None], 1
    conv = call.conv
    if isinstance(conv, _ConvTransposeNd):
        source, gradient = gradient, source  # the weight is that of the convolution which goes the other way
    windows = _windows(conv, source, gradient.shape[2:])
    dims, groups, rows = gradient.ndim - 2, conv.groups, call.rows
    x = torch.unflatten(
        torch.unflatten(windows, 1, (groups, -1)), 0, (-1, rows)
    )  # [samples, rows, groups, channels, places, kernel]
    places, kernel = range(4, 4 + dims), range(4 + dims, 4 + 2 * dims)
    x = x.permute(0, 2, 3, *kernel, 1, *places).flatten(3 + dims).flatten(2, 2 + dims)
    g = torch.unflatten(
        torch.unflatten(gradient, 1, (groups, -1)), 0, (-1, rows)
    )  # [samples, rows, groups, filters, places]
    return x, g.permute(0, 2, 3, 1, *range(4, 4 + dims)).flatten(3), _kernel(call)


def _windows(conv: _ConvNd, source: Tensor, places: torch.Size) -> Tensor:
    """The windows that a convolution reads: [samples, channels, *places, *kernel], a view of the padded source."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    found = F.pad(source, conv._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, step, apart) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), 2):
        found = found.unfold(dim, (size - 1) * apart + 1, step)[..., ::apart].narrow(dim, 0, places[dim - 2])
    return found


def _sums(parts: Sequence[_Rows], scratch: int, both: bool) -> tuple[Tensor, Tensor]:
    """[samples, filters of all groups] and [samples, channels of all groups]."""
    x, g = parts[0][:2]
    if len(parts) > 1:
        x, g = torch.cat([part[0] for part in parts], 3), torch.cat([part[1] for part in parts], 3)
    kernel, filters = parts[0][2], g.shape[2]
    if x.shape[3] == 1:  # one row: the gradient is a product of two vectors
        x, g = x[..., 0].abs(), g[..., 0].abs()
        outer = torch.unflatten(x, 2, (-1, kernel)).sum(3) * g.sum(2, keepdim=True)
        return (g * x.sum(2, keepdim=True)).flatten(1), outer.flatten(1)
    columns = x.new_zeros(*x.shape[:2], x.shape[2] // kernel)
    rows: list[Tensor] = []
    step = max(1, scratch // max(x.shape[0] * x.shape[1] * x.shape[2], 1))
    for start in range(0, filters, step):
        gradient = torch.matmul(g[:, :, start : start + step], x.transpose(2, 3)).abs_()
        rows.append(gradient.sum(3))
        if both:
            columns += torch.unflatten(gradient.sum(2), 2, (-1, kernel)).sum(3)
    return torch.cat(rows, 2).flatten(1), columns.flatten(1)
