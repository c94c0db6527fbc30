"""A layer's rows: what it reads for some of its output positions, and the values at these.

    conv 3x3   x [N, 16, 32, 32]    u [rows, groups, 16 / groups * 9]      the window there, as padded
    linear     x [N, T, 64]         u [rows, 1, 64]

A transposed convolution reads a window, too: at an output position some of its taps meet an input, others none.

Which positions of a sample are looked at depends on the sample and the layer's name alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Form:
    """How a layer reads and writes: a module, or a function whose weight is a parameter."""

    conv: Any = None
    """A convolution module with its options: its own, or one made of a function's; None for a layer that multiplies
    by a matrix."""
    turned: bool = False
    """Whether the weight's first dimension reads: that of a transposed convolution, and of `x @ w`."""
    reads: tuple[int, ...] = (-1,)
    """The dimensions of what it reads that it adds up over; a convolution has its own."""
    gives: tuple[int, ...] = (-1,)
    """Those of what it gives along which its outputs lie."""
    order: tuple[int, ...] | None = None
    """The weight's dimensions, those that read before those that write, where it has others than two."""

    @property
    def groups(self) -> int:
        """How many groups of channels there are."""
        return 1 if self.conv is None else int(self.conv.groups)

    @property
    def writes(self) -> int:
        """The weight's dimension of outputs, where it has one."""
        return 1 if self.turned else 0

    @property
    def channels(self) -> tuple[int, ...]:
        """The dimensions of what it gives along which its outputs lie."""
        return (1,) if self.conv is not None else self.gives

    @property
    def reading(self) -> tuple[int, ...]:
        """The weight's dimensions that read."""
        return (int(not self.turned),) if self.order is None else self.order[: len(self.reads)]

    def inputs(self, weight: Tensor) -> int:
        """How many channels each group reads."""
        if self.order is not None:
            return math.prod(weight.shape[dim] for dim in self.reading)
        return int(weight.shape[0] // self.groups if self.turned else weight.shape[1])

    def laid(self, weight: Tensor) -> Tensor:
        """The weight as [groups, inputs of a group, kernel..., outputs of a group]: a view, where it can be one."""
        if self.order is not None:
            return weight.permute(self.order).reshape(1, self.inputs(weight), -1)
        parts = weight.view(self.groups, len(weight) // self.groups, *weight.shape[1:])
        return parts.movedim(2 if self.turned else 1, -1)

    def put(self, laid: Tensor, weight: Tensor) -> None:
        """Write what `laid` has given back into the weight, where it isn't a view of it."""
        if self.order is not None and laid.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            weight.permute(self.order).copy_(laid.reshape([weight.shape[dim] for dim in self.order]))


@dataclass(frozen=True)
class Chosen:
    """Some positions of each of `n` samples."""

    sample: Tensor
    """[rows]"""
    position: Tensor
    """[rows]: counted over all of the sample's output positions."""


def chosen(samples: Sequence[int], positions: int, count: int, *key: int) -> Chosen:
    """`count` of the positions of each sample; all of them where there are no more."""
    if count >= positions:
        picked = np.tile(np.arange(positions), (len(samples), 1))
    else:
        draws = (np.random.default_rng([number, *key]) for number in samples)
        picked = np.stack([np.sort(rng.choice(positions, count, replace=False)) for rng in draws])
    rows = np.repeat(np.arange(len(samples)), picked.shape[1])
    return Chosen(torch.from_numpy(rows), torch.from_numpy(picked.ravel()))


def of_images(x: Tensor, rows: int, at: Chosen) -> Tensor:
    """Values [images, C, *S] at positions of samples that have `rows` images each: [rows, C]."""
    flat = x.flatten(2)
    image, place = _split(at, flat.shape[2], rows, x.device)
    return flat.transpose(1, 2)[image, place]


def of_tokens(x: Tensor, batch: tuple[int, int], at: Chosen, channels: tuple[int, ...] = (-1,)) -> Tensor:
    """Values with channels along some dimensions, whose dimension `batch` holds the samples, at positions of samples:
    [rows, C]."""
    dim, rows = batch
    last = [each % x.ndim for each in channels]
    between = [each for each in range(x.ndim) if each != dim and each not in last]
    flat = x.permute(dim, *between, *last)
    flat = flat.reshape(flat.shape[0] // rows, -1, math.prod(x.shape[each] for each in last))
    return flat[at.sample.to(x.device), at.position.to(x.device)]


def positions(value: Tensor, batch: tuple[int, int], form: Form) -> int:
    """At how many positions of a sample a layer gives `value`."""
    dim, rows = batch
    apart = {dim, *(each % value.ndim for each in form.channels)}
    return rows * math.prod(size for d, size in enumerate(value.shape) if d not in apart)


def of_outputs(value: Tensor, batch: tuple[int, int], at: Chosen, form: Form) -> Tensor:
    """What a layer gives, or a value of that shape, at positions: [rows, C]."""
    return of_images(value, batch[1], at) if form.conv is not None else of_tokens(value, batch, at, form.gives)


def of_inputs(form: Form, x: Tensor, given: Tensor, batch: tuple[int, int], at: Chosen) -> Tensor:
    """What a layer that reads `x` and gives `given` reads at positions of what it gives: [rows, groups, p]."""
    if form.conv is not None:
        return windows(form.conv, x, given.shape[2:], batch[1], at)
    return of_tokens(x, batch, at, form.reads).unsqueeze(1)


def windows(conv: Any, x: Tensor, size: Sequence[int], rows: int, at: Chosen) -> Tensor:
    """What a convolution reads at positions of its output, whose spatial shape is `size`: [rows, groups, C / g * K]."""
    if conv.transposed:
        return _transposed_windows(conv, x, size, rows, at)
    padding = conv._reversed_padding_repeated_twice
    if any(padding):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, padding, mode=mode)
    image, place = _split(at, int(np.prod(size)), rows, x.device)
    starts = np.unravel_index(np.arange(int(np.prod(size))), tuple(size))
    taps = np.unravel_index(np.arange(int(np.prod(conv.kernel_size))), conv.kernel_size)
    base = np.zeros((len(starts[0]), len(taps[0])), dtype=np.int64)
    for dim, (start, tap) in enumerate(zip(starts, taps, strict=True)):
        along = (start * conv.stride[dim])[:, None] + (tap * conv.dilation[dim])[None]
        base = base * x.shape[2 + dim] + along
    where = torch.from_numpy(base).to(x.device)  # [positions, taps] in the padded image
    read = x.flatten(2).transpose(1, 2)[image[:, None], where[place]]  # [rows, taps, C]
    return read.transpose(1, 2).reshape(len(image), conv.groups, -1)


def _transposed_windows(conv: Any, x: Tensor, size: Sequence[int], rows: int, at: Chosen) -> Tensor:
    """The same of a transposed convolution: zeros where a tap meets no input."""
    image, place = _split(at, int(np.prod(size)), rows, x.device)
    ends = np.unravel_index(np.arange(int(np.prod(size))), tuple(size))
    taps = np.unravel_index(np.arange(int(np.prod(conv.kernel_size))), conv.kernel_size)
    base = np.zeros((len(ends[0]), len(taps[0])), dtype=np.int64)
    meets = np.ones(base.shape, dtype=bool)
    for dim, (end, tap) in enumerate(zip(ends, taps, strict=True)):
        steps, rest = np.divmod(end[:, None] + conv.padding[dim] - (tap * conv.dilation[dim])[None], conv.stride[dim])
        meets &= (rest == 0) & (steps >= 0) & (steps < x.shape[2 + dim])
        base = base * x.shape[2 + dim] + steps
    flat = F.pad(x.flatten(2), (0, 1))  # the last place holds the zero
    where = torch.from_numpy(np.where(meets, base, flat.shape[2] - 1)).to(x.device)
    read = flat.transpose(1, 2)[image[:, None], where[place]]  # [rows, taps, C]
    return read.transpose(1, 2).reshape(len(image), conv.groups, -1)


def _split(at: Chosen, positions: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The image and the place in it of each row, where a sample has several images."""
    return (at.sample * rows + at.position // positions).to(device), (at.position % positions).to(device)


def is_conv(module: Any) -> bool:
    """Whether a module's channels lie along dimension 1."""
    return isinstance(module, nn.modules.conv._ConvNd)
