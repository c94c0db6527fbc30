"""Clusters: planted ones are found, whatever the images' brightness; dead ones stand apart; the seed decides."""

from __future__ import annotations

import numpy as np
import pytest

from prunec.passes.visualising.clusters import DEAD, clustered, rows_of

SIZES = (7, 5, 3)


def planted():
    """Images of three kinds, each with a brightness and a contrast of its own."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((3, 1, 6, 6))
    kind = np.repeat(np.arange(3), SIZES)
    images = kinds[kind] + 0.05 * rng.standard_normal((15, 1, 6, 6))
    return images * rng.uniform(0.1, 9, (15, 1, 1, 1)) + rng.uniform(-5, 5, (15, 1, 1, 1)), kind


def run(images, dead=None, count=(2, 8), seed=0, pca=None):
    dead = np.zeros(len(images), dtype=bool) if dead is None else dead
    return clustered(images, dead, count, np.random.default_rng(seed), pca)


@pytest.mark.parametrize("pca", [None, 2, 99])
@pytest.mark.parametrize("count", [3, (2, 8)])
def test_planted_clusters_are_found_the_largest_first(count, pca):
    images, kind = planted()
    found, silhouette = run(images, count=count, pca=pca)
    assert found.tolist() == kind.tolist()
    assert silhouette is not None
    assert silhouette > 0.5


def test_dead_images_stand_apart():
    images, kind = planted()
    dead = np.zeros(15, dtype=bool)
    dead[[0, 9]] = True
    found, _ = run(images, dead)
    assert (found == DEAD).tolist() == dead.tolist()
    assert found[~dead].tolist() == kind[~dead].tolist()
    assert run(images, np.ones(15, dtype=bool))[0].tolist() == [DEAD] * 15


def test_rows_are_zero_mean_and_of_unit_norm():
    rows = rows_of(np.concatenate([planted()[0], np.full((1, 1, 6, 6), 3.0)]))
    assert np.allclose(rows.mean(1), 0)
    assert np.allclose(np.linalg.norm(rows[:-1], axis=1), 1)
    assert not rows[-1].any()


def test_the_seed_decides():
    images = np.random.default_rng(1).standard_normal((40, 3, 5, 5))
    assert run(images, count=6)[0].tolist() == run(images, count=6)[0].tolist()


def test_there_are_no_more_clusters_than_images_that_differ():
    images = np.repeat(np.random.default_rng(2).standard_normal((3, 1, 4, 4)), 4, axis=0)
    assert len(set(run(images, count=9)[0].tolist())) == 3
    assert run(images[:4], count=9) == (pytest.approx(np.zeros(4)), None)
