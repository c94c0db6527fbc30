"""A lock's positions as indices: they give the slim weights, whatever the layer."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from prunec.compiler import compile, kept_indices


def of(middle: nn.Module, channels: int = 12, *, rank: int = 2) -> nn.Module:
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    width = middle(torch.rand(1, channels, *[5] * rank)).shape[1]
    return nn.Sequential(conv(3, channels, 1), nn.ReLU(), middle, nn.ReLU(), conv(width, 2, 1)).eval()


NETS = {
    "grouped": (of(nn.Conv2d(12, 18, 3, groups=3)), 2),
    "grouped, in one dimension": (of(nn.Conv1d(12, 6, 3, groups=3), rank=1), 1),
    "grouped, in three dimensions": (of(nn.Conv3d(12, 12, 3, groups=2), rank=3), 3),
    "depthwise": (of(nn.Conv2d(12, 12, 3, groups=12)), 2),
    "depthwise, with two outputs each": (of(nn.Conv2d(12, 24, 3, groups=12)), 2),
    "transposed": (of(nn.ConvTranspose2d(12, 6, 3)), 2),
    "transposed grouped": (of(nn.ConvTranspose2d(12, 18, 3, groups=3)), 2),
    "transposed depthwise": (of(nn.ConvTranspose2d(12, 12, 3, groups=12)), 2),
    "plain": (of(nn.Conv2d(12, 6, 3)), 2),
    "norm": (of(nn.BatchNorm2d(12)), 2),
}
WAYS = ["same", "equal", "whole"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("model", "rank"), NETS.values(), ids=NETS)
def test_the_indices_give_the_slim_weights(model, rank, way):
    plan = {"plan": 1, "passes": [{"axes": {"grouped": way}}, {"score": "l2"}, {"select": "50%"}, "shrink"]}
    result = compile(model, plan, (torch.rand(1, 3, *[5] * rank),))
    lock = json.loads(json.dumps(result.lock))
    slim = result.module.state_dict()
    assert lock["removed"]
    changed = 0
    for name, tensor in model.state_dict().items():
        left = tensor[kept_indices(lock, name, tensor.shape)]
        assert torch.equal(left, slim[name])
        changed += left.shape != tensor.shape
    assert changed == len(lock["removed"])
    grouped = isinstance(model[2], nn.modules.conv._ConvNd) and model[2].groups > 1
    assert lock.get("grouped") == ({"2.weight": model[2].groups} if grouped else None)
    assert ("counts the input channels of all groups" in lock.get("numbering", "")) is grouped


def test_a_lock_that_is_compiled_again_is_the_same():
    model, rank = NETS["depthwise"]
    plan = {"plan": 1, "passes": [{"score": "l2"}, {"select": "50%"}, "shrink"]}
    inputs = (torch.rand(1, 3, *[5] * rank),)
    lock = compile(model, plan, inputs).lock
    assert compile(model, lock, inputs).lock == lock
    lock = {**compile(NETS["plain"][0], plan, inputs).lock, "grouped": {"2.weight": 3}, "numbering": "old"}
    again = compile(NETS["plain"][0], lock, inputs).lock
    assert again.keys().isdisjoint({"grouped", "numbering"})


def test_a_shape_that_is_not_the_originals():
    lock = {"removed": {"w": {"0": [1], "1": [5]}, "g": {"1": [5]}}, "grouped": {"g": 2}}
    assert [index.flatten().tolist() for index in kept_indices(lock, "w", (3, 6))] == [[0, 2], [0, 1, 2, 3, 4]]
    assert [index.flatten().tolist() for index in kept_indices(lock, "other", (2,))] == [[0, 1]]
    assert kept_indices(lock, "scalar", ()) == ()
    with pytest.raises(ValueError, match="w has 5 positions where the lock removes position 5"):
        kept_indices(lock, "w", (3, 5))
    with pytest.raises(ValueError, match="w has 1 dimensions, and the lock removes from 0, 1"):
        kept_indices(lock, "w", (3,))
