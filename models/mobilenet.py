"""Networks of depthwise and pointwise convolutions (MobileNet, Howard et al. 2017), for 32x32 images.

    block:  x -> depthwise 3x3 - norm - relu - pointwise 1x1 - norm - relu

The stem has stride 1, so that the map is 4x4 before the last pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

BLOCKS: Final = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 1), (1024, 1))
"""(channels, stride) of each block."""


class Block(nn.Module):
    """A depthwise convolution, and one that mixes the channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` -> `[N, outputs, H / stride, W / stride]`."""
        mixed: Tensor = self.relu(self.norm2(self.pointwise(self.relu(self.norm1(self.depthwise(x))))))
        return mixed


class MobileNet(nn.Module):
    """A stem, the blocks, a pool and a linear layer."""

    def __init__(self, stem: int, blocks: Sequence[tuple[int, int]], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        widths = [stem, *(outputs for outputs, _ in blocks)]
        pairs = zip(widths, blocks, strict=False)
        self.blocks = nn.Sequential(*(Block(inputs, outputs, stride) for inputs, (outputs, stride) in pairs))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_channels, H, W]` -> `[N, num_classes]`."""
        x = self.blocks(self.relu(self.norm1(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def mobilenet(
    stem: int = 32,
    blocks: Sequence[tuple[int, int]] = BLOCKS,
    num_classes: int = 10,
    in_channels: int = 3,
) -> MobileNet:
    """A MobileNet; `blocks` are (channels, stride), by default the paper's thirteen."""
    return MobileNet(stem, [(int(width), int(stride)) for width, stride in blocks], num_classes, in_channels)
