"""Gradient ascent: an image for each unit of a layer, so that the unit's activation becomes large.

    x <- r(x + rate * d a / d x)      a: the unit's mean activation over space, before the nonlinearity

All images of a chunk are one batch: one backward pass of the sum of each image's own activation gives every image its
own gradient, since samples don't meet in a network. Between two steps the regularisers follow each other in this order:
decay, blur, small norms, small contributions; the range of pixels is held before each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunec.passes.visualising.layers import Layer
from prunec.passes.visualising.pixels import ImageInput, Pixels
from prunec.passes.visualising.presets import CAP, Ascent
from prunec.passes.visualising.regularisers import (
    blurred,
    decayed,
    within,
    without_small_contributions,
    without_small_norms,
)

Tick = Callable[[int], None]
"""Told how many images have made a step."""


@dataclass(frozen=True)
class Climbed:
    """What came of an ascent."""

    images: Tensor
    """[units, channels, height, width] in float32, as the model takes them: each unit's best."""
    first: Tensor
    """[units]: the activation of the image at the start."""
    last: Tensor
    """[units]: that of the unit's image."""
    dead: Tensor
    """[units]: whether the gradient was zero at every step."""

    def chunk(self, start: int, end: int) -> Climbed:
        """Some of the units."""
        return Climbed(*(each[start:end] for each in (self.images, self.first, self.last, self.dead)))

    @staticmethod
    def joined(parts: list[Climbed]) -> Climbed:
        """Several chunks as one."""
        rows = zip(*((part.images, part.first, part.last, part.dead) for part in parts), strict=True)
        return Climbed(*(torch.cat(column) for column in rows))


def climb(
    layer: Layer, units: Tensor, source: ImageInput, pixels: Pixels, ascent: Ascent, start: Tensor, tick: Tick
) -> Climbed:
    """The images of some units, by their places among the layer's; `start` is the deviation from the mean image at the
    start, [channels, height, width]."""
    x = start.expand(len(units), *start.shape).clone()
    best, value = x, x.new_full((len(units),), -torch.inf)
    first, dead = value, torch.ones(len(units), dtype=torch.bool, device=x.device)
    for step in range(ascent.steps + 1):
        if ascent.pixel_range:
            x = within(pixels.mean + x, pixels.low, pixels.high) - pixels.mean
        reached, gradient = _gradients(layer, units, source, pixels.mean + x, needed=step < ascent.steps)
        if step == 0:
            first = reached
        else:
            better = reached > value
            value = torch.where(better, reached, value)
            best = torch.where(better[:, None, None, None], x, best)
        if gradient is None:
            break
        dead &= gradient.flatten(1).abs().amax(1) == 0
        x = regularised(x + moved(gradient, ascent, pixels.width, step), gradient, ascent, step)
        tick(len(units))
    return Climbed((pixels.mean + best).cpu(), first.cpu(), value.cpu(), dead.cpu())


def moved(gradient: Tensor, ascent: Ascent, width: float, step: int = 0) -> Tensor:
    """The step of this number, from 0, along gradients [images, ...], for pixels whose range is `width` wide."""
    if ascent.rule == "constant":
        return ascent.rate * width**2 * gradient
    squares = gradient.flatten(1).square()
    by_image = (-1, *(1 for _ in gradient.shape[1:]))
    if ascent.rule == "progress":
        rates = (ascent.rate / squares.sum(1)).clamp(max=CAP * width**2)
        return rates.reshape(by_image) * gradient
    lengths = squares.mean(1).sqrt()
    rate = ascent.rate * (1 - step / ascent.steps)
    return rate * width * gradient / torch.where(lengths > 0, lengths, 1.0).reshape(by_image)


def regularised(x: Tensor, gradient: Tensor, ascent: Ascent, step: int) -> Tensor:
    """The images behind a step, which is counted from 0; `gradient` is the one that it went along."""
    x = decayed(x, ascent.decay)
    if (step + 1) % ascent.blur_every == 0:
        x = blurred(x, ascent.blur_width)
    x = without_small_norms(x, ascent.small_norm)
    return without_small_contributions(x, gradient, ascent.small_contribution)


def activations(layer: Layer, units: Tensor, source: ImageInput, images: Tensor) -> Tensor:
    """[images]: the activation of each image's own unit."""
    return _gradients(layer, units, source, images, needed=False)[0]


def _gradients(
    layer: Layer, units: Tensor, source: ImageInput, images: Tensor, *, needed: bool
) -> tuple[Tensor, Tensor | None]:
    """The activation of each image's own unit, and, where it is needed, its gradient by the image."""
    with torch.set_grad_enabled(needed):
        leaf = images.detach().requires_grad_(needed)
        reached = layer.own(layer.cut.graph_module(*source.feeds(leaf)), units).float()
        if not needed:
            return reached, None
        if not reached.requires_grad:  # nothing on the way passes a gradient on
            return reached, torch.zeros_like(images)
        (gradient,) = torch.autograd.grad(reached.sum(), leaf, allow_unused=True)
    return reached.detach(), torch.zeros_like(images) if gradient is None else gradient
