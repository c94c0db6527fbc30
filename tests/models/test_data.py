"""The data factories: what they give, that it is repeatable, and how they refuse a folder that doesn't fit."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from prunec.compiler.data import Data
from prunec.models import data, idx


def everything(batches: object) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def hashes(batches: object) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in everything(batches)[0]]


def test_digits_are_split_once_and_for_all():
    splits = data.digits(seed=0)
    parts = [set(hashes(split())) for split in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [1257, 180, 360]  # no image of this set occurs twice
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    other = data.digits(seed=5)
    assert set(hashes(other.train())) == parts[0]
    assert hashes(other.test()) == hashes(splits.test())


def test_digits_are_scaled_and_every_split_has_every_class():
    splits = data.digits(batch_size=100)
    for split in (splits.train, splits.val, splits.test):
        images, labels = everything(split())
        assert images.shape[1:] == (1, 8, 8)
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (0, 1)
        assert labels.dtype == torch.long
        assert np.bincount(labels).min() >= 0.09 * len(labels)


def test_the_train_order_follows_the_seed_and_changes_with_every_epoch():
    loader = data.digits(seed=1).train()
    first, second = hashes(loader), hashes(loader)
    assert first != second
    again = data.digits(seed=1).train()
    assert [hashes(again), hashes(again)] == [first, second]
    assert hashes(data.digits(seed=2).train()) != first


def test_loaders_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    for split in (data.digits().train, data.digits().test):
        everything(split())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_data_have_the_asked_shape_and_differ_between_splits():
    splits = data.random(shape=[2, 5], classes=3, samples=10, batch_size=4)
    assert [tuple(images.shape) for images, _ in splits.test()] == [(4, 2, 5), (4, 2, 5), (2, 2, 5)]
    assert set(everything(splits.test())[1].tolist()) <= {0, 1, 2}
    assert hashes(splits.val()) != hashes(splits.test())
    assert hashes(splits.test()) == hashes(data.random([2, 5], 3, 10).test())


def write_idx(folder, *, packed: bool, train_count: int = 60) -> None:
    """Four small idx files with classes 0..9 in turn and image values that tell the images apart."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", train_count), ("test", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for file, values in zip(idx.FILES[split], (images, labels), strict=True):
            content = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
            target = folder / (f"{file}.gz" if packed else file)
            target.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_idx_files_are_read_from_a_bare_folder(tmp_path, packed):
    write_idx(tmp_path, packed=packed)
    splits = data.fashion_mnist(str(tmp_path), val=20)
    sizes = [len(everything(split())[1]) for split in (splits.train, splits.val, splits.test)]
    assert sizes == [40, 20, 20]
    assert not set(hashes(splits.train())) & set(hashes(splits.val()))
    assert np.bincount(everything(splits.val())[1]).tolist() == [2] * 10


def test_idx_files_are_read_as_torchvision_reads_them(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    write_idx(tmp_path / "FashionMNIST" / "raw", packed=False)
    theirs = torchvision.datasets.FashionMNIST(tmp_path, train=False)
    images, labels = everything(data.fashion_mnist(str(tmp_path), val=20).test())
    assert torch.equal(labels, theirs.targets)
    assert torch.allclose(images * 0.3530 + 0.2860, theirs.data.unsqueeze(1) / 255.0, atol=1e-6)


def test_mnist_differs_from_fashion_only_in_folder_and_normalisation(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", packed=True)
    images, _ = everything(data.mnist(str(tmp_path), val=20).test())
    assert images.min() == pytest.approx(-0.1307 / 0.3081, abs=1e-4)


def test_a_folder_without_idx_files_is_named_with_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.fashion_mnist(str(tmp_path))
    for part in (str(tmp_path), "FashionMNIST", "train-images-idx3-ubyte[.gz]", "t10k-labels-idx1-ubyte[.gz]"):
        assert part in str(caught.value)


DAMAGED = {
    "another-format": ("f", b"\x89PNG....", "must begin with 00 00 08, got 89 50 4e"),
    "too-short": ("f", bytes((0, 0, 8, 1, 0, 0, 0, 5)) + b"ab", "promises (5,) values, got 2"),
    "not-gzip": ("f.gz", b"hello", "isn't a complete gzip file"),
    "cut-gzip": ("f.gz", gzip.compress(bytes(1000))[:-9], "isn't a complete gzip file"),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_idx_file_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        idx.read(path)


def test_images_and_labels_must_be_as_many(tmp_path):
    write_idx(tmp_path, packed=False)
    write_idx(tmp_path / "more", packed=False, train_count=70)
    (tmp_path / "more" / idx.FILES["train"][1]).replace(tmp_path / idx.FILES["train"][1])
    with pytest.raises(ValueError, match="same length, got 60 and 70"):
        data.mnist(str(tmp_path))


def write_cifar10(root, monkeypatch) -> np.ndarray:
    """CIFAR-10's layout with 20 images a file; torchvision's checksums are waived, its parser isn't."""
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_args: True)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [label % 10 for label in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(label) for label in range(10)]}))
    return pixels


def test_cifar_is_read_channel_first_and_normalised(tmp_path, monkeypatch):
    pixels = write_cifar10(tmp_path, monkeypatch)
    splits = data.cifar10(str(tmp_path), val=10)
    images, _ = everything(splits.test())
    std, mean = torch.tensor(data.CIFAR10.std).view(3, 1, 1), torch.tensor(data.CIFAR10.mean).view(3, 1, 1)
    assert torch.allclose((images * std + mean) * 255, torch.from_numpy(pixels).view(-1, 3, 32, 32).float(), atol=1e-3)
    assert [len(everything(split())[1]) for split in (splits.train, splits.val)] == [90, 10]


