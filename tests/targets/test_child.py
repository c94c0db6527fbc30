"""What crashes in a process of its own is an error here, with what it printed; what merely fails there isn't."""

from __future__ import annotations

import os
import signal
import socket
import sys

import numpy as np
import pytest

from prunec.compiler.errors import TargetError
from prunec.compiler.targets.child import in_child, tried, workers


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


def told(text):
    sys.stderr.write(f"told {text}")
    return {"pid": os.getpid()}


def refusing():
    raise TargetError("no form of it", hint="leave it out", log="its own words")


def failing():
    raise ValueError("no such thing\nand more")


def ending():
    raise SystemExit(3)


def aborting():
    sys.stderr.write("about to abort")
    sys.stderr.flush()
    os.abort()


def connecting():
    socket.create_connection(("192.0.2.1", 80), timeout=1)


def reading_and_printing():
    sys.stdout.write("an answer?")
    return sys.stdin.read()


def test_what_it_gives_and_what_it_printed_come_back(runs):
    found = in_child("test_child:told", "something")
    assert found.value["pid"] != os.getpid()
    assert found.log == "told something"
    assert in_child("test_child:reading_and_printing").value == ""


def test_what_is_raised_there_is_told_here(runs):
    with pytest.raises(TargetError, match=r"^no form of it") as caught:
        in_child("test_child:refusing")
    assert (caught.value.hint, caught.value.log) == ("leave it out", "its own words")
    with pytest.raises(TargetError, match=r"^its converter fails: ValueError: no such thing$"):
        in_child("test_child:failing")
    with pytest.raises(TargetError, match=r"business with socket"):
        in_child("test_child:connecting")


def test_a_process_that_ends_is_told(runs):
    with pytest.raises(TargetError, match=r"^it ends with the exit status 3$"):
        in_child("test_child:ending", what="it")


def test_calls_share_a_process_until_it_crashes(runs):
    with workers():
        first, second = (in_child("test_child:told", text) for text in "ab")
        assert first.value == second.value
        assert second.log == "told b"
        assert in_child("test_child:told", "c", once=True).value != first.value
        with pytest.raises(TargetError, match=r"its converter crashes \(SIGABRT\)") as caught:
            in_child("test_child:aborting")
        assert caught.value.log == "about to abort"
        other = in_child("test_child:told", "d").value
        assert other != first.value
    with pytest.raises(ProcessLookupError):
        os.kill(other["pid"], 0)


def test_where_a_process_was_killed_between_calls_another_one_does_it(runs):
    with workers():
        pid = in_child("test_child:told", "a").value["pid"]
        os.kill(pid, signal.SIGKILL)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) is None:
            pass
        assert in_child("test_child:told", "b").value["pid"] != pid
