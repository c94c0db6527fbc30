"""Array operations on fields of labels, which are of size 1 along every dimension where they don't vary.

    x.view(32, 8, 14 * 14)     of [32, 8, 14, 14]: the field [1, 8, 1, 1] becomes [1, 8, 1]
    x.flatten(1)               of [32, 8, 14, 14]: it becomes [1, 1568], each label 196 times

Long dimensions without labels (the batch, the image) are never written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from prunec.compiler.ir.program import IntArray


def overlap(left: IntArray, right: IntArray) -> bool:
    """Whether two fields of the same rank vary along a common dimension."""
    return any(a > 1 and b > 1 for a, b in zip(left.shape, right.shape, strict=True))


def compress(labels: IntArray) -> IntArray:
    """The same field, of size 1 along every dimension where it doesn't vary."""
    for dim in range(labels.ndim):
        if labels.shape[dim] == 1:
            continue
        first = labels[(slice(None),) * dim + (slice(0, 1),)]
        if labels.strides[dim] == 0 or bool((labels == first).all()):
            labels = first
    return np.ascontiguousarray(labels)


def reshape_labels(labels: IntArray, old: Sequence[int], new: Sequence[int]) -> IntArray:
    """A field after its value of shape `old` is reshaped to `new`.

    The two shapes are cut into the smallest runs of dimensions that hold equally many elements; a run along which the
    field doesn't vary stays of size 1, so that nothing is written out along batch and image.
    """
    runs = list(_runs(old, new))
    middle: list[int] = []
    final: list[int] = []
    for olds, news in runs:
        varies = any(labels.shape[d] > 1 for d in olds)
        middle += [old[d] if varies else 1 for d in olds]
        final += [new[d] if varies else 1 for d in news]
    return np.broadcast_to(labels, middle).reshape(final)


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """The dimensions of two shapes, cut into pairs (old ones, new ones) that hold equally many elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = [], []
        left = right = 1
        if i < len(old):
            olds.append(i)
            left, i = old[i], i + 1
        if j < len(new):
            news.append(j)
            right, j = new[j], j + 1
        while left != right:
            if (left < right or right == 0) and i < len(old):
                olds.append(i)
                left, i = left * old[i], i + 1
            else:
                news.append(j)
                right, j = right * new[j], j + 1
        yield olds, news
