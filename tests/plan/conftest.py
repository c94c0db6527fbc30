"""Plans are loaded from the current folder, and know three passes that do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_passes import installed

from prunec.compiler import plugins
from prunec.compiler.plan.plan import Plan


@pytest.fixture(autouse=True)
def install(monkeypatch):
    yield installed(monkeypatch)
    plugins.refresh()


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a plan from text, as the file `plan.yaml` of the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str, file: str = "plan.yaml") -> Plan:
        Path(file).write_text(text, encoding="utf-8")
        return Plan.load(file, overrides)

    return load


@pytest.fixture
def files(tmp_path):
    """What the full plan names."""
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "sets.py").touch()
    return tmp_path
