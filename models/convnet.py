"""A plain convolutional network with biases and no batch norm, for 28x28 grey images.

    conv1 32 - relu - pool 2 - conv2 64 - relu - pool 2 - conv3 64 - relu - flatten - fc

Without a norm, a channel's bias survives when only its filter is masked: the network to test that with.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three 3x3 convolutions, the first two followed by a pool, and one linear layer."""

    def __init__(self, widths: tuple[int, int, int], num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(third * (image_size // 4) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_channels, image_size, image_size]` -> `[N, num_classes]`."""
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv3(x))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def convnet(
    widths: tuple[int, int, int] = (32, 64, 64),
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int = 28,
) -> ConvNet:
    """The ConvNet; `widths` are the channels of the three convolutions."""
    return ConvNet(widths, num_classes, in_channels, image_size)
