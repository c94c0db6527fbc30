"""Fresh inputs for checks: seeded random ones like a program's example, in other batch sizes and with smaller images.

example [1, 3, 800, 800]    batch 2             [2, 3, 800, 800]
                            batch 2, smaller    [2, 3, 200, 200]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from prunec.compiler.ir.inputs import batch_of, is_batched, map_tensors, tensors_in
from prunec.compiler.ir.program import Program

LARGE: Final = 10**6
"""From so many elements a sample on, checks take smaller batches, and smaller images in all but the first of them."""

SMALLER: Final = 4
"""What sizes over `LONG` are divided by in smaller inputs: edges of images, lengths of clips, counts of crops."""

LONG: Final = 32


def is_large(program: Program) -> bool:
    """Whether a sample of the program's inputs is so large that running several takes long."""
    elements = sum(tensor.numel() for tensor in tensors_in(program.inputs)) // (batch_of(program.inputs) or 1)
    return elements > LARGE


def fresh_inputs(program: Program, batch: int | None, seed: int, smaller: int = 1) -> tuple[Any, ...]:
    """Seeded random inputs like the program's example: normal, or integers in the example's range, 0 included.

    `batch` replaces the first dimension of every tensor that has the example's batch there; None keeps it. Of tensors
    with four dimensions or more, sizes over `LONG` are divided by `smaller`, but for the batch and the channels.
    """
    generator, old = torch.Generator().manual_seed(seed), batch_of(program.inputs)

    def fresh(example: Tensor) -> Tensor:
        ours = is_batched(example, old)
        shape = (batch, *example.shape[1:]) if ours and batch is not None else tuple(example.shape)
        return _fresh(example, _cut(shape, ours, smaller), generator)

    return tuple(map_tensors(fresh, example) for example in program.inputs)


def has_smaller(program: Program) -> bool:
    """Whether `fresh_inputs` has smaller inputs for a program than those of full size."""
    old = batch_of(program.inputs)
    return any(_cut(tuple(x.shape), is_batched(x, old), SMALLER) != tuple(x.shape) for x in tensors_in(program.inputs))


def _cut(shape: tuple[int, ...], batched: bool, smaller: int) -> tuple[int, ...]:
    """The shape of a smaller image, clip or lot of crops: all sizes over `LONG` are divided but the batch and
    channels."""
    if len(shape) < 4:
        return shape
    fixed = (0, 1) if batched else (1,)
    return tuple(-(-n // smaller) if n > LONG and dim not in fixed else n for dim, n in enumerate(shape))


def _fresh(example: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if example.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(example)
    low, high = (int(x) for x in (example.min(), example.max())) if example.numel() else (0, 0)
    return torch.randint(min(low, 0), max(high, 0) + 1, tuple(shape), generator=generator).to(example)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch draws the random numbers of this seed; the former state comes back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def with_batch(program: Program, size: int) -> tuple[Any, ...]:
    """The example inputs in another batch size. Floats are drawn anew with the example's mean and spread; integers are
    the example's own rows, repeated; what has no batch stays."""
    generator, old = torch.Generator().manual_seed(size), batch_of(program.inputs)

    def resized(value: torch.Tensor) -> torch.Tensor:
        return _resized(value, size, generator) if is_batched(value, old) else value

    return tuple(map_tensors(resized, value) for value in program.inputs)


def _resized(value: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    rows = value[torch.arange(size) % len(value)]
    if not value.is_floating_point():
        return rows
    spread = float(value.std(correction=0)) or 1.0
    return torch.randn(rows.shape, generator=generator).to(rows.dtype) * spread + float(value.mean())
