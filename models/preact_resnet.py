"""Pre-activation residual networks of depth 9n + 2 with bottlenecks, for 32x32 images.

    block:  x -> bn1 - relu - conv1 1x1 - bn2 - relu - conv2 3x3 - bn3 - relu - conv3 1x1 -> +
            x -> shortcut (a bare 1x1 convolution in the first block of a stage) ------------^

The stream itself is never normalised: `bn1` of every block, and the last norm, each read all of it. A channel of the
stream can go only for all of its readers at once, while `conv1` and `conv2` of each block are free.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

EXPANSION: Final = 4
"""Width of the stream over the width inside a bottleneck."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, each behind its norm and ReLU."""

    def __init__(self, inputs: int, inner: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, inner * EXPANSION, 1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` -> `[N, 4 * inner, H / stride, W / stride]`."""
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        summed: Tensor = out + self.shortcut(x)
        return summed


def _stage(inputs: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = inner * EXPANSION
    first = Bottleneck(inputs, inner, stride, nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
    return nn.Sequential(first, *(Bottleneck(outputs, inner, 1, nn.Identity()) for _ in range(blocks - 1)))


class PreActResNet(nn.Module):
    """The network of the module's text."""

    def __init__(self, blocks: int, widths: tuple[int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        stem = widths[0]
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.layer1 = _stage(stem, widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0] * EXPANSION, widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1] * EXPANSION, widths[2], blocks, stride=2)
        self.bn = nn.BatchNorm2d(widths[2] * EXPANSION)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2] * EXPANSION, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_channels, H, W]` -> `[N, num_classes]`."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.pool(self.relu(self.bn(x)))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def preact_resnet(
    depth: int = 164, widths: tuple[int, int, int] = (16, 32, 64), num_classes: int = 10, in_channels: int = 3
) -> PreActResNet:
    """A pre-activation ResNet of depth 9n + 2; `widths` are those inside the bottlenecks."""
    blocks, rest = divmod(depth - 2, 9)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 9n + 2 (11, 20, 29, 56, 110, 164, ...), got {depth}")
    return PreActResNet(blocks, widths, num_classes, in_channels)


def preact_resnet164(num_classes: int = 10, in_channels: int = 3) -> PreActResNet:
    """Eighteen bottlenecks a stage."""
    return preact_resnet(164, num_classes=num_classes, in_channels=in_channels)
