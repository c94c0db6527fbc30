"""Small networks, one for each way in which channels can be tied together, with what the analysis has to find.

`groups` says for each group how many units it has and how many of them may be removed; `pins` holds a part of the reason
that a pinned unit of a group gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = (2, 3, 6, 6)
TOKENS = (2, 5, 6)


@dataclass(frozen=True)
class Net:
    """A network, the shapes of its inputs, and what is expected of its analysis."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network in float64 and evaluation mode, with seeded weights and no batch norm at its defaults."""
        torch.manual_seed(0)
        model = self.make().double().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm) and module.affine_like:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        return model

    def inputs(self, batch: int | None = None) -> tuple[Tensor, ...]:
        """Seeded inputs of the given batch size."""
        generator = torch.Generator().manual_seed(1)
        return tuple(
            torch.randn(batch or shape[0], *shape[1:], generator=generator, dtype=torch.float64)
            for shape in self.shapes
        )


NETS: dict[str, Net] = {}


def net(
    *shapes: tuple[int, ...], groups: Mapping[str, tuple[int, int]], pins: Mapping[str, str] | None = None
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter a class into the table under its own name."""

    def enter(cls: type[nn.Module]) -> type[nn.Module]:
        NETS[cls.__name__] = Net(cls, shapes or (IMAGE,), groups, pins or {})
        return cls

    return enter


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Head(nn.Module):
    """Mean over the image, then four outputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))
