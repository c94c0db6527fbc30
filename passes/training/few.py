"""Some samples that are learned again and again, and a fifth of them that isn't learned, for telling when to stop.

data.train()     batch of 64          batch of 64          ...                samples: 100
learned          64 - 12 of them      36 - 8 of them                          in another order in each epoch
held             12                   8
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from prunec.compiler.data import Batch, Data

HELD_OUT: Final = 5
"""One of so many samples isn't learned."""


class Few:
    """Batches that stay the same, in an order of its own in each reading."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        order = torch.randperm(len(self.batches)).tolist()
        return ((self.batches[place].inputs, self.batches[place].labels) for place in order)


def first_samples(data: Data, split: str, samples: int) -> list[Batch]:
    """The first samples of a split, in the data's batches: those that `repair` looks at, too."""
    found, done = list[Batch](), 0
    for batch in data.read(split):
        if done >= samples:
            break
        found.append(batch[: samples - done])
        done += found[-1].count
    return found


def divided(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """(what is learned, what is held out): every fifth sample; of fewer than five the last; one alone is both."""
    total = sum(batch.count for batch in batches)
    if total <= 1:
        return list(batches), list(batches)
    last, learned, held, done = min(HELD_OUT, total) - 1, list[Batch](), list[Batch](), 0
    for batch in batches:
        apart = torch.arange(done, done + batch.count) % HELD_OUT == last
        learned.append(batch.picked(~apart))
        held.append(batch.picked(apart))
        done += batch.count
    return [batch for batch in learned if batch.count], [batch for batch in held if batch.count]
