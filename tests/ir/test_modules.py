"""Leaf modules: copies share all that isn't replaced, and the original is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunec.compiler.ir.modules import clone_module, eval_copy, evaluating, module_tensors, to_meta, unhooked


def test_a_copy_shares_what_is_not_replaced():
    old = nn.BatchNorm2d(4)
    old.weight.requires_grad_(False)
    new = clone_module(old, {"weight": torch.ones(2), "running_mean": torch.zeros(2), "bias": None}, num_features=2)
    assert (type(new), new.num_features, old.num_features) == (nn.BatchNorm2d, 2, 4)
    assert isinstance(new.weight, nn.Parameter)
    assert not new.weight.requires_grad
    assert new.bias is None
    assert not isinstance(new.running_mean, nn.Parameter)
    assert new.running_var is old.running_var
    assert [len(tensor) for tensor in (old.weight, old.bias, old.running_mean)] == [4, 4, 4]


def test_a_recurrent_layer_runs_on_its_new_weights():
    old = nn.GRU(3, 4)
    weight = torch.zeros_like(old.weight_ih_l0)
    new = clone_module(old, {"weight_ih_l0": weight})
    assert new._flat_weights[0] is new.weight_ih_l0
    x = torch.ones(2, 1, 3)
    assert not torch.equal(new(x)[0], old(x)[0])


@pytest.mark.parametrize(
    ("name", "module", "names"),
    [
        ("bn", nn.BatchNorm1d(2), ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]),
        ("fc", nn.Linear(2, 2, bias=False), ["weight"]),
        ("mha", nn.MultiheadAttention(2, 1, bias=False), ["in_proj_weight", "out_proj.weight"]),
    ],
    ids=["buffers", "no bias", "children"],
)
def test_tensors_bear_the_modules_name(name, module, names):
    assert [key for key, _ in module_tensors(name, module)] == [f"{name}.{key}" for key in names]
    assert [key for key, _ in module_tensors("", module)] == names


def test_a_module_in_eval_mode_is_its_own_copy():
    tree = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).eval()
    assert eval_copy(tree) is tree
    tree[0].train()
    copy = eval_copy(tree)
    assert not any(part.training for part in copy.modules())
    assert tree[0].training
    assert copy[1].weight is tree[1].weight


def test_every_part_gets_its_own_mode_back():
    tree = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    tree[1].eval()
    with evaluating(tree):
        assert not any(part.training for part in tree.modules())
    assert [part.training for part in tree.modules()] == [True, True, False]


def test_hooks_stay_behind():
    layer = nn.Linear(2, 2)
    assert unhooked(layer) is layer
    layer.register_forward_hook(lambda module, args, output: output * 0)
    x = torch.ones(1, 2)
    assert torch.equal(layer(x), torch.zeros(1, 2))
    assert not torch.equal(unhooked(layer)(x), torch.zeros(1, 2))
    assert unhooked(layer).weight is layer.weight


def test_a_value_without_data_keeps_its_strides():
    tensor = torch.ones(2, 3, dtype=torch.float16).T
    found = to_meta(tensor)
    assert (found.device.type, found.shape, found.stride(), found.dtype) == ("meta", (3, 2), (1, 3), torch.float16)
