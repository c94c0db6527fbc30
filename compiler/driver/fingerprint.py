"""A hash of data: which samples a split gave, in any order and in batches of any size.

    sample        every tensor's row, inputs and labels: its dtype, shape and bytes, hashed
    fingerprint   the number of samples and the sum of their hashes

So a lock can tell that its data have changed, and a compile that they change from one reading to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from prunec.compiler.data import Batch
from prunec.compiler.ir.inputs import is_batched, tensors_in

_MODULUS: Final = 2**256


class Fingerprint:
    """Grows with every batch that is added; `hexdigest` is that of all samples so far."""

    def __init__(self) -> None:
        self.samples = 0
        self._sum = 0

    def add(self, batch: Batch) -> None:
        """Add the samples of a batch. What has no row for each sample doesn't count."""
        count = batch.count
        tensors = [x for x in tensors_in((batch.inputs, batch.labels)) if is_batched(x, count)]
        parts = [(_described(x), _rows(x)) for x in tensors]
        for row in zip(*(rows for _, rows in parts), strict=True):
            digest = hashlib.sha256()
            for (described, _), content in zip(parts, row, strict=True):
                digest.update(described)
                digest.update(content)
            self._sum += int.from_bytes(digest.digest())
        self.samples += count

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        whole = f"{self.samples} {self._sum % _MODULUS:064x}"
        return hashlib.sha256(whole.encode()).hexdigest()


def _described(tensor: Tensor) -> bytes:
    return f"{tensor.dtype} {list(tensor.shape[1:])} ".encode()


def _rows(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of each row."""
    flat = tensor.detach().cpu().contiguous().reshape(len(tensor), tensor[:1].numel() or 1 if len(tensor) else 1)
    return (row.data for row in flat.view(torch.uint8).numpy(force=True))
