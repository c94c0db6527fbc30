"""`centripetal` as a pass: clusters collapse, the training ends, and a merge behind it loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from digits_plan import DIGITS
from torch import nn

from prunec.compiler import Plan, compile, trace
from prunec.compiler.data import Data
from prunec.compiler.driver.check import check_plan
from prunec.compiler.errors import PassError, PlanError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.targets.onnx_export import onnx_bytes
from prunec.compiler.verify.compare import difference
from prunec.models.densenet import densenet
from prunec.models.resnet import resnet
from prunec.passes.block import Block
from prunec.passes.centripetal import Centripetal
from prunec.passes.cluster import Cluster
from prunec.passes.finetune import Finetune
from prunec.passes.merge import Merge
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink
from prunec.passes.training.masks import masks_of


class Separable(nn.Module):
    """Depthwise and pointwise convolutions in turn, with norms between them and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm, self.pointwise = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.pointwise(self.norm(self.depthwise(x)).relu())
        return self.fc(x.flatten(1))


NETS = {
    "identity": lambda: resnet(14, widths=(6, 6, 6)),
    "zero_pad": lambda: resnet(8, "zero_pad", widths=(6, 8, 12)),
    "projection": lambda: resnet(8, "projection", widths=(6, 8, 12)),
    "densenet": lambda: densenet(10, growth=6, stem=8),
    "depthwise": Separable,
}
QUICK = {"lr": 0.05, "strength": 10.0, "schedule": "constant", "optimizer": {"sgd": {"momentum": 0}}, "evaluate": False}
"""A step halves all differences; running statistics follow in about a hundred steps."""


def batches(count: int = 10, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 8, 3, 8, 8, generator=generator, dtype=dtype)
    return list(zip(images, torch.randint(0, 5, (count, 8), generator=generator), strict=True))


def clustered(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Program, Context]:
    torch.manual_seed(0)
    model = NETS[name]().to(dtype).eval()
    size = 4 if name == "depthwise" else 8
    program = trace(model, (torch.randn(2, 3, size, size, dtype=dtype),))
    data = [(images[..., :size, :size], labels) for images, labels in batches(dtype=dtype)]
    context = Context(data=Data.of(data), traced=program)
    return Cluster.model_validate({"ratio": "37.5%", **options}).run(program, context).program, context


def trained(program: Program, context: Context, **options: Any) -> Any:
    made = Centripetal.model_validate({**QUICK, **options})
    made.check(program)
    made.ready(program, context)
    return made.run(program, context)


def outputs(program: Program, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return program.deployed.module(*inputs)


# -- a merge that loses nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", NETS)
def test_once_clusters_have_collapsed_the_merged_network_equals_the_full_one(name, dtype, bound):
    program, context = clustered(name, dtype)
    result = trained(program, context, epochs=30)
    assert result.details["collapsed"]
    assert not result.warnings
    assert result.program.facts["clusters"] == program.facts["clusters"]
    merged = Merge().run(result.program, context)
    assert merged.details["largest_difference"] == 0
    assert sum(merged.details["removed"].values()) > 0
    full = outputs(result.program, program.inputs)
    assert difference(outputs(merged.program, program.inputs), full) / float(full.abs().max()) <= bound
    if dtype == torch.float32:  # onnxruntime has no convolutions of float64
        session = onnxruntime.InferenceSession(onnx_bytes(merged.program))
        (found,) = session.run(None, {session.get_inputs()[0].name: program.inputs[0].numpy()})
        assert difference(torch.from_numpy(found), full) / float(full.abs().max()) <= bound


@pytest.mark.parametrize("name", NETS)
def test_columns_that_are_dropped_in_place_of_being_added_are_a_loss(name):
    program, context = clustered(name)
    collapsed = trained(program, context, epochs=30).program
    others = {group: [u for c in found for u in c[1:]] for group, found in collapsed.facts["clusters"].items()}
    merged = Merge().run(collapsed, context).program
    dropped = Shrink().run(Select.model_validate({"units": others}).run(collapsed, context).program, context).program
    assert {n: t.shape for n, t in dropped.tensors.items()} == {n: t.shape for n, t in merged.tensors.items()}
    full, scale = outputs(collapsed, program.inputs), float(outputs(collapsed, program.inputs).abs().max())
    assert difference(outputs(dropped, program.inputs), full) > 0.01 * scale
    assert difference(outputs(merged, program.inputs), full) <= 1e-5 * scale


def test_without_clusters_it_trains_as_finetune_does_bit_for_bit():
    program, context = clustered("projection", ratio="0%")
    assert not program.facts["clusters"]
    options = {**QUICK, "optimizer": {"sgd": {"momentum": 0.9, "nesterov": True}}, "updates": 12, "seed": 3}
    found = trained(program, context, **options).program
    del options["strength"]
    plain = Finetune.model_validate(options).run(program, context).program
    assert found.tensors.keys() == plain.tensors.keys()
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in found.tensors.items())
    assert not all(torch.equal(tensor, program.tensors[name]) for name, tensor in found.tensors.items())


