"""Clusters of the images of one layer: k-means of what they look like, whatever their brightness and contrast.

Each image is flattened, and made zero-mean and of unit norm. Without a number of clusters, that with the best mean
silhouette (Rousseeuw 1987) in a range is taken. Dead units have no image to go by: they stand apart.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray

DEAD: Final = -1
"""The cluster of units whose image never moved."""
_STARTS: Final = 4


def rows_of(images: FloatArray) -> FloatArray:
    """[images, ...] -> [images, features]: flat, zero-mean, unit norm; zeros for an image of one colour."""
    flat = images.reshape(len(images), images[0].size if len(images) else 0).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True) if flat.size else flat
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.where(norms > 0, norms, 1.0))


def clustered(
    images: FloatArray, dead: BoolArray, count: int | tuple[int, int], rng: np.random.Generator, pca: int | None = None
) -> tuple[IntArray, float | None]:
    """The cluster of each image, [images], DEAD for dead ones, and the silhouette; clusters are numbered by size, the
    largest first.

    `count` is their number, or the smallest and the largest number that are tried; it is never more than the images
    that differ. `pca` is how many principal components are looked at. The silhouette is None where there is no choice.
    """
    found = np.full(len(images), DEAD, dtype=np.int64)
    alive = np.flatnonzero(~dead)
    rows = rows_of(images[alive])
    distinct = len(np.unique(rows, axis=0))
    if distinct < 2:
        found[alive] = 0
        return found, None
    seed = int(rng.integers(2**31))
    rows = _components(rows, pca, seed)
    low, high = (count, count) if isinstance(count, int) else count
    tried = range(min(low, distinct), min(high, distinct) + 1)
    named = {k: _kmeans(rows, k, seed) for k in tried}
    worth = {k: _silhouette(rows, labels) for k, labels in named.items()}
    best = max(tried, key=lambda k: worth[k])
    found[alive] = _by_size(named[best])
    return found, worth[best] if np.isfinite(worth[best]) else None


def _components(rows: FloatArray, pca: int | None, seed: int) -> FloatArray:
    if pca is None or pca >= min(rows.shape):
        return rows
    from sklearn.decomposition import PCA  # noqa: PLC0415  (slow to import)

    return np.asarray(PCA(pca, random_state=seed).fit_transform(rows), dtype=np.float64)


def _kmeans(rows: FloatArray, count: int, seed: int) -> IntArray:
    from sklearn.cluster import KMeans  # noqa: PLC0415  (slow to import)

    return np.asarray(KMeans(count, n_init=_STARTS, random_state=seed).fit(rows).labels_, dtype=np.int64)


def _silhouette(rows: FloatArray, labels: IntArray) -> float:
    """The mean silhouette; minus infinity where it isn't defined: for one cluster, or one of each image."""
    from sklearn.metrics import silhouette_score  # noqa: PLC0415  (slow to import)

    if not 1 < labels.max() + 1 < len(rows):
        return -np.inf
    return float(silhouette_score(rows, labels))


def _by_size(labels: IntArray) -> IntArray:
    """The same clusters, numbered by size; of equally large ones, the one with the first image comes first."""
    sizes = np.bincount(labels)
    first = np.array([np.flatnonzero(labels == k)[0] for k in range(sizes.size)])
    order = np.lexsort((first, -sizes))
    return np.argsort(order)[labels]
