"""Sheets: a picture of every image, in colours where there are three channels, else in greys."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from prunec.passes.visualising.sheets import Sheet, pictures


def images(count, channels):
    return np.random.default_rng(0).standard_normal((count, channels, 6, 6))


@pytest.mark.parametrize(("channels", "shape"), [(1, (5, 6, 6)), (3, (5, 6, 6, 3)), (4, (5, 6, 6)), (2, (5, 6, 6))])
def test_images_become_bytes_of_the_full_range(channels, shape):
    found = pictures(images(5, channels))
    assert found.shape == shape
    assert found.reshape(5, -1).min(1).tolist() == [0] * 5
    assert found.reshape(5, -1).max(1).tolist() == [255] * 5
    assert not pictures(np.ones((1, channels, 6, 6))).any()


def sheet(**changes):
    given = {
        "title": "Images of conv <1>",
        "images": images(7, 3),
        "clusters": np.array([0, 1, 0, -1, 0, 1, -1]),
        "numbers": np.arange(10, 17),
    }
    return Sheet(**{**given, **changes}).png()


def test_a_sheet_is_a_png_of_all_images():
    plain = imread(io.BytesIO(sheet()), "png")
    told = imread(io.BytesIO(sheet(labels=["cat"] * 7, headings=["cat, dog", ""])), "png")
    assert told.shape[0] > plain.shape[0]
    colours = {tuple(pixel) for pixel in np.round(plain[..., :3] * 255).astype(int).reshape(-1, 3)}
    shown = pictures(images(7, 3))
    alive, dead = shown[[0, 1, 2, 4, 5]].reshape(-1, 3), shown[[3, 6]].reshape(-1, 3)
    assert np.mean([tuple(pixel) in colours for pixel in alive.tolist()]) > 0.9
    assert np.mean([tuple(pixel) in colours for pixel in dead.tolist()]) < 0.2
    assert sheet() == sheet()


def test_a_sheet_of_dead_units_alone_and_one_without_any():
    assert imread(io.BytesIO(sheet(clusters=np.full(7, -1))), "png").shape[0] > 50
    assert sheet(clusters=np.zeros(7, dtype=int))[:4] == b"\x89PNG"


def test_a_name_with_dollars_is_no_formula():
    assert sheet(title="$_$", labels=["US$ $_"] * 7, headings=["US$ $_", "b"])[:4] == b"\x89PNG"
