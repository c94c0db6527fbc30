"""Small networks that tests train, and what stops a training as a kill would."""

from __future__ import annotations

import torch
from torch import nn

from prunec.compiler.errors import PrunecError


def small(dropout: float = 0.0) -> nn.Module:
    """A network of two convolutions with batch norm for `[N, 3, 6, 6]`, in eval mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 5),
    ).eval()


class Residual(nn.Module):
    """Two batch-normed convolutions into one stream of 6 channels, a branch of 5, and a classifier."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.fc(x.mean((2, 3)))


class Killed(PrunecError):
    """What nobody catches."""


class Killer:
    """A progress that stops a compile at its nth report."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed("killed")
