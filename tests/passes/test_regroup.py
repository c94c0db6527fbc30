"""`regroup` in plans: behind `block`, between trainings, in the emitted source and in ONNX."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.emit.output_folder import LOCK
from prunec.compiler.errors import PassError
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.models.convnet import convnet
from prunec.passes.block import Block
from prunec.passes.regroup import Regroup
from prunec.passes.training.masks import masks_of

DIGITS = {
    "plan": 1,
    "model": {"factory": "prunec.models.convnet:convnet", "args": {"image_size": 8}},
    "inputs": [[1, 1, 8, 8]],
    "data": {"factory": "prunec.models.data:digits", "args": {"batch_size": 64}},
}


def small() -> nn.Module:
    torch.manual_seed(0)
    return convnet(widths=(8, 16, 16), image_size=8).eval()


def blocked(**options):
    program = trace(small(), (torch.ones(1, 1, 8, 8),))
    return Block(**options).run(program, Context()).program


def test_layers_are_grouped_and_macs_go():
    passes = [{"block": {"into": "groups=2"}}, "regroup"]
    result = compile(small(), {"plan": 1, "passes": passes}, (torch.ones(1, 1, 8, 8),))
    grouped = result.report["passes"][1]["details"]["grouped"]
    assert {name: found["groups"] for name, found in grouped.items()} == {"conv2": 2, "conv3": 2, "fc": 2}
    before, after = (result.report["cost"][when]["macs"] for when in ("before", "after"))
    conv1 = 8 * 9 * 64
    assert after == conv1 + (before - conv1) / 2


def test_what_leaves_no_groups_is_told_as_sparsity():
    result = Regroup().run(blocked(tile=(4, 4), keep=0.5), Context())
    assert result.details["grouped"] == {}
    assert set(result.details["sparsity"]) == {"conv1", "conv2", "conv3", "fc"}
    assert all("weights are zero: they leave no groups" in note.reason for note in result.notes)


def test_another_number_of_groups_can_be_asked_for():
    program = blocked(into="groups=4", only=["conv3"])
    assert Regroup(groups=2).run(program, Context()).details["grouped"]["conv3"]["groups"] == 2
    assert Regroup(groups=8).run(program, Context()).details["grouped"] == {}


def test_a_weight_of_two_layers_stays():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with torch.no_grad():
        net[0].weight[:2, 2:] = net[0].weight[2:, :2] = 0
    result = Regroup().run(trace(net, (torch.ones(1, 4),)), Context())
    assert result.details["grouped"] == {}
    assert "another layer's, too" in str(result.notes[0])


def test_masks_follow_their_elements():
    first = blocked(into="groups=2", only=["conv2"])
    program = Block(tile=(2, 2), keep=0.4, only=["conv2", "conv3"]).run(first, Context()).program
    after = Regroup().run(program, Context()).program
    masks = masks_of(after)
    assert set(masks) >= {"conv2.weight", "conv3.weight"}
    for name, stays in masks.items():
        assert stays.shape == after.tensors[name].shape
        assert torch.equal(after.tensors[name] != 0, stays)


def test_a_pattern_that_names_nothing():
    with pytest.raises(PassError, match="nothing is called 'conv7'"):
        Regroup(only=["conv7"]).check(blocked())


def test_a_plan_with_training_before_and_behind(tmp_path):
    pytest.importorskip("lightning_fabric")
    passes = [
        {"block": {"into": "groups=2", "protect": ["conv1"]}},
        {"finetune": {"updates": 4, "lr": 0.05}},
        "shrink",
        "regroup",
        {"finetune": {"updates": 4, "lr": 0.05}},
        {"score": "l1"},
        {"select": {"ratio": 0.25}},
        "shrink",
    ]
    result = compile(None, {**DIGITS, "passes": passes, "export": ["onnx"]})
    assert result.program.state["conv2"].groups == 2
    assert result.program.state["conv3"].groups == 2
    result.save(tmp_path / "out")
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        wanted = result.module.eval()(x).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    again = compile(None, result.lock)
    assert again.lock["hashes"] == result.lock["hashes"]
    assert (tmp_path / "out" / LOCK).exists()


def test_an_optimizers_memory_follows():
    pytest.importorskip("lightning_fabric")
    train = {"finetune": {"updates": 3, "lr": 0.05, "optimizer": {"sgd": {"momentum": 0.9}}}}
    result = compile(None, {**DIGITS, "passes": [{"block": {"into": "groups=2"}}, train, "regroup"]})
    program = result.program
    kept = program.carried["optimizer"]["state"]
    assert set(kept) == {name for name in program.tensors if not name.endswith(("_inputs", "_outputs"))}
    for name, memory in kept.items():
        assert memory["momentum_buffer"].shape == program.tensors[name].shape
        assert memory["momentum_buffer"].any()
