"""VGG with batch norm for 32x32 images.

    features:   conv1 - norm1 - relu1 - ... - pool1 - ... - pool5      3x3 convolutions without bias, five halvings
    classifier: fc1 - norm1 - relu1 - ... - fc                         hidden layers by `head`; none by default

Convolutions count from 1 through the whole network (`features.conv8`), as papers on pruning count them.
Five pools leave a 1x1 map, so the classifier reads one value per channel of the last convolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from torch import Tensor, nn

STAGE_WIDTHS: Final = (64, 128, 256, 512, 512)
STAGE_CONVS: Final = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> convolutions before each of the five pools."""


def _features(convs: Sequence[int], widths: Sequence[int], in_channels: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index, channels = 0, in_channels
    for stage, count in enumerate(convs, start=1):
        for width in widths[index : index + count]:
            index += 1
            layers[f"conv{index}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers[f"norm{index}"] = nn.BatchNorm2d(width)
            layers[f"relu{index}"] = nn.ReLU()
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def _classifier(widths: Sequence[int]) -> nn.Sequential:
    *hidden, last = pairwise(widths)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (inputs, outputs) in enumerate(hidden, start=1):
        layers[f"fc{index}"] = nn.Linear(inputs, outputs)
        layers[f"norm{index}"] = nn.BatchNorm1d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
    layers["fc"] = nn.Linear(*last)
    return nn.Sequential(layers)


class VGG(nn.Module):
    """The network of the module's text."""

    def __init__(
        self, convs: Sequence[int], widths: Sequence[int], head: Sequence[int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        if len(widths) != sum(convs):
            raise ValueError(f"widths must name {sum(convs)} convolutions, got {len(widths)}")
        self.features = _features(convs, widths, in_channels)
        self.classifier = _classifier((widths[-1], *head, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_channels, 32, 32]` -> `[N, num_classes]`."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def vgg_bn(
    depth: int,
    num_classes: int = 10,
    in_channels: int = 3,
    head: Sequence[int] = (),
    widths: Sequence[int] | None = None,
) -> VGG:
    """A VGG of a depth in `STAGE_CONVS`; `head` names hidden linear layers, `widths` every convolution's channels."""
    if depth not in STAGE_CONVS:
        raise ValueError(f"depth must be one of {sorted(STAGE_CONVS)}, got {depth}")
    convs = STAGE_CONVS[depth]
    standard = [width for count, width in zip(convs, STAGE_WIDTHS, strict=True) for _ in range(count)]
    return VGG(convs, standard if widths is None else widths, head, num_classes, in_channels)


def vgg11_bn(
    num_classes: int = 10, in_channels: int = 3, head: Sequence[int] = (), widths: Sequence[int] | None = None
) -> VGG:
    """VGG-11: 8 convolutions."""
    return vgg_bn(11, num_classes, in_channels, head, widths)


def vgg16_bn(
    num_classes: int = 10, in_channels: int = 3, head: Sequence[int] = (), widths: Sequence[int] | None = None
) -> VGG:
    """VGG-16: 13 convolutions; `head=(512,)` gives the classifier 512 -> 512 -> `num_classes`."""
    return vgg_bn(16, num_classes, in_channels, head, widths)


def vgg19_bn(
    num_classes: int = 10, in_channels: int = 3, head: Sequence[int] = (), widths: Sequence[int] | None = None
) -> VGG:
    """VGG-19: 16 convolutions."""
    return vgg_bn(19, num_classes, in_channels, head, widths)
