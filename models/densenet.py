"""Densely connected networks of depth 3n + 4 for 32x32 images, with basic layers and without compression.

    layer:       x -> norm - relu - conv 3x3 (growth) -> cat([x, new])
    transition:  norm - relu - conv 1x1 (as many out as in) - average pool 2

Every layer's channels reach all later layers of its block, each time at another offset of another concatenation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Adds `growth` channels behind its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` -> `[N, inputs + growth, H, W]`."""
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    """Mixes the channels and halves the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, H, W]` -> `[N, channels, H / 2, W / 2]`."""
        halved: Tensor = self.pool(self.conv(self.relu(self.norm(x))))
        return halved


class DenseNet(nn.Module):
    """A stem, three dense blocks with transitions between them, a norm and a linear layer."""

    def __init__(self, layers: int, growth: int, stem: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        ends = [stem + block * layers * growth for block in range(4)]
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.block1 = _dense_block(ends[0], layers, growth)
        self.transition1 = Transition(ends[1])
        self.block2 = _dense_block(ends[1], layers, growth)
        self.transition2 = Transition(ends[2])
        self.block3 = _dense_block(ends[2], layers, growth)
        self.norm = nn.BatchNorm2d(ends[3])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(ends[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_channels, H, W]` -> `[N, num_classes]`."""
        x = self.transition1(self.block1(self.conv1(x)))
        x = self.transition2(self.block2(x))
        x = self.pool(self.relu(self.norm(self.block3(x))))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def _dense_block(inputs: int, layers: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(inputs + index * growth, growth) for index in range(layers)))


def densenet(
    depth: int = 40, growth: int = 12, stem: int = 16, num_classes: int = 10, in_channels: int = 3
) -> DenseNet:
    """A DenseNet of depth 3n + 4; `stem` is the first convolution's width."""
    layers, rest = divmod(depth - 4, 3)
    if rest or layers < 1:
        raise ValueError(f"depth must be 3n + 4 (7, 10, 22, 40, 100, ...), got {depth}")
    return DenseNet(layers, growth, stem, num_classes, in_channels)


def densenet40(growth: int = 12, num_classes: int = 10, in_channels: int = 3) -> DenseNet:
    """Twelve layers a block."""
    return densenet(40, growth, num_classes=num_classes, in_channels=in_channels)
