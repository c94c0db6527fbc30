"""What crashes in a process of its own is an error here, with what it printed; what merely fails there isn't."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from prunec.compiler.errors import TargetError
from prunec.compiler.targets.child import in_child, tried


class Session:
    """Does what the file at its path says."""

    def __init__(self, path, threads):
        self.does = path.read_text(encoding="utf-8")

    def run(self, inputs):
        assert [value.shape for value in inputs] == [(2, 3), (4,)]
        if self.does == "abort":
            sys.stderr.write("about to abort")
            sys.stderr.flush()
            os.abort()
        if self.does == "raise":
            raise ValueError("no such thing")


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.setattr(Session, "__module__", "test_child")
    return [[np.zeros((2, 3)), np.zeros(4)]]


def test_a_crash_is_an_error_that_names_the_signal(tmp_path, runs):
    (tmp_path / "file").write_text("abort", encoding="utf-8")
    with pytest.raises(TargetError, match=r"its runtime crashes \(SIGABRT\)") as caught:
        tried(Session, tmp_path / "file", runs)
    assert "about to abort" in caught.value.log


@pytest.mark.parametrize("does", ["run", "raise"])
def test_what_does_not_crash_may_go_on(tmp_path, runs, does):
    (tmp_path / "file").write_text(does, encoding="utf-8")
    tried(Session, tmp_path / "file", runs)


def test_a_module_is_run_as_a_program():
    assert "usage: " in in_child("json.tool", "--help", what="it")
