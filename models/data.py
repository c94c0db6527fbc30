"""Data factories: each gives an object with `train()`, `val()` and `test()`, iterables of `(inputs, labels)` batches.

    digits          1,797 grey 8x8 images, inside scikit-learn
    mnist, fashion_mnist, cifar10, cifar100, image_folder       from a local folder; nothing is ever downloaded
    random          noise with arbitrary labels

Which sample belongs to which split is fixed, so that weights trained with one seed have never seen another seed's test
split. The seed decides the order of the training batches and their augmentation, and nothing else: a call of
`train()` starts the same stream again, and every pass over the iterable that it gives goes on with that stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, Subset

from prunec.models import idx

SPLIT_SEED: Final = 0
DIGITS_HELD_OUT: Final = (180, 360)
"""Validation and test images of `digits`."""
CROP_PADDING: Final = 4

Part = tuple[Tensor, Tensor]
Loader = DataLoader[Any]


@dataclass(frozen=True)
class Normalise:
    """Bytes or floats `[N, C, H, W]` -> float32: divided by `scale`, then `(x - mean) / std` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / self.scale - mean) / std


MNIST: Final = Normalise((0.1307,), (0.3081,))
FASHION_MNIST: Final = Normalise((0.2860,), (0.3530,))
CIFAR10: Final = Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100: Final = Normalise((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET: Final = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), scale=1.0)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image of `[N, C, H, W]` by up to four pixels over black, and mirror half of them."""
    count, channels, height, width = images.shape
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(channels).view(1, -1, 1, 1)
    padded = F.pad(images, (CROP_PADDING,) * 4)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class _Batches(Dataset[Part]):
    """Samples in memory, fetched a batch at a time: an index is a list of positions."""

    def __init__(self, part: Part, change: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels = part
        self.change = change

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: list[int]) -> Part:
        return self.change(self.images[positions]), self.labels[positions]


def _identity(images: Tensor) -> Tensor:
    return images


@dataclass(frozen=True)
class TensorData:
    """Three parts in memory; images are normalised, and where asked for augmented, batch by batch."""

    parts: dict[str, Part] = field(repr=False)
    batch_size: int
    seed: int
    normalise: Callable[[Tensor], Tensor] = _identity
    augment: bool = False

    def train(self) -> Loader:
        """Shuffled batches; each iteration over the loader brings another order."""
        generator = torch.Generator().manual_seed(self.seed)

        def change(images: Tensor) -> Tensor:
            return self.normalise(crop_and_flip(images, generator) if self.augment else images)

        dataset = _Batches(self.parts["train"], change)
        return self._loader(dataset, RandomSampler(dataset, generator=generator), generator)

    def val(self) -> Loader:
        """Held out of the training data; always in the same order."""
        return self._in_order("val")

    def test(self) -> Loader:
        """The test split; always in the same order."""
        return self._in_order("test")

    def _in_order(self, split: str) -> Loader:
        dataset = _Batches(self.parts[split], self.normalise)
        return self._loader(dataset, SequentialSampler(dataset), torch.Generator())

    def _loader(self, dataset: _Batches, order: Any, generator: torch.Generator) -> Loader:
        # A loader without a generator of its own draws from torch's global one, and so disturbs whoever uses that.
        batches = BatchSampler(order, self.batch_size, drop_last=False)
        return DataLoader(dataset, sampler=batches, batch_size=None, generator=generator)


def _hold_out(labels: np.ndarray[Any, Any], count: int | float) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out), with the same share of every class in both."""
    kept, held = train_test_split(
        np.arange(len(labels)), test_size=count, stratify=labels, random_state=SPLIT_SEED, shuffle=True
    )
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))


def _with_val(train: Part, test: Part, val: int) -> dict[str, Part]:
    images, labels = train
    kept, held = _hold_out(labels.numpy(), val)
    return {"train": (images[kept], labels[kept]), "val": (images[held], labels[held]), "test": test}


def digits(batch_size: int = 128, seed: int = 0, size: int = 8, classes: Sequence[int] | None = None) -> TensorData:
    """8x8 grey digits as `[N, 1, size, size]` in [0, 1]: 1,257 to train on, 180 to validate, 360 to test.

    A larger `size` is reached by bilinear interpolation, for networks that need it. Of `classes`, where they are
    named, the first is class 0.
    """
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16.0).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    val, test = DIGITS_HELD_OUT
    rest, held = _hold_out(labels.numpy(), test)
    parts = _with_val((images[rest], labels[rest]), (images[held], labels[held]), val)
    parts = {split: _of_classes(part, classes) for split, part in parts.items()}
    if size != images.shape[-1]:
        parts = {split: (_scaled(images, size), labels) for split, (images, labels) in parts.items()}
    return TensorData(parts, batch_size, seed)


