"""The idx files of MNIST and its kin, plain or gzipped, as bytes in tensors.

two zero bytes, a type (8: unsigned byte), the number of dimensions, each dimension (big-endian, 4 bytes), the values
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

FILES: Final = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE: Final = 8


def read(path: Path) -> Tensor:
    """The values of one file in their shape; `ValueError` where it isn't an idx file of bytes, whole and undamaged."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} isn't a complete gzip file: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise ValueError(f"{path} isn't an idx file of bytes: it must begin with 00 00 08, got {content[:3].hex(' ')}")
    values = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:values], dtype=">u4").tolist())
    data = np.frombuffer(content[values:], dtype=np.uint8)
    if data.size != np.prod(shape):
        raise ValueError(f"{path} promises {shape} values, got {data.size}")
    return torch.from_numpy(data.reshape(shape).copy())


def read_splits(root: Path, name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, test) of images `[N, 1, H, W]` and labels `[N]`, from `root` itself or from `root/name/raw`."""
    folders = (root, root / name / "raw")
    train, test = (_read_pair(folders, *FILES[split], name) for split in ("train", "test"))
    return train, test


def _read_pair(folders: tuple[Path, ...], images: str, labels: str, name: str) -> tuple[Tensor, Tensor]:
    pixels, targets = read(_find(folders, images, name)), read(_find(folders, labels, name))
    if len(pixels) != len(targets):
        raise ValueError(f"{images} and {labels} must have the same length, got {len(pixels)} and {len(targets)}")
    return pixels.unsqueeze(1), targets.long()


def _find(folders: tuple[Path, ...], file: str, name: str) -> Path:
    for folder in folders:
        for path in (folder / file, folder / f"{file}.gz"):
            if path.is_file():
                return path
    wanted = ", ".join(f"{file}[.gz]" for pair in FILES.values() for file in pair)
    places = " or ".join(map(str, folders))
    raise FileNotFoundError(f"{name}: no {file}[.gz] in {places}; one of these folders must hold {wanted}")