@pytest.mark.parametrize("name", NETS)
def test_through_a_plan_and_onnx(name, tmp_path):
    torch.manual_seed(0)
    model = NETS[name]().eval()
    size = 4 if name == "depthwise" else 8
    data = [(images[..., :size, :size], labels) for images, labels in batches()]
    plan = {
        "plan": 1,
        "inputs": [[2, 3, size, size]],
        "passes": [
            {"cluster": {"ratio": "37.5%"}},
            {"centripetal": {**QUICK, "epochs": 30}},
            "merge",
        ],
        "export": ["onnx"],
    }
    result = compile(model, plan, data=data)
    result.save(tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    x = torch.randn(2, 3, size, size)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = result.module(x).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    merge = next(record for record in result.report["passes"] if record["pass"] == "merge")
    assert merge["details"]["largest_difference"] == 0
    assert result.report["cost"]["after"]["macs"] < 0.8 * result.report["cost"]["before"]["macs"]


@pytest.mark.parametrize("name", ["projection", "depthwise"])
@pytest.mark.parametrize("block", [{"tile": [2, "kernel"], "keep": 0.6}, {"mode": "rows", "keep": 0.8}])
def test_zeros_that_a_cluster_shares_are_held_and_others_let_go(name, block):
    program, context = clustered(name)
    blocked = Block.model_validate(block).run(program, context).program
    before = masks_of(blocked)
    result = trained(Cluster(ratio=0.375).run(blocked, context).program, context, epochs=30)
    assert result.details["collapsed"]
    (note,) = result.notes
    assert note.subject == "masks"
    held = masks_of(result.program)
    assert all(not result.program.tensors[name][~stays].any() for name, stays in held.items())
    assert 0 < sum(int((~held[name]).sum()) for name in held) < sum(int((~stays).sum()) for stays in before.values())
    merged = Merge().run(result.program, context)
    full = outputs(result.program, program.inputs)
    assert difference(outputs(merged.program, program.inputs), full) / float(full.abs().max()) <= 1e-5


def test_chi_falls_and_has_a_column_for_each_group():
    program, context = clustered("projection")
    result = trained(program, context, epochs=3)
    first, *_, last = result.history
    names = [key.removeprefix("chi ") for key in last if key.startswith("chi ")]
    assert names == list(program.facts["clusters"])
    for row in result.history:
        assert np.isclose(sum(row[f"chi {name}"] for name in names), row["chi"])
    assert last["chi"] < first["chi"] / 10
    assert result.details["chi"] == last["chi"]


def test_clusters_that_have_not_collapsed_are_told_and_refused_or_averaged():
    program, context = clustered("projection")
    result = trained(program, context, updates=2)
    assert not result.details["collapsed"]
    (warning,) = result.warnings
    assert "the clusters haven't collapsed" in warning
    with pytest.raises(PassError, match="aren't identical"):
        Merge().run(result.program, context)
    merged = Merge(inexact="mean").run(result.program, context)
    assert merged.details["chi"] > 0


def test_without_a_bound_it_trains_to_the_end_and_leaves_what_is_left():
    program, context = clustered("zero_pad")
    result = trained(program, context, epochs=13, stop_below=0)
    assert result.details["epochs"] == 13
    assert "stopped" not in result.details
    assert not result.details["collapsed"]
    assert not result.warnings
    assert result.details["chi"] < 1e-8
    statistics = result.program.tensors["layer1.0.bn1.running_mean"]
    assert any(
        not torch.equal(statistics[a], statistics[b]) for a, b, *_ in program.facts["clusters"]["layer1.0.conv1"]
    )


def test_it_may_go_on_to_the_end_though_they_have_collapsed():
    program, context = clustered("zero_pad")
    result = trained(program, context, epochs=16, to_the_end=True)
    assert result.details["epochs"] == 16
    assert result.details["collapsed"]
    assert Merge().run(result.program, context).details["largest_difference"] == 0


def test_statistics_that_do_not_follow_keep_it_from_being_exact():
    program, context = clustered("projection")
    for name, tensor in program.tensors.items():
        if name.endswith("running_mean"):
            tensor.copy_(torch.arange(len(tensor)))
    result = trained(program, context, epochs=15, batch_norm="freeze")
    assert not result.details["collapsed"]


def test_the_error_of_a_merge_shrinks_with_chi():
    program, context = clustered("zero_pad")
    errors = []
    for updates in (20, 60, 100):
        result = trained(program, context, updates=updates, stop_below=0)
        full = outputs(result.program, program.inputs)
        merged = Merge(inexact="mean").run(result.program, context).program
        errors.append(difference(outputs(merged, program.inputs), full))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


# -- from a lock, in a plan ------------------------------------------------------------------------------------------


def test_a_lock_trains_again_to_the_same_end():
    program, context = clustered("depthwise")
    result = trained(program, context, epochs=30)
    assert result.details["stopped"]
    made = Centripetal.model_validate({**QUICK, "epochs": 30})
    (again,) = made.resolved(result)
    assert again.collapsed
    assert again.stop_at == result.details["updates"]
    second = again.run(program, context)
    assert all(torch.equal(x, second.program.tensors[name]) for name, x in result.program.tensors.items())
    assert second.details["collapsed"]


def test_check_does_not_refuse_the_merge_behind_it():
    plan = {
        "plan": 1,
        "model": {"factory": "prunec.models.resnet:resnet", "args": {"depth": 8, "in_channels": 1}},
        "inputs": [[1, 1, 8, 8]],
        "data": "prunec.models.data:digits",
        "passes": [{"cluster": {"method": "even", "ratio": 0.5}}, {"centripetal": 1}, "merge"],
    }
    assert any(line.startswith("passes:") for line in check_plan(Plan.from_dict(plan)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stop": 3}, "early_stop"),
        ({"keep": "best"}, "keep"),
        ({"strength": 0}, "strength"),
        ({"vectors": 2}, "vectors"),
        ({"stop_below": -1}, "stop_below"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_dict(
            {
                "plan": 1,
                "model": "prunec.models.digits:cnn",
                "inputs": [[1, 1, 8, 8]],
                "data": "prunec.models.data:digits",
                "passes": [{"cluster": 0.5}, {"centripetal": options}, "merge"],
            }
        )


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"optimizer": "sgd"}, 3.8),
        ({"optimizer": {"sgd": {"momentum": 0}}}, 2.0),
        ({"optimizer": {"sgd": {"nesterov": True}}}, 3.8 / 2.8),
        ({"optimizer": "adamw"}, 2.0),
    ],
)
def test_a_pull_that_overshoots_ever_more_is_refused(options, bound):
    program, _ = clustered("depthwise")
    Centripetal.model_validate({"lr": 0.1, "strength": 9.9 * bound, **options}).check(program)
    with pytest.raises(PassError, match="overshoots") as caught:
        Centripetal.model_validate({"lr": 0.1, "strength": 10.1 * bound, **options}).check(program)
    assert caught.value.keys == ("strength",)


