"""The networks that `criteria.py`, `class_adaptive.py` and `repair.py` cut: small ones, trained anew for every seed.

    embedded_*           digits: the networks whose weights come with the package; a seed draws calibration images
    mlp, cnn, resnet     digits, 8x8: `prunec.models.digits`, the CNN with half its widths, the ResNet with projections
    fashion_resnet       Fashion-MNIST at 14x14: a ResNet-14, 12 to 48 channels wide
    fashion_plain        the same images: six convolutions in a row, 24 to 96 channels wide, as VGG has them
    fashion_mobile       the same images: inverted residuals, with a depthwise convolution in each
    fashion_deep         8,000 of them: a ResNet-44, 8 to 32 channels wide
    fashion_resnet20     as many: 12 to 48 channels wide; fashion_resnet56: 8 to 32 wide; each with projections and, as
                         *_padded, with shortcuts that pad channels with zeros
    fashion_vit          as many: a vision transformer, patches of 2x2, 48 wide, four blocks of four heads

A seed decides the training images, the initial weights and the order of the batches. Trained weights are kept in a
folder, where there is one, so that a second run needn't train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from prunec.models import digits, idx, resnet, train
from prunec.models.data import TensorData
from prunec.models.data import digits as digits_data

FASHION: Final = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` has the images."""
IMAGES: Final = 12_000
"""Of the 60,000 training images of Fashion-MNIST, how many a network is trained on; of 10,000, 2,000 are tested on."""


class Inverted(nn.Module):
    """1x1 to four times the width, 3x3 depthwise, 1x1 back; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = 4 * inputs
        self.expand, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depth = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.project, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`[N, inputs, H, W]` -> `[N, outputs, H / stride, W / stride]`."""
        y = F.relu6(self.bn2(self.depth(F.relu6(self.bn1(self.expand(x))))))
        y = self.bn3(self.project(y))
        return x + y if self.adds else y


def mobile() -> nn.Module:
    """A MobileNet-V2 in small."""
    blocks = [Inverted(*shape) for shape in ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1))]
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    last = [nn.Conv2d(40, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU6()]
    return nn.Sequential(*stem, *blocks, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def plain() -> nn.Module:
    """A VGG in small: two convolutions before each halving."""
    layers: list[nn.Module] = []
    for inputs, width in ((1, 24), (24, 48), (48, 96)):
        for read in (inputs, width):
            layers += [nn.Conv2d(read, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input; the projections of query, key and value are their own."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, tokens, width]` -> the same."""
        y = self.norm1(x)
        parts = (
            layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.project(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer in small, for 14x14 images: patches of 2x2, learned positions, the mean of all tokens."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.Sequential(*(Block(width, heads, 4 * width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 1, 14, 14]` -> `[N, 10]`."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


def _resnet(depth: int, shortcut: str, widths: tuple[int, int, int]) -> Callable[[], nn.Module]:
    return partial(resnet.resnet, depth, shortcut, widths, in_channels=1)


@dataclass(frozen=True)
class Network:
    """How a network is trained, and on which images; or the name of its weights in the package."""

    recipe: train.Recipe
    data: Callable[[int], TensorData]
    weights: str | None = None


def split_digits(seed: int) -> TensorData:
    """The digits, 719 of them to test on, the same share of every class in both parts."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16.0).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    chosen = train_test_split(range(len(labels)), test_size=0.4, stratify=bunch.target, random_state=seed)
    parts = {name: (images[rows], labels[rows]) for name, rows in zip(("train", "test"), chosen, strict=True)}
    return TensorData(parts, batch_size=64, seed=seed)


def fashion(seed: int, count: int = IMAGES, tested: int = 2000) -> TensorData:
    """Fashion-MNIST at half its size, [N, 1, 14, 14]: images that the seed draws to train on, and always the same to
    test on."""
    parts = {name: _part(prefix) for name, prefix in (("train", "train"), ("test", "t10k"))}
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(parts["train"][1]), generator=generator)[:count]
    images, labels = parts["test"]
    return TensorData(
        {"train": (parts["train"][0][drawn], parts["train"][1][drawn]), "test": (images[:tested], labels[:tested])},
        batch_size=64,
        seed=seed,
    )


def _part(prefix: str) -> tuple[Tensor, Tensor]:
    images, labels = (idx.read(FASHION / f"{prefix}-{what}-ubyte.gz") for what in ("images-idx3", "labels-idx1"))
    return F.avg_pool2d((images.float() / 255 - 0.286).unsqueeze(1) / 0.353, 2), labels.long()


def embedded(weights: str) -> Network:
    """A network of the package."""
    return Network(train.RECIPES[weights], lambda seed: digits_data(seed=seed), weights)


NETWORKS: Final = {
    "embedded_cnn": embedded("digits"),
    "embedded_mlp": embedded("digits_mlp"),
    "embedded_resnet": embedded("digits_resnet"),
    "mlp": Network(replace(train.RECIPES["digits_mlp"], epochs=30), split_digits),
    "cnn": Network(train.Recipe(lambda: digits.cnn((16, 32)), epochs=12), split_digits),
    "resnet": Network(train.Recipe(lambda: digits.resnet("projection"), epochs=12), split_digits),
    "fashion_resnet": Network(
        train.Recipe(lambda: resnet.resnet(14, "projection", (12, 24, 48), in_channels=1), epochs=5), fashion
    ),
    "fashion_plain": Network(train.Recipe(plain, epochs=5), fashion),
    "fashion_mobile": Network(train.Recipe(mobile, epochs=5), fashion),
    "fashion_deep": Network(
        train.Recipe(lambda: resnet.resnet(44, "projection", (8, 16, 32), in_channels=1), epochs=4),
        partial(fashion, count=8_000),
    ),
    **{
        f"fashion_resnet{depth}{end}": Network(
            train.Recipe(_resnet(depth, shortcut, widths), epochs=4), partial(fashion, count=8_000)
        )
        for depth, widths in ((20, (12, 24, 48)), (56, (8, 16, 32)))
        for shortcut, end in (("projection", ""), ("zero_pad", "_padded"))
    },
    "fashion_vit": Network(train.Recipe(ViT, epochs=6, lr=0.003), partial(fashion, count=8_000)),
}


def trained(name: str, seed: int, keep: Path | None = None) -> tuple[nn.Module, TensorData]:
    """A network and its data; the weights are read from the folder `keep`, or trained and left there."""
    network = NETWORKS[name]
    data, recipe = network.data(seed), network.recipe
    file = keep / f"{name}_{seed}.safetensors" if keep else None
    if network.weights is not None:
        file = digits.WEIGHTS / f"{network.weights}.safetensors"
    if file is not None and file.exists():
        model = recipe.model()
        model.load_state_dict(load_file(file))
        return model.eval(), data
    model = train.train(recipe, data, recipe.epochs, seed)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    return model, data
