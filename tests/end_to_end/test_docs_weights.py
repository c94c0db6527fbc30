"""docs/weights.md tells the truth: its plans load, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

from prunec.compiler.plan.plan import Plan

PAGE = (Path(__file__).parents[2] / "docs/weights.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_plans_load(tmp_path):
    for name in ("nets.py", "small.safetensors", "run.ckpt"):
        (tmp_path / name).touch()
    plans = [Plan.from_dict({"plan": 1, **yaml.safe_load(text)}, tmp_path) for text in blocks("yaml")]
    assert [plan.model and plan.model.weights and plan.model.weights.key for plan in plans] == [None, "ema", None]
    assert plans[2].allow_nonfinite == ("head.scale", "mask_*")


def test_the_python_runs():
    lock = {"removed": {"conv.weight": {"0": [1, 4, 5, 6], "1": [1, 4, 5, 6]}}, "grouped": {"conv.weight": 8}}
    original = torch.rand(8, 1, 3, 3)
    (text,) = blocks("python")
    space = {"result": SimpleNamespace(lock=lock), "original": original}
    exec(text, space)
    assert torch.equal(space["left"], original[[0, 2, 3, 7]])