def test_it_needs_clusters():
    with pytest.raises(PlanError, match="needs clusters"):
        compile(
            None,
            {
                "plan": 1,
                "model": "prunec.models.digits:cnn",
                "inputs": [[1, 1, 8, 8]],
                "data": "prunec.models.data:digits",
                "passes": [{"centripetal": 1}],
            },
        )


def test_a_training_that_is_taken_up_in_its_middle_ends_at_the_same_bits(tmp_path):
    program, context = clustered("depthwise")
    options = {"updates": 12, "stop_below": 0, "seed": 3, "strength_schedule": {"linear": {"start": 0, "end": 2}}}
    whole = trained(program, context, **options).program
    kept = Kept(tmp_path / "one.ckpt")
    with pytest.raises(KeyboardInterrupt):
        trained(program, replace(context, keeper=kept), **options)
    rest = trained(program, replace(context, keeper=kept), **options).program
    assert all(torch.equal(tensor, rest.tensors[name]) for name, tensor in whole.tensors.items())


class Kept:
    """A `Keeper` of one file that is killed behind its first checkpoint, after the fifth update."""

    place = ""

    def __init__(self, path: Path) -> None:
        self.path, self.asked = path, 0

    def due(self) -> bool:
        self.asked += 1
        if self.path.exists() and self.asked == 7:
            raise KeyboardInterrupt
        return self.asked == 5

    def save(self, write: Any) -> None:
        write(self.path)

    def load(self) -> Path | None:
        return self.path if self.path.exists() else None


def test_a_merge_costs_no_accuracy_where_cutting_small_filters_does():
    pull = {"epochs": 20, "lr": 0.05, "strength": 2.0, "schedule": "constant", "weight_decay": 0, "evaluate": False}
    training = [{"cluster": {"ratio": "50%"}}, {"centripetal": pull}]
    full = compile(None, {**DIGITS, "passes": training}).report
    merged = compile(None, {**DIGITS, "passes": [*training, "merge"]}).report
    cut = compile(None, {**DIGITS, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}).report
    assert merged["cost"]["after"]["macs"] == cut["cost"]["after"]["macs"]
    assert merged["accuracy"]["after"] == full["accuracy"]["after"]
    assert merged["accuracy"]["after"] > 0.95 > cut["accuracy"]["after"] + 0.1
