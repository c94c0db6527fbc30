"""Convolutions, as layers and as functions; padding that a Conv can't do is a Pad before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op

PAD_MODES = {"zeros": "constant", "constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""torch's name of a way to pad -> ONNX's."""


@on_module(nn.Conv1d, nn.Conv2d, nn.Conv3d)
@on_op("conv1d", "conv2d", "conv3d")
def convolution(call: Call) -> str:
    """Conv: the same layout of weights as torch's."""
    weight, bias, count = _parts(call)
    kernel = call.fixed_shape_of(weight, range(2, 2 + count))
    dilation = call.spread(call.option(5, "dilation", 1), count)
    mode = getattr(call.module, "padding_mode", "zeros") if call.is_module else "zeros"
    name, pads = call.first, _pads(call, call.option(4, "padding", 0), kernel, dilation)
    if mode != "zeros" and any(pads):
        name, pads = padded(call, name, call.rank_of(call.subject), pads, mode), [0] * len(pads)
    inputs = [name, call.name(weight)] + ([] if bias is None else [call.name(bias)])
    made = call.add(
        "Conv",
        *inputs,
        kernel_shape=kernel,
        strides=call.spread(call.option(3, "stride", 1), count),
        pads=pads,
        dilations=dilation,
        group=int(call.option(6, "groups", 1)),
    )
    fixed, shift = call.constant(weight), None if bias is None else call.constant(bias)
    if fixed is not None and (bias is None or shift is not None):
        call.graph.foldable[call.node] = (fixed, shift)
    return made


@on_module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
@on_op("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(call: Call) -> str:
    """ConvTranspose: the same layout of weights as torch's."""
    weight, bias, count = _parts(call)
    if call.is_module and len(call.node.args) + len(call.node.kwargs) > 1:
        call.decline("its size is given with the call")
    inputs = [call.first, call.name(weight)] + ([] if bias is None else [call.name(bias)])
    return call.add(
        "ConvTranspose",
        *inputs,
        kernel_shape=call.fixed_shape_of(weight, range(2, 2 + count)),
        strides=call.spread(call.option(3, "stride", 1), count),
        pads=call.spread(call.option(4, "padding", 0), count) * 2,
        output_padding=call.spread(call.option(5, "output_padding", 0), count),
        group=int(call.option(6, "groups", 1)),
        dilations=call.spread(call.option(7, "dilation", 1), count),
    )


def _parts(call: Call) -> tuple[Any, Any, int]:
    """The weight, the bias, and over how many dimensions the kernel moves; declined without a batch dimension."""
    weight, bias = call.operand(1, "weight"), call.operand(2, "bias")
    count = call.rank_of(weight) - 2
    if call.rank_of(call.subject) != count + 2:
        call.decline("the image has no batch dimension")
    return weight, bias, count


def _pads(call: Call, padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding at the beginnings, then at the ends; `same` pads the end by one more where it must."""
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [*(n // 2 for n in whole), *(n - n // 2 for n in whole)]
    return [0] * 2 * len(kernel) if padding == "valid" else call.spread(padding, len(kernel)) * 2


def padded(call: Call, name: str, rank: int, pads: Sequence[int], mode: str, value: float = 0.0) -> str:
    """A Pad of the last dimensions: `pads` are those at their beginnings, then those at their ends."""
    if mode == "circular" and call.graph.opset < 19:
        call.decline("circular padding came with opset 19")
    count = len(pads) // 2
    whole = [*[0] * (rank - count), *pads[:count], *[0] * (rank - count), *pads[count:]]
    given = [call.scalar(value)] if mode in {"zeros", "constant"} and value else []
    return call.add("Pad", name, call.numbers(*whole), *given, mode=PAD_MODES[mode])


def scaled(tensor: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """A weight whose outputs (dimension 0) are multiplied, computed in float64."""
    shape = [-1] + [1] * (tensor.ndim - 1)
    return (tensor.detach().double() * factor.view(shape)).to(tensor.dtype)
