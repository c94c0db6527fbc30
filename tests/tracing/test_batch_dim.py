"""Rows of the batch stay rows of the batch: views that cut images apart are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from same import assert_same
from torch import nn

from prunec.compiler.errors import ModelError
from prunec.compiler.tracing.trace import trace


# ---- rows of the batch ----------------------------------------------------------------------------------------------
class Classifier(nn.Module):
    """A convolution, a view and a linear layer."""

    def __init__(self, view: Any, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.head = nn.Linear(features, 10)
        self.view = view

    def forward(self, x):
        return self.head(self.view(self.conv(x)))


def fold_and_unfold(x):
    return x.reshape(-1, 1024).reshape(x.shape[0], 4, 1024).mean(1)


FAULTS = {
    "view": lambda x: x.view(-1, 64 * 4 * 4),
    "reshape": lambda x: x.reshape((-1, 1024)),
    "function": lambda x: torch.reshape(x, (-1, 1024)),
}


RIGHT = {
    "the whole image": (lambda x: x.view(-1, 64 * 8 * 8), 4096),
    "batch first": (lambda x: x.view(x.size(0), -1), 4096),
    "folded and unfolded": (fold_and_unfold, 1024),
    "all positions as rows": (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 64), 64),
    "windows of a fixed number": (lambda x: x.view(-1, 1024)[:4], 1024),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("view", FAULTS.values(), ids=FAULTS)
def test_a_view_that_cuts_images_apart_is_refused(view, batch):
    with pytest.raises(ModelError, match="turns N rows into 4N") as caught:
        trace(Classifier(view, 1024), (torch.rand(batch, 3, 8, 8),))
    text = str(caught.value)
    for part in (f"[{batch}, 64, 8, 8] has 4096 values", "asks for 1024", "takes 4096 features", f"[{batch}, 3, 8, 8]"):
        assert part in text
    assert caught.value.at
    assert caught.value.at.line == view.__code__.co_firstlineno


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("view", "features"), RIGHT.values(), ids=RIGHT)
def test_views_that_keep_images_whole_are_taken(view, features, batch):
    model = Classifier(view, features)
    assert_same(trace(model, (torch.rand(batch, 3, 8, 8),)).module, model, torch.rand(3, 3, 8, 8))
