"""What keeps an image that maximises an activation from becoming noise: each a function of images to images.

Images are [images, channels, height, width], as deviations from the mean image, for all but the first. Switched off
(None, or the amount 0), each gives back what it was given. The operators are those of Yosinski et al., "Understanding
neural networks through deep visualization" (2015), section 4.1; a percentile is taken of each image by itself.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

NARROWEST: Final = 0.3
"""Pixels: a Gaussian narrower than that changes next to nothing."""
_SPREAD: Final = 3.0
"""So many standard deviations of a Gaussian are added up."""


def within(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The images in the range of valid pixels; `low` and `high` are [channels, 1, 1]."""
    return torch.maximum(torch.minimum(images, high), low)


def decayed(images: Tensor, share: float) -> Tensor:
    """`(1 - share) x`: the norm shrinks by that factor."""
    return images if share == 0 else images * (1.0 - share)


def blurred(images: Tensor, width: float) -> Tensor:
    """A Gaussian of this standard deviation (pixels) over every channel; edges go on as they end."""
    if width < NARROWEST:
        return images
    for dim in (2, 3):
        reach = min(math.ceil(_SPREAD * width), max(images.shape[dim] - 1, 0))
        images = _along(images, dim, _gaussian(width, reach, images))
    return images


def _gaussian(width: float, reach: int, like: Tensor) -> Tensor:
    places = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    weights = torch.exp(-(places**2) / (2 * width**2))
    return weights / weights.sum()


def _along(images: Tensor, dim: int, kernel: Tensor) -> Tensor:
    """One dimension of every channel, convolved with a kernel of odd size."""
    channels, reach = images.shape[1], kernel.numel() // 2
    padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    shape = (channels, 1, kernel.numel(), 1) if dim == 2 else (channels, 1, 1, kernel.numel())
    weight = kernel.reshape(shape[2:]).expand(shape)
    return F.conv2d(F.pad(images, padding, mode="replicate"), weight, groups=channels)


def without_small_norms(images: Tensor, percent: float) -> Tensor:
    """Zero the pixels whose norm over the channels is below this percentile of the image's."""
    return images if percent == 0 else _clipped(images, images.norm(dim=1), percent)


def without_small_contributions(images: Tensor, gradients: Tensor, percent: float) -> Tensor:
    """Zero the pixels whose contribution is below this percentile of the image's.

    A pixel contributes `|sum over channels of x g|`: to first order, what the activation changes by when it goes.
    """
    return images if percent == 0 else _clipped(images, (images * gradients).sum(1).abs(), percent)


def _clipped(images: Tensor, figures: Tensor, percent: float) -> Tensor:
    """The images with zeros where the figures, [images, height, width], are below the image's own percentile."""
    least = torch.quantile(figures.flatten(1), percent / 100, dim=1)
    return images * (figures >= least[:, None, None])[:, None]
