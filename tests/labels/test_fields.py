"""Compressed labels: reshaped and compressed as the full ones would be."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.compiler.labels.fields import compress, reshape_labels


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_reshaping_compressed_labels_is_reshaping_full_ones(data):
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))
    old = data.draw(_shapes(factors))
    new = data.draw(_shapes(factors))
    varying = [size if data.draw(st.booleans()) else 1 for size in old]
    labels = np.arange(int(np.prod(varying))).reshape(varying)
    found = reshape_labels(labels, old, new)
    assert np.array_equal(np.broadcast_to(found, new), np.broadcast_to(labels, old).reshape(new))


@st.composite
def _shapes(draw, factors):
    """A shape with the product of the factors, ones strewn in."""
    shape: list[int] = []
    for factor in draw(st.permutations(factors)):
        if shape and draw(st.booleans()):
            shape[-1] *= factor
        else:
            shape.append(factor)
    place = draw(st.integers(0, len(shape)))
    return (*shape[:place], *[1] * draw(st.integers(0, 2)), *shape[place:])


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_compressing_keeps_every_label(shape, data):
    varying = [size if data.draw(st.booleans()) else 1 for size in shape]
    full = np.broadcast_to(np.arange(int(np.prod(varying))).reshape(varying), shape).copy()
    small = compress(full)
    assert small.shape == tuple(varying)
    assert np.array_equal(np.broadcast_to(small, shape), full)
