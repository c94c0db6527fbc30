"""What the meters of all runtimes share: how often something is run, which of its times count, and one whole run.

    for _ in turns(0.5): ...                  half a second of runs, but a few at least, and not all too many
    times = Times(); times.add(key, seconds)  the times of each node; times.low() has one for each
    origins = Origins(); origins.name(...)    which input a node of a file hangs on
    run = loaded(Ncnn(), program)             a program, converted and loaded: run() runs it once
    seconds_of([run])                         seconds of one run

What other programs do to a run only ever makes it slower, so of many times the lower ones count. A whole run is timed
by the seconds of the process, which others don't lengthen: with one thread nothing else runs in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Final, Generic, TypeVar
from weakref import finalize

import numpy as np

from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Array, Target
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.interleaved import Run, lower_quartiles
from prunec.compiler.targets.processor import processor

FEWEST: Final = 4
"""Runs, however long one takes. The first one, which allocates, doesn't count."""
MOST: Final = 100
"""Runs, however short they are."""
LOW: Final = 0.1
"""Of many times, the quantile that counts."""
ROUNDED: Final = 0.5e-6
"""Seconds: times that a runtime tells in whole microseconds, rounded down, were so much longer in the mean."""

Made = TypeVar("Made")


def turns(seconds: float) -> Iterator[int]:
    """Numbers from 0 on, for about so many seconds."""
    start = time.perf_counter()
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() - start > seconds:
            return
        yield number


class Times:
    """The times of many runs, by what they are of."""

    def __init__(self) -> None:
        self._found: dict[Hashable, list[float]] = {}

    def add(self, key: Hashable, seconds: float) -> None:
        """Note a time."""
        self._found.setdefault(key, []).append(seconds)

    def low(self) -> dict[Any, float]:
        """The time that counts, of each."""
        return {key: float(np.quantile(found[1:] or found, LOW)) for key, found in self._found.items()}

    def least(self) -> dict[Any, float]:
        """The least time of each."""
        return {key: min(found) for key, found in self._found.items()}


class Origins:
    """Which inputs of a file each of its values hangs on, told node by node in the order in which they run."""

    def __init__(self) -> None:
        self._found: dict[Hashable, set[str]] = {}

    def starts(self, value: Hashable, name: str) -> None:
        """A value is the input of that name."""
        self._found[value] = {name}

    def name(self, own: str, reads: Iterable[Hashable], writes: Iterable[Hashable]) -> str:
        """What a node is called: by the input that it hangs on, where that is one alone; else by its own name."""
        origin = set[str]().union(*(self._found.get(value, set()) for value in reads))
        self._found.update(dict.fromkeys(writes, origin))
        return next(iter(origin)) if len(origin) == 1 else own


def fed(program: Program) -> list[Array]:
    """The program's example inputs as arrays."""
    return [value.detach().contiguous().numpy(force=True) for value in tensors_in(program.inputs)]


class Last(Generic[Made]):
    """What was made of the program that was asked for last: a network is profiled several times in a row, and some
    converters take seconds."""

    def __init__(self) -> None:
        self._of: Program | None = None
        self._made: Made

    def of(self, program: Program, make: Callable[[], Made]) -> Made:
        """What `make` makes of this program, or has made of it."""
        if self._of is not program:
            self._made, self._of = make(), program
        return self._made


class OneThread:
    """What the meters of targets share: their names, and a whole run, on this machine's CPU with one thread."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.name = f"{target.describe()}, {processor()}, 1 thread"
        self._last = Last[Any]()

    def loaded(self, program: Program) -> Run:
        """The session that parity is tested by."""
        return loaded(self.target, program)


def converted(target: Target, program: Program, folder: Path) -> Path:
    """The program's files, in a folder."""
    path = folder / f"model{target.suffixes[0]}"
    target.convert(program, path, target.Options())
    return path


def loaded(target: Target, program: Program) -> Run:
    """The program's files in the runtime, with one thread, as a call that runs them once. They stay while it is held:
    some runtimes read them when they need them."""
    folder = Path(mkdtemp())
    with captured():
        opened = target.load(converted(target, program, folder), 1)
    run = partial(opened.run, fed(program))
    finalize(run, rmtree, folder, ignore_errors=True)
    return run


def seconds_of(runs: Sequence[Run], seconds: float = 1.0) -> list[float]:
    """The seconds of each of these calls, which take turns, in processor time: the lower quartile counts."""
    return lower_quartiles(runs, seconds, time.process_time)