def _scaled(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def _of_classes(part: Part, classes: Sequence[int] | None) -> Part:
    """The samples of some classes, which are numbered anew in their order; all samples where none is named."""
    if classes is None:
        return part
    images, labels = part
    known = set(labels.tolist())
    if not classes or len(set(classes)) < len(classes) or not known.issuperset(classes):
        raise ValueError(f"classes must be different ones of 0 to {max(known)}, got {list(classes)}")
    mine = torch.isin(labels, torch.tensor(list(classes)))
    place = torch.zeros(max(known) + 1, dtype=torch.long)
    place[list(classes)] = torch.arange(len(classes))
    return images[mine], place[labels[mine]]


def random(
    shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, samples: int = 256, batch_size: int = 64, seed: int = 0
) -> TensorData:
    """Normal noise with arbitrary labels, `samples` in each split: for smoke tests and timings, nothing to learn."""

    def part(number: int) -> Part:
        rng = np.random.default_rng([seed, number])
        images = rng.standard_normal((samples, *shape), dtype=np.float32)
        return torch.from_numpy(images), torch.from_numpy(rng.integers(0, classes, samples))

    parts = {split: part(number) for number, split in enumerate(("train", "val", "test"))}
    return TensorData(parts, batch_size, seed)


def mnist(
    root: str, batch_size: int = 128, seed: int = 0, val: int = 5000, size: int = 28, augment: bool = False
) -> TensorData:
    """MNIST as `[N, 1, size, size]`; `root` holds the four idx files, or `MNIST/raw` with them.

    A larger `size` is reached by black borders: 32 for networks that are made for CIFAR.
    """
    return _grey(root, "MNIST", MNIST, TensorData({}, batch_size, seed, augment=augment), (val, size))


def fashion_mnist(
    root: str, batch_size: int = 128, seed: int = 0, val: int = 5000, size: int = 28, augment: bool = False
) -> TensorData:
    """Fashion-MNIST as `[N, 1, size, size]`, as `mnist`; `root` may hold `FashionMNIST/raw`."""
    return _grey(root, "FashionMNIST", FASHION_MNIST, TensorData({}, batch_size, seed, augment=augment), (val, size))


def _grey(root: str, name: str, normalise: Normalise, options: TensorData, amounts: tuple[int, int]) -> TensorData:
    val, size = amounts
    train, test = idx.read_splits(Path(root).expanduser(), name)
    parts = _with_val(train, test, val)
    border = size - train[0].shape[-1]
    if border < 0 or border % 2:
        raise ValueError(f"size must be 28, 30, 32, ..., got {size}")
    if border:
        parts = {split: (F.pad(images, (border // 2,) * 4), labels) for split, (images, labels) in parts.items()}
    return replace(options, parts=parts, normalise=normalise)


def cifar10(root: str, batch_size: int = 128, seed: int = 0, val: int = 5000, augment: bool = True) -> TensorData:
    """CIFAR-10 as `[N, 3, 32, 32]`; `root` holds `cifar-10-batches-py`."""
    parts = _cifar(root, "CIFAR10", val)
    return TensorData(parts, batch_size, seed, CIFAR10, augment)


def cifar100(root: str, batch_size: int = 128, seed: int = 0, val: int = 5000, augment: bool = True) -> TensorData:
    """CIFAR-100 with its fine labels as `[N, 3, 32, 32]`; `root` holds `cifar-100-python`."""
    parts = _cifar(root, "CIFAR100", val)
    return TensorData(parts, batch_size, seed, CIFAR100, augment)


def _cifar(root: str, name: str, val: int) -> dict[str, Part]:
    dataset = getattr(_torchvision().datasets, name)
    folder = Path(root).expanduser() / dataset.base_folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{name} needs the folder {folder}: unpack {dataset.filename} into {root}")

    def part(train: bool) -> Part:
        try:
            loaded = dataset(folder.parent, train=train, download=False)
        except RuntimeError as error:  # torchvision's answer to a missing file and to a wrong checksum
            message = f"{folder} is incomplete or damaged: unpack {dataset.filename} into {root} again"
            raise ValueError(message) from error
        return torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(loaded.targets)

    return _with_val(part(True), part(False), val)


Split = Callable[[], Loader]


@dataclass(frozen=True)
class FolderData:
    """Splits of images that are read from disk when a batch asks for them; None where there is no folder."""

    train: Split | None = None
    """Shuffled batches; each iteration over the loader brings another order."""
    val: Split | None = None
    """The folder `val`, or what was held out of `train`; always in the same order."""
    test: Split | None = None
    """The folder `test`; always in the same order."""


def image_folder(
    root: str, size: int = 224, batch_size: int = 64, seed: int = 0, val: float = 0.1, num_workers: int = 0
) -> FolderData:
    """Images as `root/train/CLASS/*`, `root/val/CLASS/*` and `root/test/CLASS/*`, scaled and cropped to `size`, with
    ImageNet's normalisation.

    Any of the folders may be missing. Without `root/val` the share `val` of the training images is held out.
    """
    vision, folder = _torchvision(), Path(root).expanduser()
    splits = [split for split in ("train", "val", "test") if (folder / split).is_dir()]
    if not splits:
        wanted = f"{folder} must hold one or more of train/CLASS/*, val/CLASS/* and test/CLASS/*"
        raise FileNotFoundError(f"{wanted}: it has none of these folders")
    steps = [vision.transforms.Resize(size), vision.transforms.CenterCrop(size), vision.transforms.ToTensor(), IMAGENET]
    change = vision.transforms.Compose(steps)
    parts = {split: vision.datasets.ImageFolder(folder / split, change) for split in splits}
    classes = parts[splits[0]].classes
    for split, part in parts.items():
        if part.classes != classes:
            raise ValueError(f"{folder / split} must hold the classes of {splits[0]}, {classes}, got {part.classes}")
    if "val" not in parts and "train" in parts:
        train = parts["train"]
        kept, held = _hold_out(np.array(train.targets), val)
        parts |= {"train": Subset(train, kept.tolist()), "val": Subset(train, held.tolist())}

    def loader(split: str) -> Loader:
        generator = torch.Generator().manual_seed(seed)
        shuffle = split == "train"
        return DataLoader(parts[split], batch_size, shuffle, num_workers=num_workers, generator=generator)

    return FolderData(**{split: partial(loader, split) for split in parts})


def _torchvision() -> ModuleType:
    try:
        import torchvision  # noqa: PLC0415  (heavy, and an optional extra)
    except ModuleNotFoundError as error:
        message = "this data factory needs torchvision, which isn't installed: pip install 'prunec[vision]'"
        raise ModuleNotFoundError(message) from error
    vision: ModuleType = torchvision
    return vision
