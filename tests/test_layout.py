"""The house: a folder for each phase, imports that go down only, and a test for every module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("compiler", "passes", "models")


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the three folders in a copy, with the rules of `pyproject.toml`."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder / "pyproject.toml")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, tmp_path / "prunec" / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down_only(copy):
    done = linted(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


ARROWS = {
    "up": ("verify/masks.py", "from prunec.compiler.groups.analysis import analyse"),
    "up, for types alone": (
        "ir/graph.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from prunec.compiler.driver.lock import make_lock",
    ),
    "up, in a function": ("text/literals.py", "def f():\n    from prunec.compiler.emit.python import emit_source"),
    "verifier to analysis": ("verify/verify.py", "from prunec.compiler.labels.flow import Flow"),
    "analysis to verifier": ("ops/conv.py", "from prunec.compiler.verify.masks import Marked"),
    "a circle in a phase": ("ir/ops.py", "from prunec.compiler.ir.aliasing import mutates"),
    "to a pass": ("driver/compile.py", "from prunec.passes.score import Score"),
}


@pytest.mark.parametrize("name", ARROWS)
def test_an_arrow_too_many_is_found(copy, name):
    file, line = ARROWS[name]
    path = copy / "prunec/compiler" / file
    path.write_text(path.read_text() + f"\n{line}\n")
    done = linted(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert " BROKEN" in done.stdout
    assert f".{Path(file).stem} -> " in done.stdout
