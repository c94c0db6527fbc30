"""The reference of a classifier that has lost classes."""

from __future__ import annotations

import pytest
import torch
from heads import head
from torch import nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.picked import Picked
from prunec.compiler.verify.verify import verify

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def by_hand(name: str, rows: list[int]):
    """The model with these rows of its head alone, which nobody else has picked."""
    model = head(name)
    model.fc, old = nn.Linear(8, len(rows)), model.fc
    model.fc.weight.data, model.fc.bias.data = old.weight.data[rows], old.bias.data[rows]
    return trace(model, (X,))


@pytest.mark.parametrize(("name", "softmaxes"), [("linear", {}), ("softmax", {"softmax": 1})])
def test_rows_picked_by_hand_agree_and_others_do_not(name, softmaxes):
    reference = Picked(trace(head(name), (X,)), [0], [1, 4, 7], softmaxes)
    assert verify(by_hand(name, [1, 4, 7]), reference, pass_name="classes").difference < 1e-6
    for rows in ([1, 4, 8], [4, 1, 7], [1, 4]):
        with pytest.raises(VerifyError, match="pass 'classes' changed what the program computes"):
            verify(by_hand(name, rows), reference, pass_name="classes")


def test_a_softmax_over_all_classes_is_another():
    reference = Picked(trace(head("softmax"), (X,)), [0], [1, 4, 7])
    with pytest.raises(VerifyError, match="changed what the program computes"):
        verify(by_hand("softmax", [1, 4, 7]), reference, pass_name="classes")


def test_outputs_that_lose_nothing_are_compared_whole():
    before = trace(head(lambda s, h, p: (s.fc(p), p)), (X,))
    first, second = Picked(before, [0], [1, 4]).run((X,), torch.float32)
    assert (first.shape, second.shape) == ((2, 2), (2, 8))
    whole = before.module(X)
    torch.testing.assert_close(first, whole[0][:, [1, 4]])
    torch.testing.assert_close(second, whole[1])
