"""Networks that grow: what `speed.py` measures growth on, next to torchvision's classifiers.

    residual_chain(depth)   stem - [conv bn relu conv bn + relu] x (depth - 2) / 2 - linear
    dense_block(layers)     stem - [bn relu 1x1 bn relu 3x3, concatenated to its input] x layers - linear

They are narrow and their images small, so that time goes to the graph and not to the arithmetic on weights.
"""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 8
"""Channels of the residual chain, and channels that a dense layer adds."""

IMAGE = (1, 3, 8, 8)


class ResidualBlock(nn.Module):
    """Two convolutions and an identity shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + x)


class DenseLayer(nn.Module):
    """A bottleneck that reads all that came before it and adds `WIDTH` channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * WIDTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * WIDTH)
        self.conv2 = nn.Conv2d(4 * WIDTH, WIDTH, 3, padding=1, bias=False)

    def forward(self, earlier: list[torch.Tensor]) -> torch.Tensor:
        x = self.conv1(torch.relu(self.bn1(torch.cat(earlier, 1))))
        return self.conv2(torch.relu(self.bn2(x)))


class DenseBlock(nn.Module):
    """Layers of which each reads the outputs of all before it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(WIDTH * (index + 1)) for index in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def _classifier(body: nn.Module, channels: int) -> nn.Sequential:
    """A body between a stem and a head for ten classes."""
    stem = nn.Conv2d(IMAGE[1], WIDTH, 3, padding=1, bias=False)
    return nn.Sequential(stem, body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def residual_chain(depth: int) -> nn.Sequential:
    """A chain of `depth` layers with weights: the stem, two for each block, the classifier."""
    blocks = nn.Sequential(*(ResidualBlock() for _ in range((depth - 2) // 2)))
    return _classifier(blocks, WIDTH)


def dense_block(layers: int) -> nn.Sequential:
    """One dense block; the last layer reads `layers` tensors."""
    return _classifier(DenseBlock(layers), WIDTH * (layers + 1))
