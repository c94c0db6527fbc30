"""A lock with its own weights beside it gives the same artifact without training again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunec.compiler import Plan, compile
from prunec.compiler.errors import PlanError

X = torch.zeros(2, 3, 6, 6)


def small() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(6 * 4 * 4, 5)).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 5) for _ in range(3)]


PLAN: dict[str, Any] = {
    "plan": 1,
    "passes": [{"score": "l1"}, {"select": "30%"}, "shrink", {"finetune": {"epochs": 2, "lr": 0.1}}, "fold_bn"],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lock") / "out"
    compile(small(), PLAN, (X,), batches()).save(folder)
    return folder


def again(lock: Path) -> Any:
    return compile(small(), Plan.load(lock), (X,), batches(), trained=True)


def test_the_artifact_is_the_same_bit_for_bit(out, monkeypatch, tmp_path):
    monkeypatch.setattr("prunec.passes.training.engine.Engine.run", None)  # nothing is trained
    result = again(out / "plan.lock.json")
    result.save(tmp_path / "again")
    for name in ("model.safetensors", "model.py"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    first, second = (json.loads((folder / "plan.lock.json").read_text()) for folder in (out, tmp_path / "again"))
    assert first == second


def test_other_weights_are_refused(out, tmp_path):
    shorter = [*PLAN["passes"][:3], {"finetune": {"epochs": 1, "lr": 0.1}}, "fold_bn"]
    compile(small(), {**PLAN, "passes": shorter}, (X,), batches()).save(tmp_path / "other")
    (tmp_path / "other" / "plan.lock.json").write_bytes((out / "plan.lock.json").read_bytes())
    with pytest.raises(PlanError, match="holds other weights than the lock was made with"):
        again(tmp_path / "other" / "plan.lock.json")


def test_what_is_no_lock_or_has_no_weights_is_refused(out, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    with pytest.raises(PlanError, match="only a lock is compiled with its trained weights"):
        again(tmp_path / "plan.json")
    (tmp_path / "plan.lock.json").write_bytes((out / "plan.lock.json").read_bytes())
    with pytest.raises(PlanError, match=r"no model\.safetensors lies beside"):
        again(tmp_path / "plan.lock.json")
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(PlanError, match="can't be read"):
        again(tmp_path / "plan.lock.json")
