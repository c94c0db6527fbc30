"""Where a compile runs: nothing assumes the CPU, and the model stays where it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from several import splits
from training_nets import small

from prunec.compiler import compile
from prunec.compiler.errors import PlanError

SUPPORT = Path(__file__).parents[1] / "support"
X = torch.zeros(2, 3, 6, 6)
PLAN: dict[str, Any] = {"plan": 1, "passes": [{"score": "taylor"}, {"select": "30%"}, "shrink"]}


def test_compiles_on_another_device_give_what_they_give_on_the_cpu():
    script = SUPPORT / "far_compiles.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = ["criteria", "budget", "greedy", "merge", "mixed", "attention", "images", "classes", "train"]
    assert done.stdout.split() == expected


def test_a_device_that_is_not_there_is_told_with_its_place(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("plan: 1\npasses: []\ndevice: cuda:77\n")
    with pytest.raises(PlanError, match="the model can't run on device cuda:77") as error:
        compile(small(), path, (X,), splits())
    assert error.value.at.line == 3


@pytest.mark.parametrize("device", ["gpu 1", "nowhere", ""])
def test_a_device_of_no_kind_that_torch_knows_is_refused_when_the_plan_is_loaded(tmp_path, device):
    path = tmp_path / "plan.yaml"
    path.write_text(f"plan: 1\ndevice: '{device}'\n")
    with pytest.raises(PlanError, match="device must be") as error:
        compile(small(), path, (X,), splits())
    assert error.value.at.line == 2


def test_a_model_that_no_device_takes_stays_and_that_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if torch.version.cuda is None or not torch.cuda._is_compiled():
        pytest.skip("this torch is built without CUDA")
    result = compile(small(), {**PLAN, "train": {"accelerator": "cpu"}}, (X,), splits())
    assert any("it ran on cpu, since the model can't on cuda:0" in note for note in result.findings.notes)


def test_a_region_stays_with_its_model(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("plan: 1\nregion: '0'\ndevice: cuda\n")
    with pytest.raises(PlanError, match="a region of a model is compiled where the model is"):
        compile(torch.nn.Sequential(small()).eval(), path, (X,), splits())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it is of a CUDA device, and none is here")
def test_a_cuda_device_is_used_and_the_model_and_the_artifacts_stay_on_the_cpu(tmp_path):
    net = small()
    result = compile(net, {**PLAN, "passes": [*PLAN["passes"], {"finetune": 1}], "export": ["onnx"]}, (X,), splits())
    assert any("were computed on cuda:0" in note for note in result.findings.notes)
    assert next(record for record in result.findings.records if record.name == "finetune").details["device"] == "cuda:0"
    assert {tensor.device.type for tensor in (*net.state_dict().values(), *result.module.state_dict().values())} == {
        "cpu"
    }
    result.save(tmp_path / "out")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it is of a CUDA device, and none is here")
def test_a_model_on_a_cuda_device_stays_there():
    net = small().cuda()
    result = compile(net, PLAN, (X.cuda(),), splits())
    assert {tensor.device.type for tensor in (*net.state_dict().values(), *result.module.state_dict().values())} == {
        "cuda"
    }
