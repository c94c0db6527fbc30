"""The tables of trainings: as files beside the page, and as curves in it."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
import torch
from torch import nn

from prunec.compiler import compile
from prunec.compiler.driver.compile import Result
from prunec.compiler.report.figures import did
from prunec.compiler.report.html import report_html
from prunec.compiler.report.training import trainings

X = torch.zeros(2, 3, 6, 6)
TRAIN: dict[str, Any] = {"finetune": {"epochs": 2, "lr": 0.05}}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 5)).eval()


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 5) for _ in range(3)]


@pytest.fixture(scope="module")
def result() -> Result:
    rounds = {"steps": 2, "to": {"macs": "50%"}, "passes": [{"score": "l1"}, "select", "shrink", TRAIN]}
    passes = [TRAIN, {"repeat": rounds}, TRAIN, {"finetune": {"epochs": 1, "early_stop": 1}}]
    return compile(small(), {"plan": 1, "passes": passes}, (X,), {"train": batches(0), "val": batches(1)})


def test_each_training_has_a_file_of_its_own_and_rounds_share_one(result):
    found = trainings(result.findings)
    assert [run.file for run in found] == ["finetune.csv", "finetune_2.csv", "finetune_3.csv", "finetune_4.csv"]
    assert [run.title for run in found] == ["finetune", "finetune, all rounds", "finetune", "finetune"]
    assert [len(run.rows) for run in found] == [2, 4, 2, 1]


def test_updates_are_counted_on_through_the_rounds(result):
    run = trainings(result.findings)[1]
    assert [row["round"] for row in run.rows] == [1, 1, 2, 2]
    assert [row["update"] for row in run.rows] == [3, 6, 9, 12]
    assert run.columns == ["round", "epoch", "update", "lr", "loss", "accuracy"]


def test_the_files_hold_the_tables(result, tmp_path):
    result.save(tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "finetune_2.csv").read_text().splitlines()))
    assert [int(row["update"]) for row in rows] == [3, 6, 9, 12]
    history = [row for each in result.findings.passes if each.round is not None for row in each.history]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in history]


def test_the_page_draws_the_metric_and_the_loss_first(result):
    run = trainings(result.findings)[0]
    assert [drawn.title for drawn in run.curves()] == ["accuracy", "loss", "lr"]
    assert run.told("accuracy", 0.5) == "50.00%"
    assert run.told("loss", 0.5) == "0.5"
    page = report_html(result.findings)
    assert "Training: finetune, all rounds" in page
    assert "finetune_2.csv" in page
    assert "against updates" in page


def test_what_a_training_came_to_is_told(result):
    first, last = result.findings.passes[0], result.findings.passes[-1]
    assert did(first).startswith("2 epochs, loss ")
    assert "accuracy " in did(first)
    assert did(last).endswith("on val of epoch 1")


def test_a_metric_has_its_name_for_people():
    plan = {"plan": 1, "metric": "mean_iou", "passes": [{"finetune": {"epochs": 2, "lr": 0.05}}]}
    result = compile(small(), plan, (X,), {"train": batches(0), "val": batches(1)})
    assert "mean IoU " in did(result.findings.passes[0])
    (run,) = trainings(result.findings)
    assert run.columns == ["epoch", "update", "lr", "loss", "mean_iou"]
    assert [drawn.title for drawn in run.curves()] == ["mean IoU", "loss", "lr"]
    assert '<th class="n">mean IoU</th>' in report_html(result.findings)


def worst(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) != labels).float() * torch.nan


def test_a_metric_of_ones_own_that_is_no_number_is_in_the_table_and_the_report_is_json(monkeypatch):
    monkeypatch.setattr("__main__.worst", worst, raising=False)
    metric = {"name": "__main__:worst", "better": "lower"}
    plan = {"plan": 1, "metric": metric, "passes": [{"finetune": {"epochs": 2, "keep": "best"}}]}
    result = compile(small(), plan, (X,), {"train": batches(0), "val": batches(1)})
    json.dumps(result.report, allow_nan=False)
    assert [row["worst"] for row in result.report["passes"][0]["history"]] == [None, None]
    assert trainings(result.findings)[0].csv().splitlines()[1].endswith(",nan")


def test_a_report_without_training_has_none_of_it(result):
    plain = compile(small(), {"plan": 1, "passes": [{"score": "l1"}, {"select": "30%"}, "shrink"]}, (X,))
    assert trainings(plain.findings) == []
    assert "Training:" not in report_html(plain.findings)
