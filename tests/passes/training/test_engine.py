"""The engine: several processes against one, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from several import TwoHeads, batches
from training_nets import small

from prunec.compiler import Plan, compile
from prunec.compiler.errors import PassError, PlanError, PrunecError
from prunec.compiler.train_spec import TrainSpec

SUPPORT = str(Path(__file__).parents[2] / "support")
X = torch.zeros(2, 3, 6, 6)
TWO = {"devices": 2, "accelerator": "cpu", "strategy": "ddp"}
ONE = {"accelerator": "cpu"}


def values(data: Any, *passes: Any, train: Any = ONE, **plan: Any) -> dict[str, torch.Tensor]:
    """The weights of a compile."""
    made = {"plan": 1, "train": train, "passes": list(passes), **plan}
    return dict(compile(small(), made, (X,), data).module.state_dict())


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Fail where two states differ by more than rounding."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name].double(), tensor.double(), atol=1e-6), name


def test_two_processes_are_one_with_the_doubled_batch():
    ours = batches()
    pairs = zip(ours[::2], ours[1::2], strict=True)
    doubled = [(torch.cat([x, u]), torch.cat([y, v])) for (x, y), (u, v) in pairs]
    finetune = {"epochs": 2, "lr": 0.1, "batch_norm": "freeze", "clip": 1.0, "score": "taylor"}
    distilled = {"updates": 2, "lr": 0.1, "batch_norm": "freeze", "distill": {"weight": 0.3}}
    cut = [{"select": "30%"}, "shrink"]
    passes = [{"finetune": finetune}, *cut, {"finetune": distilled}]
    assert_near(values(ours, *passes, train=TWO), values(doubled, *passes))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"strategy": "fsdp"}, "train must give strategy fsdp several devices"),
        ({"strategy": "fsdp", "devices": [1]}, "train must give strategy fsdp several devices"),
        (
            {"strategy": "fsdp", "devices": 2, "accelerator": "cpu"},
            "train must not say strategy fsdp beside accelerator",
        ),
        ({"devices": [1, 1]}, "train must not name a device twice"),
        ({"devices": [0, 1], "accelerator": "cpu"}, "train must say how many devices there are for accelerator cpu"),
        (
            {"precision": "16-mixed", "accelerator": "cpu"},
            "train must not say precision 16-mixed beside accelerator cpu",
        ),
        ({"precision": "8-true"}, "'8-true'"),
        ({"strategy": "ddp_spawn"}, "'ddp_spawn'"),
        ({"devices": 0}, "devices must be"),
        ({"devices": []}, "devices must be"),
    ],
)
def test_what_does_not_go_together_is_told_when_the_plan_is_loaded(tmp_path, said, why):
    path = tmp_path / "plan.yaml"
    path.write_text(f"plan: 1\ntrain: {said}\n")
    with pytest.raises(PlanError, match=re.escape(why)) as error:
        Plan.load(path)
    assert error.value.at.line == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it can be had")
@pytest.mark.parametrize("said", ["{accelerator: cuda}", "{devices: [0, 5], accelerator: gpu}", "{num_nodes: 2}"])
def test_what_this_machine_does_not_have_is_told_with_its_place(tmp_path, said):
    path = tmp_path / "plan.yaml"
    path.write_text(f"plan: 1\npasses: [finetune]\ntrain: {said}\n")
    with pytest.raises(PassError) as error:
        compile(small(), Plan.load(path), (X,), batches())
    assert (error.value.at.file, error.value.at.line) == (str(path), 3)


def test_a_gpu_s_precision_is_refused_where_there_is_none():
    with pytest.raises(PassError, match="16-mixed isn't for the CPU"):
        values(batches(), "finetune", train={"precision": "16-mixed"})


def test_data_that_no_process_can_take_over_need_a_factory():
    class Mine(list):  # of a function, which no other process finds
        pass

    with pytest.raises(PassError, match="the data can't be handed to the 2 processes that train") as error:
        values(Mine(batches()), "finetune", train=TWO)
    assert "data: package.module:name" in str(error.value.hint)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_weights_keep_the_dtype_of_the_program_whatever_trains_them(precision):
    found = values(batches(), {"finetune": {"epochs": 2, "lr": 0.1}}, train={"precision": precision})
    wanted = values(batches(), {"finetune": {"epochs": 2, "lr": 0.1}})
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.allclose(found[name].double(), tensor.double(), atol=0.05), name
    assert int(found["1.num_batches_tracked"]) == 12
    assert not torch.equal(found["1.running_mean"], small().state_dict()["1.running_mean"])


def test_momentum_goes_on_in_another_precision():
    rounds = [{"finetune": {"updates": 6, "lr": 0.1, "rounds": [number, 2], "seed": 1}} for number in range(2)]
    whole = values(batches(), {"finetune": {"updates": 12, "lr": 0.1, "seed": 1}}, train={"precision": "64-true"})
    assert_near(values(batches(), *rounds, train={"precision": "64-true"}), whole)


def test_a_loss_of_one_output_leaves_the_other_s_parameters_without_a_gradient():
    passes = [{"finetune": {"epochs": 1, "lr": 0.1}}]
    plan = {"plan": 1, "loss": {"name": "cross_entropy", "output": 0}, "passes": passes}
    ours = batches(4)
    pairs = zip(ours[::2], ours[1::2], strict=True)
    doubled = [(torch.cat([x, u]), torch.cat([y, v])) for (x, y), (u, v) in pairs]
    found = compile(TwoHeads().eval(), {**plan, "train": {"devices": 2, "accelerator": "cpu"}}, (X,), ours)
    wanted = compile(TwoHeads().eval(), {**plan, "train": ONE}, (X,), doubled)
    assert_near(dict(found.module.state_dict()), dict(wanted.module.state_dict()))
    assert torch.equal(found.module.state_dict()["b.weight"], TwoHeads().b.weight)


PLAN = """
plan: 1
model: training_nets:small
inputs: [[2, 3, 6, 6]]
data: several:splits
loss: several:loss
train: {devices: 2, accelerator: cpu, strategy: ddp}
passes:
  - score: l1
  - select: 30%
  - shrink
  - finetune: {epochs: 2, lr: 0.1, early_stop: 1}
