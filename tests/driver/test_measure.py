"""What is measured of both models: accuracy on whatever a loader gives, or why it can't be had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.driver.measure import accuracy, compare_accuracy
from prunec.compiler.errors import DataError

LOGITS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
BATCHES = [(LOGITS, torch.tensor([0, 1, 0, 0])), (LOGITS[:1], torch.tensor([2]))]


class Named(nn.Module):
    def forward(self, x, scale=1.0):
        return x * scale


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x,), lambda x: [x, 2.0], lambda x: {"scale": 1.0, "x": x}],
    ids=["tensor", "tuple", "two", "by name"],
)
def test_the_share_of_samples_at_their_label(wrap):
    assert accuracy(Named(), ((wrap(x), labels) for x, labels in BATCHES)) == 0.6


def test_progress_is_told_from_the_first_to_the_last():
    seen: list[tuple[str, int, int]] = []
    accuracy(Named(), BATCHES, lambda *step: seen.append(step))
    assert seen == [("accuracy", 0, 2), ("accuracy", 1, 2), ("accuracy", 2, 2)]


@pytest.mark.parametrize(
    ("module", "batches", "message"),
    [
        (nn.Linear(4, 2), BATCHES, r"can't take the data's batches, of shape \[4, 3\]"),
        (Named(), [({"y": LOGITS}, BATCHES[0][1])], r"can't take the data's batches, of shape \[4, 3\]"),
        (nn.Flatten(0), BATCHES, r"one output \[samples, classes\]"),
        (Named(), [], "the data's test split is empty"),
    ],
    ids=["size", "name", "output", "empty"],
)
def test_data_that_do_not_fit(module, batches, message):
    with pytest.raises(DataError, match=message):
        accuracy(module, batches)


class OneSplit:
    """Gives test batches anew at each call, and nothing else."""

    def test(self):
        return iter(BATCHES)


def test_both_models_see_the_test_split():
    found = compare_accuracy(Named(), nn.Softmin(1), OneSplit())
    assert found.before == 0.6
    assert found.after != 0.6
