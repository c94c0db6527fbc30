"""How far a command is: bars that vanish when full, lines where nobody watches, nothing when it is to be quiet."""

from __future__ import annotations

import io
import sys

import pytest

from prunec.compiler.errors import PlanError
from prunec.compiler.report.progress import HELD, PAUSE, Bars, Detail, Lines, apart, watched


class Drawn:
    """A display that takes down what it is told."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int]] = []
        self.updates: list[dict[str, object]] = []

    def add_task(self, what: str, total: int, **fields: object) -> int:
        self.tasks.append((what, total))
        return len(self.tasks) - 1

    def update(self, task: int, **changes: object) -> None:
        self.updates.append({"task": task, **changes})


@pytest.mark.parametrize("total", [2, 5])
def test_each_kind_of_work_has_one_bar_until_it_is_done(total):
    drawn = Drawn()
    bars = Bars(drawn)
    bars("score", 0, total)
    bars("verify", 0, 1)
    bars("score", total, total)
    assert drawn.tasks == [("score", total), ("verify", 1)]
    assert [(each["task"], each["completed"], each["visible"]) for each in drawn.updates] == [
        (0, 0, True),
        (1, 0, True),
        (0, total, False),
    ]


class Clock:
    """A clock that goes on by so many seconds at each look."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.seconds.pop(0) if self.seconds else 0.0
        return self.now


def lines(detail: Detail, calls: list[tuple[str, int, int]], *seconds: float) -> list[str]:
    out = io.StringIO()
    told = Lines(out, detail, Clock(0.0, *seconds))
    for call in calls:
        told(*call)
    told.release()
    return out.getvalue().splitlines()


WORK = [("trace", 0, 1), ("trace", 1, 1), ("pass 1 of 2: score", 0, 1), ("calibrate", 1, 3), ("calibrate", 2, 3)]


def test_each_stage_is_a_line_with_the_time_at_which_it_began():
    assert lines(Detail.STAGES, [*WORK, ("calibrate", 3, 3), ("pass 1 of 2: score", 1, 1)], 0, 1.25) == [
        "    0.0 s  trace",
        "    1.2 s  pass 1 of 2: score",
        "    1.2 s  calibrate: 1 of 3",
    ]


def test_a_stage_that_is_done_again_is_told_once():
    again = [("accuracy", 0, 2), ("accuracy", 1, 2), ("accuracy", 2, 2)] * 2
    assert lines(Detail.STAGES, again) == ["    0.0 s  accuracy"]


ROUNDS = [
    (what, done, 2)
    for number in range(1, 4)
    for what, done in ((f"round {number} of 3", 0), ("accuracy", 0), (f"round {number} of 3", 1), ("accuracy", 2))
]


def test_rounds_that_go_by_fast_are_told_now_and_then():
    assert lines(Detail.STAGES, ROUNDS) == ["    0.0 s  round 1 of 3", "    0.0 s  accuracy"]
    slow = lines(Detail.STAGES, ROUNDS, *(0.3 for _ in ROUNDS))
    assert [line[11:] for line in slow] == ["round 1 of 3", "accuracy", "round 2 of 3: 1 of 2", "round 3 of 3: 1 of 2"]
    assert len(lines(Detail.STEPS, ROUNDS)) == len(ROUNDS)


def test_what_takes_long_tells_where_it_is():
    calls = [("accuracy", done, 5) for done in range(6)]
    assert lines(Detail.STAGES, calls, 0, 4, 4, 4, 4) == ["    0.0 s  accuracy", f"{12:7.1f} s  accuracy: 3 of 5"]
    assert PAUSE == 10


def test_every_step_where_that_is_asked_for():
    assert lines(Detail.STEPS, WORK)[-3:] == [
        "    0.0 s  pass 1 of 2: score",
        "    0.0 s  calibrate: 1 of 3",
        "    0.0 s  calibrate: 2 of 3",
    ]


@pytest.mark.parametrize(
    ("detail", "told"),
    [(Detail.QUIET, []), (Detail.STAGES, ["trace"]), (Detail.STEPS, ["trace", "trace: 1 of 1"])],
)
def test_progress_goes_to_standard_error(capsys, monkeypatch, detail, told):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with watched(detail) as progress:
        progress("trace", 0, 1)
        sys.stdout.write("loading weights\n")
        progress("trace", 1, 1)
    sys.stdout.write("the result\n")
    out, err = capsys.readouterr()
    assert out == "the result\n"
    lines = [line.partition(" s  ")[2] or line for line in err.splitlines()]
    assert sorted(lines) == sorted([*told, "loading weights"])


def test_what_is_printed_meanwhile_is_no_part_of_a_result(capsys):
    def fails():
        with apart():
            sys.stdout.write("noise\n")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    sys.stdout.write("result\n")
    assert capsys.readouterr() == ("result\n", "noise\n")


def test_what_fails_at_once_says_its_error_alone(capsys, monkeypatch):
    def fails(progress):
        progress("trace", 0, 1)
        raise KeyError

    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with pytest.raises(KeyError), watched() as progress:
        fails(progress)
    assert capsys.readouterr().err == ""


def test_lines_are_held_back_for_a_moment():
    out = io.StringIO()
    told = Lines(out, Detail.STAGES, Clock(0.0, 0.5, HELD))
    told("trace", 0, 1)
    assert out.getvalue() == ""
    told("pass 1 of 1: shrink", 0, 1)
    assert out.getvalue() == "    0.5 s  trace\n    3.5 s  pass 1 of 1: shrink\n"


def test_two_options_that_contradict_each_other():
    assert Detail.of(quiet=False, verbose=False) is Detail.STAGES
    assert Detail.of(quiet=True, verbose=False) is Detail.QUIET
    assert Detail.of(quiet=False, verbose=True) is Detail.STEPS
    with pytest.raises(PlanError, match="contradict each other"):
        Detail.of(quiet=True, verbose=True)
