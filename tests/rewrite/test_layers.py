"""Layers without some positions: attributes follow the shapes of tensors, and what is shared stays so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunec.compiler.ops.norm import groups_left
from prunec.compiler.rewrite import layers as slim_layers
from prunec.compiler.rewrite.layers import Gathering, resized, slim_module


@pytest.mark.parametrize("scratch", [1, 20, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("view", ["plain", "transposed", "expanded"])
def test_rows_and_columns_are_gathered_some_at_a_time(monkeypatch, scratch, dtype, view):
    monkeypatch.setattr(slim_layers, "SCRATCH", scratch)
    tensor = torch.arange(5 * 4 * 3).reshape(5, 4, 3).to(dtype)
    tensor = {"plain": tensor, "transposed": tensor.transpose(0, 1), "expanded": tensor[:1].expand(5, 4, 3)}[view]
    found = Gathering().gather(tensor, {0: np.array([0, 2, 3]), 1: np.array([1, 3])})
    assert torch.equal(found, tensor[[0, 2, 3]][:, [1, 3]])
    assert found.is_contiguous()
    empty = Gathering().gather(tensor, {0: np.array([], dtype=np.int64), 1: np.array([1])})
    assert empty.shape == (0, 1, 3)


def test_a_tensor_has_one_slim_form_under_each_of_its_names():
    gathering = Gathering()
    weight = nn.Parameter(torch.arange(6.0).reshape(3, 2), requires_grad=False)
    first, again = (gathering.gather(weight, {0: np.array([0, 2])}) for _ in range(2))
    assert first is again
    assert isinstance(first, nn.Parameter)
    assert not first.requires_grad
    assert first.tolist() == [[0, 1], [4, 5]]
    assert not isinstance(gathering.gather(torch.ones(3), {0: np.array([0])}), nn.Parameter)
    assert weight.shape == (3, 2)


KEPT, LEFT = [0, 2, 3], [1, 2]
RESIZED = {
    "conv": (nn.Conv2d(3, 4, 3), {"weight": {0: KEPT, 1: LEFT}, "bias": {0: KEPT}}, "in_channels=2 out_channels=3"),
    "transposed": (nn.ConvTranspose1d(4, 3, 3), {"weight": {0: KEPT, 1: LEFT}}, "in_channels=3 out_channels=2"),
    "linear": (nn.Linear(3, 4), {"weight": {0: KEPT}, "bias": {0: KEPT}}, "in_features=3 out_features=3"),
    "norm": (nn.BatchNorm2d(4), {"weight": {0: KEPT}, "running_mean": {0: KEPT}}, "num_features=3"),
    "layer norm": (nn.LayerNorm(4), {"weight": {0: KEPT}, "bias": {0: KEPT}}, "normalized_shape=(3,)"),
    "group norm": (nn.GroupNorm(2, 4), {"weight": {0: [0, 3]}}, "num_channels=2 num_groups=2"),
    "a whole group": (nn.GroupNorm(2, 4), {"weight": {0: [2, 3]}}, "num_channels=2 num_groups=1"),
    "embedding": (nn.Embedding(5, 4), {"weight": {1: KEPT}}, "embedding_dim=3 num_embeddings=5"),
    "bilinear": (nn.Bilinear(2, 3, 4), {"weight": {0: KEPT, 2: LEFT}}, "out_features=3 in1_features=2 in2_features=2"),
    "prelu": (nn.PReLU(4), {"weight": {0: KEPT}}, "num_parameters=3"),
}


@pytest.mark.parametrize(("layer", "left", "expected"), RESIZED.values(), ids=RESIZED)
def test_sizes_follow_the_tensors(layer, left, expected):
    positions = {key: {dim: np.array(found) for dim, found in places.items()} for key, places in left.items()}
    slim = slim_module(layer, positions)
    sizes = [each.partition("=")[0] for each in expected.split()]
    assert " ".join(f"{key}={getattr(slim, key)}" for key in sizes) == expected
    assert " ".join(f"{key}={getattr(layer, key)}" for key in sizes) != expected, "the old layer stays as it was"
    for key, places in positions.items():
        tensor = getattr(layer, key).detach()
        for dim, found in places.items():
            tensor = tensor.index_select(dim, torch.from_numpy(found))
        assert torch.equal(getattr(slim, key), tensor)


def grouped(layer: nn.Module, ins: list[int], outs: list[int]) -> nn.Module:
    read, written = (0, 1) if layer.transposed else (1, 0)
    positions = {"weight": {read: np.array(ins), written: np.array(outs)}, "bias": {0: np.array(outs)}}
    return slim_module(layer, positions)


GROUPED = {
    "same positions": (nn.Conv2d(6, 4, 3, groups=2), [0, 2, 3, 5], [0, 2], 2),
    "other positions": (nn.Conv2d(6, 4, 3, groups=2), [0, 1, 4, 5], [1, 2], 2),
    "a whole group": (nn.Conv2d(6, 4, 3, groups=2), [3, 4, 5], [2, 3], 1),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), [1, 3], [1, 3], 2),
    "depthwise multiplied": (nn.Conv2d(3, 6, 3, groups=3), [0, 2], [0, 1, 4, 5], 2),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, groups=2), [0, 1, 4, 5], [1, 2], 2),
}


@pytest.mark.parametrize(("layer", "ins", "outs", "groups"), GROUPED.values(), ids=GROUPED)
def test_a_grouped_layer_computes_what_is_left_of_it(layer, ins, outs, groups):
    slim = grouped(layer, ins, outs)
    assert (slim.groups, slim.in_channels, slim.out_channels) == (groups, len(ins), len(outs))
    x = torch.zeros(2, layer.in_channels, 5, 5)
    x[:, ins] = torch.randn(2, len(ins), 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slim(x[:, ins]), layer(x)[:, outs])


def test_a_group_that_loses_its_inputs_alone_is_refused():
    with pytest.raises(AssertionError, match="a group lost its inputs or its outputs alone"):
        grouped(nn.Conv2d(6, 4, 3, groups=2), [3, 4, 5], [0, 1, 2, 3])


def test_groups_that_keep_any():
    assert groups_left(np.array([True, False, False, False, True, True]), 3) == 2
    assert groups_left(np.zeros(6, dtype=bool), 3) == 0


def test_a_layer_without_a_row_is_named():
    with pytest.raises(AssertionError, match="ReLU has bound axes, so its sizes need a row"):
        resized(nn.ReLU(), {})
