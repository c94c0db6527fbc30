"""Fresh inputs for checks: seeded random ones like a program's example, in other batch sizes and of smaller images.

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
"""Elements of a sample from which on batches are smaller, and all but the first hold smaller images."""

SMALLER: Final = 4
"""What the edges of large images, the lengths of clips and counts of crops are divided by, where they exceed `LONG`."""

LONG: Final = 32


def is_large(program: Program) -> bool:
    """Whether a sample of the program's inputs is so large that running several takes long."""
    elements = sum(tensor.numel() for tensor in tensors_in(program.inputs)) // (batch_of(program.inputs) or 1)
    return elements > LARGE


def fresh_inputs(program: Program, batch: int | None, seed: int, smaller: int = 1) -> tuple[Any, ...]:
    """Seeded random inputs like the program's: normal, or up to the example's largest integer.

    `batch` replaces the first dimension of every tensor that has the example's batch there; None keeps it. What is
    large of images (all but dimension 1, the channels) is divided by `smaller`.
    """
    generator, old = torch.Generator().manual_seed(seed), batch_of(program.inputs)

    def fresh(example: Tensor) -> Tensor:
        ours = is_batched(example, old)
        shape = (batch, *example.shape[1:]) if ours and batch is not None else tuple(example.shape)
        return _fresh(example, _cut(shape, ours, smaller), generator)

    return tuple(map_tensors(fresh, example) for example in program.inputs)


def _cut(shape: tuple[int, ...], batched: bool, smaller: int) -> tuple[int, ...]:
    """The shape of a smaller image, clip or lot of crops: without its batch and channels, what is long is cut."""
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
    """Programs that draw random numbers draw the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def with_batch(program: Program, size: int) -> tuple[Any, ...]:
    """Inputs of another batch size: random numbers like the example's; where these are integers, the example's own."""
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
