"""Pixel and channel shuffles."""

from __future__ import annotations

from torch import nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op


@on_module(nn.PixelShuffle)
@on_op("pixel_shuffle")
def pixel_shuffle(call: Call) -> str:
    """Channels become places."""
    if call.rank != 4:
        call.decline("the image has no batch dimension")
    return call.add("DepthToSpace", call.first, blocksize=int(call.option(1, "upscale_factor")), mode="CRD")


@on_module(nn.PixelUnshuffle)
@on_op("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> str:
    """Places become channels, the place within a block counting fastest."""
    factor, shape = int(call.option(1, "downscale_factor")), call.shape_of(call.subject)
    if len(shape) != 4:
        call.decline("the image has no batch dimension")
    channels, height, width = (call.fixed(size) for size in shape[1:])
    blocks = (shape[0], channels, height // factor, factor, width // factor, factor)
    name = call.transposed(call.reshaped(call.first, shape, blocks), (0, 1, 3, 5, 2, 4))
    return call.reshaped(name, [blocks[place] for place in (0, 1, 3, 5, 2, 4)], call.shape)


@on_module(nn.ChannelShuffle)
@on_op("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> str:
    """Channels of all groups in turns."""
    groups, shape = int(call.option(1, "groups")), call.shape
    channels = call.fixed(shape[1])
    split = (shape[0], groups, channels // groups, *shape[2:])
    order = (0, 2, 1, *range(3, len(split)))
    name = call.transposed(call.reshaped(call.first, shape, split), order)
    return call.reshaped(name, [split[place] for place in order], shape)
