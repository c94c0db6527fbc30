"""Residual networks of depth 6n + 2 for 32x32 images: a stem, three stages of n basic blocks, a linear layer.

    block:  x -> conv1 - bn1 - relu - conv2 - bn2 -> + -> relu
            x -> shortcut -------------------------^

Within a stage the shortcut is the identity. Where a stage halves the map and widens the stream it is one of

    zero_pad     every second pixel, and zero channels half before and half behind: no parameters
    projection   a convolution of stride 2 and a batch norm

All convolutions that add into a stage's stream are coupled; `conv1` of each block is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

ShortcutFactory = Callable[[int, int], nn.Module]


class ZeroPad(nn.Module):
    """The shortcut without parameters: subsample by 2, then pad the channels with zeros on both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.behind = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` -> `[N, outputs, ceil(H / 2), ceil(W / 2)]`."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))


def _projection(inputs: int, outputs: int, kernel: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


SHORTCUTS: Final[dict[str, ShortcutFactory]] = {
    "zero_pad": ZeroPad,
    "projection": _projection,
    "projection_2x2": partial(_projection, kernel=2),  # what the published cost counts of centripetal SGD assume
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `inner` is the width between the two."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` -> `[N, outputs, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        summed: Tensor = self.relu(out + self.shortcut(x))
        return summed


class ResNet(nn.Module):
    """The network of the module's text; `inner[s][b]` is the inner width of block b in stage s + 1."""

    def __init__(
        self,
        widths: Sequence[int],
        inner: Sequence[Sequence[int]],
        shortcut: ShortcutFactory,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = self._stage(widths[0], widths[0], inner[0], nn.Identity())
        self.layer2 = self._stage(widths[0], widths[1], inner[1], shortcut(widths[0], widths[1]))
        self.layer3 = self._stage(widths[1], widths[2], inner[2], shortcut(widths[1], widths[2]))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, inner: Sequence[int], shortcut: nn.Module) -> nn.Sequential:
        stride = 1 if isinstance(shortcut, nn.Identity) else 2
        first = BasicBlock(inputs, inner[0], outputs, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(outputs, width, outputs, 1, nn.Identity()) for width in inner[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_channels, H, W]` -> `[N, num_classes]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _inner_widths(blocks: int, widths: Sequence[int], inner: Sequence[int] | None) -> list[Sequence[int]]:
    flat = [width for width in widths for _ in range(blocks)] if inner is None else list(inner)
    if len(flat) != 3 * blocks:
        raise ValueError(f"inner must name {3 * blocks} blocks, got {len(flat)}")
    return [flat[stage * blocks : (stage + 1) * blocks] for stage in range(3)]


def resnet(
    depth: int = 20,
    shortcut: str = "zero_pad",
    widths: tuple[int, int, int] = (16, 32, 64),
    num_classes: int = 10,
    in_channels: int = 3,
    inner: Sequence[int] | None = None,
) -> ResNet:
    """A ResNet of depth 6n + 2; `inner` names the width of each block's first convolution, by default its stage's."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 56, 110, ...), got {depth}")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut must be one of {', '.join(SHORTCUTS)}, got {shortcut!r}")
    return ResNet(widths, _inner_widths(blocks, widths, inner), SHORTCUTS[shortcut], num_classes, in_channels)


def resnet20(shortcut: str = "zero_pad", num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Three blocks a stage."""
    return resnet(20, shortcut, num_classes=num_classes, in_channels=in_channels)


def resnet56(shortcut: str = "zero_pad", num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Nine blocks a stage."""
    return resnet(56, shortcut, num_classes=num_classes, in_channels=in_channels)


def resnet110(shortcut: str = "zero_pad", num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Eighteen blocks a stage."""
    return resnet(110, shortcut, num_classes=num_classes, in_channels=in_channels)
