"""Curves for TensorBoard: where they lie, what they hold, and what is told where they can't be had."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import PassError
from prunec.compiler.plan.plan import Plan
from prunec.passes.training import board

X = torch.zeros(2, 4)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=generator), torch.arange(8) % 3) for _ in range(3)]


def plan(folder: Path | str) -> dict[str, Any]:
    return {"plan": 1, "train": {"tensorboard": str(folder)}, "passes": [{"finetune": {"epochs": 2}}]}


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: tag -> its values, with their steps."""
    pytest.importorskip("tensorboard", reason="tensorboard is an option")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    found = EventAccumulator(str(run))
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_each_training_is_a_run_with_its_table(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an option")
    result = compile(small(), plan(tmp_path / "runs"), (X,), batches())
    found = curves(tmp_path / "runs/finetune/version_0")
    (record,) = result.report["passes"]
    for column in ("lr", "loss", "accuracy"):
        values = dict(found[column])
        for row in record["history"]:
            assert values[row["update"]] == pytest.approx(row[column])
    compile(small(), plan(tmp_path / "runs"), (X,), batches())
    assert sorted(os.listdir(tmp_path / "runs/finetune")) == ["version_0", "version_1"]


def test_nothing_is_written_where_nobody_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compile(small(), {"plan": 1, "passes": ["finetune"]}, (X,), batches())
    assert os.listdir(tmp_path) == []


def test_another_process_writes_nothing(tmp_path):
    spec = Plan.from_dict(plan(tmp_path / "runs")).train
    with board.Board.of(spec, "finetune", writes=False) as made:
        made.write({"loss": 1.0}, 1)
    assert os.listdir(tmp_path) == []


def test_the_folder_is_meant_from_the_plans_and_stays_so_in_a_lock(tmp_path):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans/plan.yaml").write_text("plan: 1\ntrain: {tensorboard: runs}\npasses: [finetune]\n")
    pytest.importorskip("tensorboard", reason="tensorboard is an option")
    result = compile(small(), tmp_path / "plans/plan.yaml", (X,), batches())
    assert os.listdir(tmp_path / "plans/runs") == ["finetune"]
    result.save(tmp_path / "out")
    assert Plan.load(tmp_path / "out/plan.lock.json").train.tensorboard == tmp_path / "plans/runs"
    assert '"../plans/runs"' in (tmp_path / "out/plan.lock.json").read_text()


def test_a_missing_package_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(PassError, match="curves for tensorboard, which isn't installed") as error:
        compile(small(), plan(tmp_path / "runs"), (X,), batches())
    assert "pip install tensorboard" in str(error.value.hint)


def test_a_folder_that_can_t_be_written(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an option")
    (tmp_path / "runs").touch()
    with pytest.raises(PassError, match="the curves for tensorboard can't be written to"):
        compile(small(), plan(tmp_path / "runs"), (X,), batches())
