"""The README tells the truth: what it shows of files and output is what they are."""

from __future__ import annotations

import re
import tomllib
from functools import partial
from pathlib import Path

import torch
import yaml
from pages import block_of

from prunec.compiler.driver.compile import compile, load_program
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import PASSES
from prunec.compiler.plan.plan import Plan

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


block = partial(block_of, "README.md")


def test_the_plan_is_the_file():
    assert block("plan") == (ROOT / "plans/digits.yaml").read_text()


def test_the_plan_that_trains_is_the_file():
    assert block("train").removeprefix("passes:\n") in (ROOT / "plans/digits_train.yaml").read_text()


def test_the_data_are_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data.py").write_text(block("data"))
    made = torch.randn(12, 1, 8, 8), torch.arange(12) % 10
    torch.save({"train": made, "test": made}, "pictures.pt")
    (line,) = re.findall(r"a plan says `(data: .*)`", README)
    plan = {"plan": 1, "model": "prunec.models.digits:cnn", "inputs": [[1, 1, 8, 8]], **yaml.safe_load(line)}
    report = compile(None, Plan.from_dict(plan, tmp_path)).report
    assert report["evaluation"] == {"split": "test", "samples": 12}


def test_the_case_is_in_the_case_files():
    assert block("case").strip() in (ROOT / "tests/passes/cases/shrink.case").read_text()


def test_the_pass_is_the_third_partys():
    source = (ROOT / "tests/thirdparty/acme_passes.py").read_text()
    assert block("pass").strip() in source


def test_the_operation_is_the_third_partys():
    assert block("op").strip() in (ROOT / "tests/thirdparty/acme_ops.py").read_text()


def test_the_picture_of_the_phases_is_the_rule_of_imports():
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (rule["layers"] for rule in rules if rule["type"] == "layers")
    picture = re.search(r"```text\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    assert picture
    shown = re.findall(r"^   \| (\w+(?:, \w+)*)", picture[1], re.MULTILINE)
    phases = [phase for layer in layers for phase in re.findall(r"\w+", layer)]
    assert [phase for line in shown for phase in line.split(", ")] == phases


def test_the_files_that_are_named_are_there():
    """In the README and in `docs/`: a path between backticks is a file or folder, from the root or in `compiler/`."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", page.read_text()):
            homes = (ROOT, ROOT / "compiler", *(ROOT / "compiler").iterdir(), ROOT / "passes/selection")
            made = name in ("out/", "model.py")
            assert made or any((home / name).exists() for home in homes), f"{page.name}: {name}"


def test_the_output_names_every_pass_of_the_plan():
    entries = yaml.safe_load(block("plan"))["passes"]
    passes = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    assert all(name in block("output") for name in passes)


def test_the_python_example_is_a_plan():
    Plan.from_dict({"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]})
    assert '{"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}' in README


def test_the_pass_table_is_complete():
    rows = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    own = [name for name, cls in PASSES.all().items() if cls.__module__.startswith("prunec.")]
    assert sorted(rows) == sorted(own)


def test_the_two_commands_are_one_line_each():
    assert block("main").count("\n") == block("test").count("\n") == 1


def test_the_ways_to_select_are_options():
    entries = yaml.safe_load(block("select"))
    assert len(entries) > 5
    for entry in entries:
        Plan.from_dict({"plan": 1, "passes": [{"score": "l1"}, entry, "shrink"]})


def test_the_curves_are_of_the_embedded_network():
    traced = load_program(Plan.load(ROOT / "plans/digits.yaml"))
    free = {group.name for group in analyse(traced).groups.values() if group.free.any()}
    assert set(re.findall(r"^(\S+) +\d+ +[\d.]+ pt", block("sensitivity"), re.MULTILINE)) == free
