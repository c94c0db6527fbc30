"""Each example of docs/data.md runs as it stands there."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from pages import block_of
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunec.compiler.driver.compile import compile
from prunec.compiler.plan.plan import Plan

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()
NETS = """\
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 2))
"""
PASSES = [{"score": "taylor"}, {"select": "25%"}, "shrink"]


block = partial(block_of, "docs/data.md")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    return tmp_path


def report_of(data: dict) -> dict:
    """The report of a plan with these lines about data."""
    plan = {"plan": 1, "model": "nets.py:net", "inputs": [[1, 3, 32, 32]], "passes": PASSES, **data}
    return compile(None, Plan.from_dict(plan)).report


def test_the_image_folder():
    pytest.importorskip("torchvision")
    for split in ("train", "val"):
        for number, name in enumerate(("cats", "dogs")):
            place = Path("pictures", split, name)
            place.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (40, 36), (number * 100, index * 20, 0)).save(place / f"{index}.png")
    report = report_of(yaml.safe_load(block("image_folder")))
    assert report["evaluation"] == {"split": "val", "samples": 8}
    assert set(report["accuracy"]) == {"before", "after"}


def test_the_loader_of_ones_own():
    Path("my_data.py").write_text(block("loader"))
    rng = np.random.default_rng(0)
    for name, count in (("train", 100), ("test", 30)):
        images = rng.standard_normal((count, 3, 32, 32), dtype=np.float32)
        np.savez(f"{name}.npz", images=images, labels=np.arange(count) % 2)
    first, second = (report_of(yaml.safe_load(block("loader_plan"))) for _ in range(2))
    assert first["evaluation"] == {"split": "test", "samples": 30}
    assert first["accuracy"] == second["accuracy"]


def test_the_loader_in_python():
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 2
    made: dict = {}
    exec(NETS, made)
    names = {"model": made["net"](), "images": images, "loader": DataLoader(TensorDataset(images, labels), 4)}
    exec(block("python"), names)
    assert names["result"].report["evaluation"] == {"split": "test", "samples": 12}


class Rows:
    """One split of a data set, with the interface of Hugging Face's: a mapping for each row."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        return [self[row] for row in rows]


class Splits(dict):
    """A dictionary of splits, which gives tensors when it is asked to."""

    def with_format(self, kind: str) -> Splits:
        assert kind == "torch"
        return self


def test_the_data_set_of_hugging_face(monkeypatch):
    def saved(folder: str) -> Splits:
        assert folder == "on_disk"
        images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
        rows = Rows({"image": images, "label": torch.arange(10) % 2})
        return Splits(train=rows, validation=rows, test=rows)

    package = ModuleType("datasets")
    package.load_from_disk = saved
    monkeypatch.setitem(sys.modules, "datasets", package)
    Path("hf.py").write_text(block("hugging_face"))
    report = report_of({"data": {"factory": "hf.py:saved", "args": {"folder": "on_disk", "batch_size": 4}}})
    assert report["evaluation"] == {"split": "test", "samples": 10}


class Reads(nn.Module):
    """A small model of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, input_ids, attention_mask):
        x = torch.relu(self.up(self.words(input_ids))) * attention_mask[..., None]
        return self.down(x.mean(1))


def test_the_texts():
    made: dict = {}
    exec(block("texts"), made)
    ids = torch.randint(0, 50, (10, 7))
    rows = Rows({"input_ids": ids, "attention_mask": torch.ones(10, 7), "label": torch.arange(10) % 2})
    loader = DataLoader(rows, 4, collate_fn=made["pairs"])
    example = {"input_ids": ids[:1], "attention_mask": torch.ones(1, 7)}
    report = compile(Reads(), {"plan": 1, "passes": PASSES}, example, data=loader).report
    assert report["evaluation"] == {"split": "test", "samples": 10}
    assert report["cost"]["after"]["params"] < report["cost"]["before"]["params"]


def test_every_block_of_the_page_is_tried_here():
    blocks = set(re.findall(r"<!-- (\w+) -->", PAGE)) - {"end"}
    assert blocks == set(re.findall(r'block\("(\w+)"\)', Path(__file__).read_text()))
    assert len(re.findall(r"^```\w", PAGE, re.MULTILINE)) == len(blocks)
