"""The images that a model takes: which of its inputs they are, what values their pixels may have, and their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.errors import PassError
from prunec.compiler.ir.inputs import batch_of, is_batched, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.repairing.walk import feeds_of


@dataclass(frozen=True)
class Pixels:
    """The range of valid pixels and the mean image, as [channels, 1, 1] in float32."""

    low: Tensor
    high: Tensor
    mean: Tensor

    @property
    def width(self) -> float:
        """The widest channel's range: the unit of all steps."""
        return float((self.high - self.low).max())

    def to(self, device: torch.device) -> Pixels:
        """The same on a device."""
        return Pixels(self.low.to(device), self.high.to(device), self.mean.to(device))


@dataclass(frozen=True)
class ImageInput:
    """The first input of a program that holds images."""

    program: Program
    place: int
    """Among all tensors of the inputs."""

    @staticmethod
    def of(program: Program) -> ImageInput:
        """The first floating-point input of four dimensions. Raises `PassError` where there is none."""
        for place, tensor in enumerate(tensors_in(program.inputs)):
            if tensor.ndim == 4 and tensor.is_floating_point():
                return ImageInput(program, place)
        shapes = " and ".join(f"{list(x.shape)} of {str(x.dtype)[6:]}" for x in tensors_in(program.inputs))
        message = f"the model takes no images [samples, channels, height, width]: its inputs are {shapes}"
        raise PassError(message)

    @property
    def example(self) -> Tensor:
        """The example input that holds images."""
        return list(tensors_in(self.program.inputs))[self.place]

    @property
    def shape(self) -> tuple[int, ...]:
        """[channels, height, width]."""
        return tuple(self.example.shape[1:])

    def feeds(self, images: Tensor) -> list[Any]:
        """The program's inputs with these images; the others are the example's first sample, as often as needed."""
        batch, count = batch_of(self.program.inputs), len(images)
        leaves, spec = pytree.tree_flatten(list(self.program.inputs))
        tensors = iter(range(len(leaves)))
        made = [
            self._fed(leaf, next(tensors), images, batch, count) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        found: list[Any] = pytree.tree_unflatten(made, spec)
        return found

    def _fed(self, leaf: Tensor, place: int, images: Tensor, batch: int | None, count: int) -> Tensor:
        if place == self.place:
            return images.to(leaf.dtype)
        return leaf[:1].expand(count, *leaf.shape[1:]) if is_batched(leaf, batch) else leaf

    def measured(self, context: Context, samples: int, split: str) -> Pixels:
        """The range and the mean of the pixels of each channel, over samples of the data.

        Raises `DataError` where the data don't fit the model, and `PassError` where all pixels are equal.
        """
        bounds = _Bounds()
        calibration = Calibration(samples=samples, split=split)
        for piece in calibration.pieces(self.program, context, bytes_of_a_sample(self.program)):
            found = list(tensors_in(list(feeds_of(self.program, piece.inputs))))
            images = found[self.place] if self.place < len(found) else None
            if images is None or images.shape[1:] != self.example.shape[1:]:
                raise piece.place.fault(
                    f"its images must be {list(self.shape)} as the plan's inputs, got {piece.shapes}"
                )
            bounds.see(images.detach().float())
        return bounds.pixels()

    def given(self, low: float, high: float) -> Pixels:
        """The same range for every channel; the mean is its middle."""
        like = self.example.new_ones(self.shape[0], 1, 1, dtype=torch.float32)
        return Pixels(low * like, high * like, (low + high) / 2 * like)


class _Bounds:
    """Extremes and sums of the pixels of each channel."""

    def __init__(self) -> None:
        self.low = self.high = self.sum = torch.zeros(0)
        self.count = 0

    def see(self, images: Tensor) -> None:
        """Images [samples, channels, height, width]."""
        flat = images.movedim(1, 0).flatten(1)
        low, high, total = flat.amin(1), flat.amax(1), flat.double().sum(1)
        first = not self.count
        self.low = low if first else torch.minimum(self.low, low)
        self.high = high if first else torch.maximum(self.high, high)
        self.sum = total if first else self.sum + total
        self.count += flat.shape[1]

    def pixels(self) -> Pixels:
        """What was seen. Raises `PassError` where all pixels of all channels are equal."""
        mean = (self.sum / self.count).float()
        found = Pixels(*(x[:, None, None] for x in (self.low, self.high, mean)))
        if not found.width > 0:
            raise PassError("all pixels of the data are equal: there is no range that images could use")
        return found