"""


def test_processes_of_a_launcher_compile_together_and_the_first_one_writes(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    command = ["compile", str(plan), "-o", str(tmp_path / "out"), "--quick", "-q"]
    run = "import sys; from prunec.compiler.cli.main import main; main(sys.argv[1:])"
    script = tmp_path / "run.py"
    script.write_text(run)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), *command]
    done = subprocess.run(
        launcher, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": SUPPORT}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MACs") == 1
    wanted = compile(None, Plan.load(plan))
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(tensor, wanted.module.state_dict()[name]), name


@pytest.mark.parametrize(
    ("spec", "environment", "rank"),
    [
        (None, {"RANK": "3"}, 0),
        (TrainSpec(), {"SLURM_PROCID": "3"}, 0),
        (TrainSpec(devices=2), {}, 0),
        (TrainSpec(devices=2), {"RANK": "3", "LOCAL_RANK": "1"}, 3),
        (TrainSpec(strategy="ddp"), {"SLURM_PROCID": "2"}, 2),
        (None, {"LT_CLI_USED": "1", "RANK": "1"}, 1),
    ],
)
def test_a_rank_counts_where_processes_train_together(monkeypatch, spec, environment, rank):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "LT_CLI_USED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert TrainSpec.rank(spec) == rank


def test_several_processes_go_on_from_a_checkpoint_to_the_same_weights(tmp_path):
    options = {"epochs": 4, "lr": 0.1, "optimizer": "adamw"}
    plan = {"plan": 1, "train": {**TWO, "checkpoint_seconds": 0}, "passes": [{"finetune": options}]}
    data = {"train": batches(), "val": batches(2)}
    whole = compile(small(0.3), plan, (X,), data).module.state_dict()

    def kill(what: str, done: int, total: int, note: str = "") -> None:
        if what.startswith("train") and done >= 6:
            raise PrunecError("killed")

    folder = tmp_path / "checkpoints"
    with pytest.raises(PrunecError, match="killed"):
        compile(small(0.3), plan, (X,), data, progress=kill, checkpoints=folder)
    assert list(folder.glob("training-*.pt"))
    again = compile(small(0.3), plan, (X,), data, checkpoints=folder)
    assert any("went on" in note for note in again.findings.notes)
    for name, tensor in again.module.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_an_operation_that_gives_other_numbers_each_time_is_told(monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("upsample does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr("prunec.passes.training.loop.fit", refuse)
    with pytest.raises(PassError, match=r"an operation of the training isn't deterministic: .*upsample"):
        values(batches(), "finetune", train={"accelerator": "cpu", "deterministic": True})
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_training_gives_the_same_weights():
    options = {"finetune": {"updates": 3, "lr": 0.1}}
    found = values(batches(), options, train={"accelerator": "cpu", "deterministic": True})
    assert_near(found, values(batches(), options))
