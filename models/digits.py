"""Small networks for 8x8 grey digits, trained in seconds; their weights come with the package.

    cnn:  conv1 32 - bn - relu - residual block - pool 2 - conv2 64 - bn - relu - residual block - mean - fc
    mlp:  64 - 48 - 32 - 10

In `WEIGHTS`, `digits.safetensors` fits `cnn()`, `digits_mlp.safetensors` fits `mlp()`, and `digits_resnet.safetensors`
fits `resnet()`. `python -m prunec.models.train NAME` makes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from prunec.models import mlp as _mlp
from prunec.models import resnet as _resnet

WEIGHTS: Final = Path(__file__).parent / "weights"
"""The folder of the trained weights."""


class Residual(nn.Module):
    """Two 3x3 convolutions added to their input; `inner` is the width between them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, channels, H, W]` -> the same shape."""
        out = self.relu(self.bn1(self.conv1(x)))
        summed: Tensor = self.relu(x + self.bn2(self.conv2(out)))
        return summed


class DigitsCNN(nn.Module):
    """The convolutional network of the module's text."""

    def __init__(self, widths: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        narrow, wide = widths
        self.conv1 = nn.Conv2d(1, narrow, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.block1 = Residual(narrow, narrow)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(narrow, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.block2 = Residual(wide, wide)
        self.relu = nn.ReLU()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 1, 8, 8]` -> `[N, num_classes]`."""
        x = self.pool(self.block1(self.relu(self.bn1(self.conv1(x)))))
        x = self.block2(self.relu(self.bn2(self.conv2(x))))
        logits: Tensor = self.fc(self.mean(x).flatten(1))
        return logits


def cnn(widths: tuple[int, int] = (32, 64), num_classes: int = 10) -> DigitsCNN:
    """The convolutional network; `widths` before and after the pool."""
    return DigitsCNN(widths, num_classes)


def mlp(widths: Sequence[int] = (64, 48, 32, 10)) -> _mlp.MLP:
    """The multilayer perceptron."""
    return _mlp.mlp(widths)


def resnet(shortcut: str = "zero_pad", widths: tuple[int, int, int] = (8, 16, 32)) -> _resnet.ResNet:
    """A ResNet-8 for grey images; the weights are those of the zero-padded shortcut."""
    return _resnet.resnet(8, shortcut, widths, in_channels=1)
