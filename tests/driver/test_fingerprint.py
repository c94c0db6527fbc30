"""The hash of samples: it knows neither order nor batches, and sees every other change."""

from __future__ import annotations

import pytest
import torch

from prunec.compiler.data import Batch
from prunec.compiler.driver.fingerprint import Fingerprint

X, Y = torch.arange(24.0).reshape(6, 4), torch.arange(6)


def of(inputs, labels=Y, sizes=(6,)) -> str:
    found, start = Fingerprint(), 0
    whole = Batch(inputs, labels)
    for size in sizes:
        found.add(whole[start : start + size])
        start += size
    return found.hexdigest()


def test_order_batches_and_strides_make_no_difference():
    turned = torch.tensor([3, 0, 5, 1, 4, 2])
    assert len(of(X)) == 64
    assert of(X) == of(X, sizes=(4, 2)) == of(X, sizes=(1, 0, 5))
    assert of(X) == of(X[turned], Y[turned])
    assert of(X) == of(X.T.contiguous().T)
    assert of({"x": X, "scale": 2.0}) == of((X, 3.0))


CHANGES = {
    "a value": (X + torch.eye(6, 4), Y),
    "a label": (X, Y.flip(0)),
    "no labels": (X, None),
    "a type": (X.double(), Y),
    "a shape": (X.reshape(6, 2, 2), Y),
    "fewer samples": (X[:5], Y[:5]),
    "a sample twice": (X[[0, 1, 2, 3, 4, 4]], Y[[0, 1, 2, 3, 4, 4]]),
    "another input": ((X, X), Y),
}


@pytest.mark.parametrize(("inputs", "labels"), CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(inputs, labels):
    assert of(inputs, labels) != of(X)


def test_single_numbers_and_half_precision_have_hashes_too():
    assert of(torch.arange(6)) != of(torch.arange(6).flip(0))
    assert len(of(X.bfloat16())) == 64
