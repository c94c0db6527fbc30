"""Processes that are started for a function: what they give, what they raise, and how they end."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from several import failing, gathered

from prunec.compiler.errors import DataError, PassError
from prunec.passes.training import workers


def test_the_first_process_gives_the_result_and_reports():
    said: list[Any] = []
    given, place = workers.run(gathered, {"a": 1}, 2, lambda *report: said.append(report))
    assert (given, place) == ({"a": 1}, ["0", "2"])
    assert said == [("gather", 1, 1, "there")]


def test_an_error_of_ours_is_raised_as_it_was_and_the_others_are_ended():
    with pytest.raises(DataError, match="the data are bad") as error:
        workers.run(failing, "data", 2)
    assert (error.value.at.file, error.value.at.line, error.value.hint) == ("plan.yaml", 3, "mend them")
    assert not multiprocessing.active_children()


def test_a_bug_is_told_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"in one of 2 processes(.|\n)*line \d+, in failing(.|\n)*a bug"):
        workers.run(failing, "bug", 2)


def test_a_process_that_is_killed_is_named_with_the_signal():
    with pytest.raises(PassError, match="process 2 of 2 that train was ended by SIGKILL"):
        workers.run(failing, "kill", 2)


def test_no_process_that_trains_starts_others(monkeypatch):
    monkeypatch.setenv("PRUNEC_WORKER", "1")
    with pytest.raises(PassError, match="would start others") as error:
        workers.run(gathered, None, 2)
    assert "__main__" in str(error.value.hint)
