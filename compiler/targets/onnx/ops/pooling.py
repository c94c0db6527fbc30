"""Pooling over images. The sizes of images are known, so rounding up becomes padding that a runtime needn't guess."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op

_MAX = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def _images(call: Call) -> tuple[int, list[int]]:
    """How many dimensions the images have, and their sizes. Declines images without a batch."""
    kind = call.kind
    count = next(int(digit) for digit in kind if digit.isdigit())
    if call.rank_of(call.subject) != count + 2:
        call.decline("the image has no batch dimension")
    return count, call.fixed_shape_of(call.subject, range(2, count + 2))


@on_module(*_MAX)
@on_op("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(call: Call) -> str:
    """The largest in each window; padding never is."""
    count, sizes = _images(call)
    if call.option(6, "return_indices", False):
        call.decline("it gives the places, too")
    kernel, stride, padding = _window(call, count)
    dilation = call.spread(call.option(4, "dilation", 1), count)
    outer = call.fixed_shape_of(call.node, range(2, count + 2))
    ends = [
        max(p, (out - 1) * s + d * (k - 1) + 1 - size - p)
        for p, out, s, d, k, size in zip(padding, outer, stride, dilation, kernel, sizes, strict=True)
    ]
    pads = [*padding, *ends]
    return call.add("MaxPool", call.first, kernel_shape=kernel, strides=stride, pads=pads, dilations=dilation)


@on_module(*_AVERAGE)
@on_op("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(call: Call) -> str:
    """The mean of each window."""
    count, sizes = _images(call)
    kernel, stride, padding = _window(call, count)
    outer = call.fixed_shape_of(call.node, range(2, count + 2))
    down = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(sizes, padding, kernel, stride, strict=True)]
    if down != outer:
        call.decline("windows reach over the padded edge")
    if call.option(6, "divisor_override") is not None:
        call.decline("its divisor is given")
    counted = int(bool(call.option(5, "count_include_pad", True)))
    return call.add(
        "AveragePool", call.first, kernel_shape=kernel, strides=stride, pads=padding * 2, count_include_pad=counted
    )


def _window(call: Call, count: int) -> tuple[list[int], list[int], list[int]]:
    kernel, stride = call.option(1, "kernel_size"), call.option(2, "stride")
    stride = kernel if stride is None or stride == () or stride == [] else stride
    return call.spread(kernel, count), call.spread(stride, count), call.spread(call.option(3, "padding", 0), count)


@on_module(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
@on_op("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_average_pool(call: Call) -> str:
    """Equal windows are an average pool; uneven ones are a product with a matrix for each dimension."""
    count, sizes = _images(call)
    outer = call.fixed_shape_of(call.node, range(2, count + 2))
    if outer == sizes:
        return call.first
    if all(size == 1 for size in outer):
        return call.add("GlobalAveragePool", call.first)
    if all(size % out == 0 for size, out in zip(sizes, outer, strict=True)):
        kernel = [size // out for size, out in zip(sizes, outer, strict=True)]
        return call.add("AveragePool", call.first, kernel_shape=kernel, strides=kernel)
    if count > 2:
        call.decline("its windows are uneven")
    name = call.add("MatMul", call.first, call.graph.tensor(_means(sizes[-1], outer[-1], call.dtype).T.contiguous()))
    return name if count == 1 else call.add("MatMul", call.graph.tensor(_means(sizes[0], outer[0], call.dtype)), name)


def _means(size: int, outer: int, dtype: torch.dtype) -> torch.Tensor:
    """[outer, size]: each row takes the mean of one window, as torch cuts them."""
    found = torch.zeros(outer, size, dtype=dtype)
    for row in range(outer):
        start, end = row * size // outer, -(-(row + 1) * size // outer)
        found[row, start:end] = 1 / (end - start)
    return found


@on_module(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
@on_op("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(call: Call) -> str:
    """Equal windows are a max pool."""
    count, sizes = _images(call)
    if call.option(2, "return_indices", False):
        call.decline("it gives the places, too")
    outer = call.fixed_shape_of(call.node, range(2, count + 2))
    if all(size == 1 for size in outer):
        return call.add("GlobalMaxPool", call.first)
    return _even_max_pool(call, sizes, outer)


def _even_max_pool(call: Call, sizes: Sequence[int], outer: Sequence[int]) -> str:
    if any(size % out for size, out in zip(sizes, outer, strict=True)):
        call.decline("its windows are uneven")
    kernel = [size // out for size, out in zip(sizes, outer, strict=True)]
    return call.add("MaxPool", call.first, kernel_shape=kernel, strides=kernel)
