"""Each test keeps its measured times in a folder of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEC_CACHE_DIR", str(tmp_path / "times"))
    return tmp_path / "times" / "latency"
