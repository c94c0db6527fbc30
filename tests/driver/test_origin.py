"""The report says where a result comes from; its lines of Python load what was written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunec.compiler import compile

NETS = """\
from torch import nn


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, scale):
        return self.right(self.left(x).relu() * scale)
"""
PASSES = "passes: [score, select: 50%, shrink]\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    layers = nn.ModuleDict({"left": nn.Linear(6, 8), "right": nn.Linear(8, 3)})
    save_file(layers.state_dict(), "pair.safetensors")
    model = "model: {factory: nets.py:Pair, weights: pair.safetensors}\n"
    Path("pair.yaml").write_text(f"plan: 1\n{model}inputs: [[2, 6], [1]]\nseed: 5\n{PASSES}")
    return tmp_path


def test_of_a_plan(made):
    start = datetime.now(UTC).replace(microsecond=0)
    found = compile(None, "pair.yaml").save("out")["origin"]
    assert found == json.loads(Path("out/report.json").read_text())["origin"]
    assert (found["plan"], found["weights"], found["data"], found["seed"]) == ("pair.yaml", "pair.safetensors", None, 5)
    assert found["model"] == f"{made / 'nets.py'}:Pair"
    assert found["weights_sha256"] == hashlib.sha256(Path("pair.safetensors").read_bytes()).hexdigest()
    assert start <= datetime.fromisoformat(found["date"]) <= datetime.now(UTC)
    assert {"prunec", "python", "torch", "onnxruntime"} <= found["versions"].keys()
    lock = json.loads(Path("out/plan.lock.json").read_text())
    assert "date" not in json.dumps(lock)


def test_its_lines_load_the_slim_model_and_call_it(made):
    result = compile(None, "pair.yaml")
    lines = result.save("out")["origin"]["use"]
    assert lines[0] == "from model import load"
    assert lines[2] == "outputs = model(x, scale)"
    text = "\n".join(["import torch", "x, scale = torch.ones(2, 6), torch.ones(1)", *lines, "print(outputs.tolist())"])
    done = subprocess.run([sys.executable, "-c", text], cwd="out", capture_output=True, text=True, check=True)
    expected = result.module(torch.ones(2, 6), torch.ones(1))
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected)


def test_of_a_model_that_python_handed_over(made):
    plan = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
    found = compile(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), plan, (torch.zeros(1, 4),)).report["origin"]
    assert [found[key] for key in ("plan", "model", "weights", "weights_sha256", "data")] == [None] * 5
    assert found["use"][2] == "outputs = model(input)"


def test_of_a_saved_model(made):
    compile(None, "pair.yaml").save("out")
    again = {"plan": 1, "model": {"saved": "out"}, "inputs": [[2, 6], [1]]}
    found = compile(None, again).report["origin"]
    assert found["model"] == str(made / "out")
    assert found["weights_sha256"] == hashlib.sha256(Path("out/model.safetensors").read_bytes()).hexdigest()


def test_a_region_is_used_by_lines_of_its_own(made):
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))
    plan = {"plan": 1, "region": "1", "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
    found = compile(model, plan, (torch.zeros(1, 4),)).report
    assert found["origin"]["use"] == []
    assert found["region"]["splice"] == ["from model import splice; splice(model)"]
