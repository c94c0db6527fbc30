"""Regularisers: nothing where they are off, and exactly what they promise where they are on."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter

from prunec.passes.visualising.regularisers import (
    blurred,
    decayed,
    within,
    without_small_contributions,
    without_small_norms,
)


def images(count=3, channels=3, height=10, width=10):
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "off",
    [
        lambda x: decayed(x, 0),
        lambda x: blurred(x, 0),
        lambda x: blurred(x, 0.29),
        lambda x: without_small_norms(x, 0),
        lambda x: without_small_contributions(x, torch.randn_like(x), 0),
        lambda x: within(x, x.amin((0, 2, 3))[:, None, None], x.amax((0, 2, 3))[:, None, None]),
    ],
)
def test_what_is_off_changes_nothing(off):
    assert torch.equal(off(images()), images())


def test_decay_shrinks_the_norm_by_its_share():
    x = images().double()
    assert torch.allclose(decayed(x, 0.3).flatten(1).norm(dim=1), 0.7 * x.flatten(1).norm(dim=1), rtol=1e-12)


@pytest.mark.parametrize("percent", [20, 50, 90])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_stated_percentage_of_pixels_goes(percent, channels):
    x = images(channels=channels)
    for found, figures in (
        (without_small_norms(x, percent), x.norm(dim=1)),
        (without_small_contributions(x, x.flip(1), percent), (x * x.flip(1)).sum(1).abs()),
    ):
        gone = (found == 0).all(1)
        assert gone.sum((1, 2)).tolist() == [percent] * 3  # of 100 pixels an image
        assert figures[gone].max() < figures[~gone].max()
        for each, lost in zip(figures, gone, strict=True):
            assert each[lost].max() < each[~lost].min()
        assert torch.equal(found[~gone[:, None].expand_as(found)], x[~gone[:, None].expand_as(x)])


@pytest.mark.parametrize("width", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(2, 3, 16, 20), (1, 1, 8, 8)])
def test_a_blur_is_a_gaussian(width, shape):
    x = images(*shape).double()
    wanted = gaussian_filter(x.numpy(), (0, 0, width, width), mode="nearest", truncate=3.0, radius=None)
    reach = -(-3 * width // 1)
    found = blurred(x, width).numpy()
    inside = (..., slice(int(reach), -int(reach) or None), slice(int(reach), -int(reach) or None))
    assert abs(found[inside] - wanted[inside]).max(initial=0) < 0.02


def test_a_blur_keeps_what_is_even_and_fits_narrow_images():
    even = torch.full((1, 2, 5, 5), 0.7)
    assert torch.allclose(blurred(even, 3.0), even)
    assert blurred(images(1, 1, 1, 3), 2.0).shape == (1, 1, 1, 3)


def test_pixels_stay_in_their_channels_range():
    low, high = torch.tensor([-0.5, 0.0, -1.0])[:, None, None], torch.tensor([0.5, 1.0, 0.1])[:, None, None]
    found = within(images(), low, high)
    assert bool(((found >= low) & (found <= high)).all())
    middle = (images() > low) & (images() < high)
    assert torch.equal(found[middle], images()[middle])
