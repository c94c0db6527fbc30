"""The lock: hashes of weights, what was removed, and whether a lock keeps its word."""

from __future__ import annotations

import pytest
import torch

from prunec.compiler.driver.lock import sha256_of

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "empty": torch.empty(0, 2), "c": torch.ones(2)}


OTHER_WEIGHTS = {
    "another value": {"c": torch.tensor([1.0, 2.0])},
    "another shape": {"a": torch.arange(6.0).reshape(3, 2)},
    "another type": {"c": torch.ones(2).view(torch.int32)},
    "another name": {"d": torch.ones(2)},
    "negative zero": {"a": torch.tensor([[-0.0, 1, 2], [3, 4, 5]])},
}


def test_the_hash_knows_no_order_and_no_strides():
    turned = {name: WEIGHTS[name] for name in reversed(WEIGHTS)} | {"a": WEIGHTS["a"].T.contiguous().T}
    assert sha256_of(turned) == sha256_of(WEIGHTS)
    assert len(sha256_of(WEIGHTS)) == 64


@pytest.mark.parametrize("change", OTHER_WEIGHTS.values(), ids=OTHER_WEIGHTS)
def test_the_hash_sees_every_change(change):
    assert sha256_of(WEIGHTS | change) != sha256_of(WEIGHTS)
