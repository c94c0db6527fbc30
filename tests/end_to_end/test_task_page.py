"""Each line of docs/task.md is a plan's, and its example runs as it stands there."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from pages import block_of

from prunec.compiler.driver.compile import compile
from prunec.compiler.driver.load import load_loss, load_metric
from prunec.compiler.plan.plan import Plan
from prunec.compiler.task.losses import ARGUMENTS
from prunec.compiler.task.metrics import NAMES

PAGE = (Path(__file__).parents[2] / "docs/task.md").read_text()
block = partial(block_of, "docs/task.md")
LINES = [line for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) for line in text.splitlines()]
NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.kind, self.depth = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        h = self.a(x).relu()
        return {"kind": self.kind(h), "depth": self.depth(h)}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_task.py").write_text(block("task"))
    Path("net.py").write_text(NET)
    Path("classes.txt").write_text("bird\ncat\ndog\n")


@pytest.mark.parametrize("line", LINES)
def test_each_line_is_a_plans(line):
    plan = Plan.from_dict({"plan": 1, **yaml.safe_load(line)})
    assert load_metric(plan, load_loss(plan)).title


def test_what_is_known_by_name_is_all_there():
    rows = re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)
    losses = {
        cells[3].strip("` "): tuple(re.findall(r"`(\w+)`", cells[4]))
        for row in rows
        if len(cells := row.split("|")) == 6 and cells[3].strip("` ") in ARGUMENTS
    }
    assert losses == ARGUMENTS
    metrics = {
        name: tuple(re.findall(r"`(\w+)`", row.split("|")[4]))
        for row in rows
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
        if name in NAMES
    }
    assert metrics == NAMES


def test_the_example_runs():
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    data = [(x, {"kind": x[:, :3].argmax(1), "depth": x.sum(1)})]
    said = {"loss": "my_task.py:kinds_and_depths", "metric": {"name": "my_task.py:close", "better": "higher"}}
    plan = {"plan": 1, "model": "net.py:Net", "passes": [{"score": "taylor"}, {"select": "50%"}, "shrink"], **said}
    assert compile(None, plan, (x[:1],), data).report["metric"]["name"] == "close"
