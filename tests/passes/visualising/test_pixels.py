"""Pixels: the range and mean of the data, and the input that holds images among others."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunec.compiler import trace
from prunec.compiler.data import Data
from prunec.compiler.errors import DataError, PassError
from prunec.compiler.pass_base import Context
from prunec.passes.visualising.pixels import ImageInput


class Two(nn.Module):
    """Numbers beside an image."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.fc = nn.Embedding(5, 4), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, ids, image):
        return self.fc(self.conv(image).mean((2, 3)) + self.table(ids).mean(1))


def two():
    return ImageInput.of(trace(Two().eval(), (torch.ones(2, 6, dtype=torch.int64), torch.zeros(2, 3, 8, 8))).deployed)


def context(images, ids=None):
    inputs = [images] if ids is None else [ids, images]
    batches = [((*(x[i : i + 3] for x in inputs),), torch.zeros(3)) for i in (0, 3)]
    return Context(data=Data.of(batches if ids is not None else DataLoader(TensorDataset(images, torch.zeros(6)), 3)))


def test_the_image_is_found_among_the_inputs():
    source = two()
    assert source.shape == (3, 8, 8)
    ids, images = source.feeds(torch.full((5, 3, 8, 8), 0.5))
    assert ids.tolist() == [[1] * 6] * 5
    assert images.shape == (5, 3, 8, 8)


def test_the_range_is_each_channels():
    images = torch.randn(6, 3, 8, 8) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    pixels = two().measured(context(images, torch.ones(6, 6, dtype=torch.int64)), 100, "train")
    flat = images.movedim(1, 0).flatten(1)
    for found, wanted in ((pixels.low, flat.amin(1)), (pixels.high, flat.amax(1)), (pixels.mean, flat.mean(1))):
        assert torch.allclose(found.flatten(), wanted, atol=1e-6)
    assert pixels.width == pytest.approx(float((flat.amax(1) - flat.amin(1)).max()))


def test_faults_are_told():
    with pytest.raises(PassError, match="takes no images"):
        ImageInput.of(trace(nn.Linear(4, 2), (torch.zeros(2, 4),)))
    source = ImageInput.of(trace(nn.Conv2d(1, 2, 3), (torch.zeros(2, 1, 8, 8),)))
    with pytest.raises(PassError, match="all pixels of the data are equal"):
        source.measured(context(torch.ones(6, 1, 8, 8)), 100, "train")
    with pytest.raises(DataError, match=r"images must be \[1, 8, 8\]"):
        source.measured(context(torch.randn(6, 1, 9, 9)), 100, "train")
