"""Files that passes add: each in the folder under a name of its own, pictures on the page, and still there after a
kill."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
import torch
from example_reports import BARE
from torch.utils.data import DataLoader, TensorDataset
from training_nets import small

from prunec.compiler import compile
from prunec.compiler.driver.compile import Result
from prunec.compiler.pass_base import Attachment, PassResult
from prunec.compiler.report.attachments import attachments
from prunec.compiler.report.html import report_html
from prunec.passes.score import Score

PICTURE = Attachment("map.png", b"\x89PNG, or nearly", "A map", "What is where.")
TABLE = Attachment("table.csv", b"a,b\n")


def test_a_second_file_of_the_same_name_gets_a_number():
    passes = tuple(replace(each, attachments=(PICTURE, TABLE)) for each in (*BARE.passes, BARE.passes[0]))
    names = [each.file for each in attachments(replace(BARE, passes=passes))]
    assert names == ["map.png", "table.csv", "map_2.png", "table_2.csv", "map_3.png", "table_3.csv"]


def test_a_picture_with_a_title_stands_on_the_page():
    record = replace(BARE.passes[0], attachments=(PICTURE, TABLE, replace(PICTURE, title="", file="plain.png")))
    page = report_html(replace(BARE, passes=(record,)))
    assert base64.b64encode(PICTURE.content).decode() in page
    assert page.count("<img") == 1
    assert "A map" in page
    assert "map.png" in page
    assert "table.csv" not in page
    assert record.to_dict()["attachments"] == ["map.png", "table.csv", "plain.png"]


def test_a_table_with_a_title_stands_on_the_page():
    titled = Attachment("layers.csv", b"layer,error\nconv1,<0.5\nfc,0\n", "Layers", "What is left.")
    record = replace(BARE.passes[0], attachments=(TABLE, titled))
    page = report_html(replace(BARE, passes=(record,)))
    assert page.count("<h2>Layers</h2>") == 1
    assert "<code>conv1</code>" in page
    assert "&lt;0.5" in page
    assert "table.csv" not in page


@pytest.fixture
def drawing(monkeypatch):
    """Scores that come with a picture."""
    run = Score.run

    def drawn(self, program, context) -> PassResult:
        return replace(run(self, program, context), attachments=(PICTURE, TABLE))

    monkeypatch.setattr(Score, "run", drawn)


def compiled(folder) -> Result:
    batches = DataLoader(TensorDataset(torch.randn(8, 3, 6, 6), torch.arange(8) % 5), 4)
    plan = {
        "plan": 1,
        "train": {"checkpoint_seconds": 0},
        "passes": [{"score": "l1"}, {"select": "25%"}, "shrink", {"finetune": {"epochs": 1, "lr": 0.05}}],
    }
    return compile(small(), plan, (torch.zeros(2, 3, 6, 6),), batches, checkpoints=folder)


def test_they_are_written_beside_the_model(drawing, tmp_path):
    compiled(None).save(tmp_path / "out")
    assert (tmp_path / "out" / "map.png").read_bytes() == PICTURE.content
    assert (tmp_path / "out" / "table.csv").read_bytes() == TABLE.content
    assert json.loads((tmp_path / "out" / "report.json").read_text())["passes"][0]["attachments"] == [
        "map.png",
        "table.csv",
    ]


def test_they_outlive_a_kill_behind_a_training(drawing, monkeypatch, tmp_path):
    first = compiled(tmp_path / "c")  # which leaves its checkpoints until it is saved

    def never(self, program, context):
        raise AssertionError("scores are known")

    monkeypatch.setattr(Score, "run", never)
    again = compiled(tmp_path / "c")
    assert [each.attachments for each in again.findings.passes] == [each.attachments for each in first.findings.passes]
    assert again.findings.passes[0].attachments == (PICTURE, TABLE)