def test_cifar_is_augmented_for_training_only_and_repeatably(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    plain, augmented = (data.cifar10(str(tmp_path), val=10, augment=on) for on in (False, True))
    assert hashes(augmented.val()) == hashes(plain.val())
    assert hashes(augmented.train()) == hashes(augmented.train())
    assert not set(hashes(augmented.train())) >= set(hashes(plain.train()))


def test_cropping_and_flipping_moves_whole_images():
    images = torch.arange(1.0, 200 * 64 + 1).view(200, 1, 8, 8)
    out = data.crop_and_flip(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    found = set()
    for image, source in zip(out[:, 0], padded[:, 0], strict=True):
        moves = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]
        windows = {move: source[move[0] : move[0] + 8, move[1] : move[1] + 8] for move in moves}
        fits = [m for m, window in windows.items() if torch.equal(window.flip(1) if m[2] else window, image)]
        assert len(fits) == 1
        found |= set(fits)
    tops, lefts, flips = (set(values) for values in zip(*found, strict=True))
    assert (tops, lefts, flips) == (set(range(9)), set(range(9)), {False, True})


@pytest.mark.parametrize(
    ("factory", "folder"),
    [(data.cifar10, "cifar-10-batches-py"), (data.cifar100, "cifar-100-python")],
    ids=["cifar10", "cifar100"],
)
def test_cifar_says_what_is_missing(tmp_path, factory, folder):
    pytest.importorskip("torchvision")
    with pytest.raises(FileNotFoundError, match=folder):
        factory(str(tmp_path))
    (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match="incomplete or damaged"):
        factory(str(tmp_path))


def write_pictures(root, splits: dict[str, tuple[str, ...]], each: int = 10) -> None:
    for split, classes in splits.items():
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(each):
                shade = (number * 100, index * 20, len(split) * 30)
                Image.new("RGB", (12, 10), shade).save(folder / f"{index}.png")


@pytest.mark.parametrize(("val", "sizes"), [((), [16, 4, 20]), (("a", "b"), [20, 20, 20])], ids=["held-out", "folder"])
def test_an_image_folder_gives_three_splits(tmp_path, val, sizes):
    pytest.importorskip("torchvision")
    write_pictures(tmp_path, {"train": ("a", "b"), "test": ("a", "b"), **({"val": val} if val else {})})
    splits = data.image_folder(str(tmp_path), size=8, batch_size=6, val=0.2)
    images, labels = everything(splits.train())
    assert images.shape == (sizes[0], 3, 8, 8)
    assert sorted(set(labels.tolist())) == [0, 1]
    parts = [hashes(split()) for split in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == sizes
    assert not set(parts[0]) & set(parts[1])
    assert hashes(splits.train()) == parts[0]


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "val"), {"train": 20, "val": 20}),
        (("train",), {"train": 18, "val": 2}),
        (("test",), {"test": 20}),
        (("val", "test"), {"val": 20, "test": 20}),
    ],
    ids=lambda value: "-".join(value),
)
def test_an_image_folder_gives_the_splits_that_it_has(tmp_path, folders, sizes):
    pytest.importorskip("torchvision")
    write_pictures(tmp_path, dict.fromkeys(folders, ("a", "b")))
    splits = data.image_folder(str(tmp_path), size=8)
    assert {name: len(everything(split())[1]) for name, split in vars(splits).items() if split} == sizes
    assert Data.of(splits).splits == tuple(sizes)


BAD_FOLDERS = {
    "none": ({"pictures": ("a", "b")}, FileNotFoundError, "one or more of train/CLASS/*, val/CLASS/* and test/CLASS/*"),
    "other-classes": ({"train": ("a", "b"), "test": ("a", "c")}, ValueError, "must hold the classes of train"),
}


@pytest.mark.parametrize(("splits", "error", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_an_image_folder_of_another_layout_is_refused(tmp_path, splits, error, message):
    pytest.importorskip("torchvision")
    write_pictures(tmp_path, splits, each=1)
    with pytest.raises(error, match=re.escape(message)):
        data.image_folder(str(tmp_path))


def test_without_torchvision_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'prunec[vision]'")):
        data.cifar10(str(tmp_path))


def test_digits_in_another_size_are_the_same_digits():
    small, large = data.digits(), data.digits(size=32)
    (images, labels), (wide, same) = next(iter(small.test())), next(iter(large.test()))
    assert wide.shape == (128, 1, 32, 32)
    assert torch.equal(labels, same)
    pooled = torch.nn.functional.avg_pool2d(wide, 4)
    assert torch.corrcoef(torch.stack([pooled.flatten(), images.flatten()]))[0, 1] > 0.95


def test_some_classes_alone_are_numbered_anew():
    pair = data.digits(classes=[8, 3], batch_size=2000)
    whole = data.digits(batch_size=2000)
    (images, labels), (every, all_labels) = next(iter(pair.test())), next(iter(whole.test()))
    mine = (all_labels == 3) | (all_labels == 8)
    assert torch.equal(images, every[mine])
    assert torch.equal(labels, (all_labels[mine] == 3).long())


@pytest.mark.parametrize("classes", [[], [1, 1], [3, 10]])
def test_classes_that_there_aren_t(classes):
    with pytest.raises(ValueError, match="classes must be different ones of 0 to 9"):
        data.digits(classes=classes)
