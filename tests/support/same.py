"""Two models that give the same, bit by bit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, tuple | list) else [value]


def assert_same(module: nn.Module, model: nn.Module, *inputs: torch.Tensor) -> None:
    """Bit by bit, in eval mode; inputs are copied, since a model may write into them."""
    with torch.no_grad():
        found = leaves(module(*copy.deepcopy(inputs)))
        expected = leaves(copy.deepcopy(model).eval()(*copy.deepcopy(inputs)))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
