"""How far a command is, on standard error: bars on a terminal, elsewhere a line for each stage.

      0.0 s  trace
      1.2 s  pass 1 of 3: score
     11.4 s  calibrate: 40 of 100          what takes long tells where it is, now and then
     13.0 s  pass 2 of 3: select

Standard output is left to the result: what the model's or the data's own code prints meanwhile goes to standard error.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from typing import Final, Protocol, TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prunec.compiler.errors import PlanError
from prunec.compiler.report.console import console

PAUSE: Final = 10.0
"""After so many seconds of silence a stage tells where it is."""

AGAIN: Final = 1.0
"""A round isn't told within so many seconds of the last line, since rounds go by fast; nor is within `PAUSE` seconds a
stage that was told before, such as what each round does."""

HELD: Final = 3.0
"""For so many seconds lines are held back: what fails at once says its error alone."""


class Told(Protocol):
    """What work reports to."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of a stage are finished; `note` says how it stands."""


class Detail(Enum):
    """How much is told: nothing, each stage, or each step of each stage."""

    QUIET = 0
    STAGES = 1
    STEPS = 2

    @staticmethod
    def of(quiet: bool, verbose: bool) -> Detail:
        """What the options of a command ask for. Raises `PlanError` where they contradict each other."""
        if quiet and verbose:
            raise PlanError("--quiet and --verbose contradict each other", hint="leave out one of them")
        return Detail.QUIET if quiet else Detail.STEPS if verbose else Detail.STAGES


@contextmanager
def watched(detail: Detail = Detail.STAGES) -> Iterator[Told]:
    """What the work in the block reports to. Bars vanish with the block; each step of `STEPS` is a line everywhere."""
    out = console(stderr=True)
    with apart():
        if detail is Detail.QUIET:
            yield _silent
        elif detail is Detail.STAGES and out.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            with Progress(*columns, *times, console=out, transient=True) as drawn:
                yield Bars(drawn)
        else:
            lines = Lines(sys.stderr, detail)
            yield lines
            lines.release()


def _silent(what: str, done: int, total: int, note: str = "") -> None:
    """Say nothing."""


@contextmanager
def apart() -> Iterator[None]:
    """While the block runs, what is printed goes to standard error: it is no part of a result."""
    with redirect_stdout(sys.stderr):
        yield


class Bars:
    """Draws a bar for each kind of work that isn't finished."""

    def __init__(self, drawn: Progress) -> None:
        self._drawn = drawn
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `what` are finished."""
        if what not in self._tasks:
            self._tasks[what] = self._drawn.add_task(what, total=total, note=note)
        self._drawn.update(self._tasks[what], completed=done, total=total, visible=done < total, note=note)


_NUMBER: Final = re.compile("[0-9]+")


class Lines:
    """Writes a line when a stage begins, and one now and then while it goes on; with `STEPS`, one for each step."""

    def __init__(self, out: TextIO, detail: Detail, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._steps, self._clock = out, detail is Detail.STEPS, clock
        self._start = self._last = clock()
        self._stage = ""
        self._told: set[str] = set()
        self._held: list[str] | None = None if self._steps else []

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `what` are finished."""
        now = self._clock()
        note = f"  {note}" if note else ""
        begins = what != self._stage and done < total
        if begins:
            self._stage, kind = what, _NUMBER.sub("#", what)
            rest = 0.0 if self._steps or kind not in self._told else PAUSE if kind == what else AGAIN
            begins = now - self._last >= rest
            self._told.add(kind)
        if begins and not done:
            self._write(now, what)
        elif begins or self._steps or (now - self._last >= PAUSE and done < total):
            self._write(now, f"{what}: {done} of {total}{note}")

    def _write(self, now: float, text: str) -> None:
        self._last = now
        line = f"{now - self._start:7.1f} s  {text}\n"
        if self._held is not None and now - self._start < HELD:
            self._held.append(line)
            return
        self.release()
        self._out.write(line)
        self._out.flush()

    def release(self) -> None:
        """Write what was held back."""
        self._out.write("".join(self._held or ()))
        self._out.flush()
        self._held = None
