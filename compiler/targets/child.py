"""Runs in a process of its own what may crash: a converter, or a file's first runs in a runtime.

    with workers():                                                             one process for all calls in it
        in_child("prunec.compiler.targets.ort_convert:convert", source, path)   what it gives, and what it printed
        tried(MnnSession, path, [[x], [y]])             a file that is loaded, and run on these inputs

A crash is a `TargetError`, and the next call starts another process. What is called takes and gives plain JSON values
and paths, and its module should import no torch where it needs none: then a process starts in a fifth of a second. No
connection can be opened in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Final

import numpy as np

from prunec.compiler.errors import PrunecError, TargetError, first_line

KEPT: Final = 4000
"""So many characters of the end of what a call printed are kept."""
CONNECTIONS: Final = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "urllib.")
"""How the names of Python's audit events begin that tell of connections."""


@dataclass(frozen=True)
class Answer:
    """What a call gave."""

    value: Any
    log: str
    """The end of what was printed."""


class Worker:
    """A process that does what it is told, one call after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", __name__]  # -P: no module of the folder that the user is in
        self._log = TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log.fileno()
        )

    def call(self, function: str, args: Sequence[Any], what: str) -> Answer:
        """Call `module:function`. Raises `TargetError` where that raises, or the process ends; `what` names it."""
        assert self._process.stdin is not None, "it is a pipe"
        assert self._process.stdout is not None, "it is a pipe"
        start = os.fstat(self._log.fileno()).st_size
        try:
            self._process.stdin.write(json.dumps([function, args], default=str).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        code = None if line else self._process.wait()
        log = self._printed(start)
        if code is not None:
            ends = f"crashes ({signal.Signals(-code).name})" if code < 0 else f"ends with the exit status {code}"
            raise TargetError(f"{what} {ends}", log=log)
        answer = json.loads(line)
        if "error" in answer:
            message = answer["error"] if answer["told"] else f"{what} fails: {answer['error']}"
            raise TargetError(message, hint=answer["hint"], log=answer["log"] or log)
        return Answer(answer["value"], log)

    def _printed(self, start: int) -> str:
        size = os.fstat(self._log.fileno()).st_size
        first = max(start, size - KEPT)
        return os.pread(self._log.fileno(), size - first, first).decode(errors="replace").strip()

    @property
    def lives(self) -> bool:
        """Whether the process waits for calls."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


class _Pool:
    """The worker of a `workers` block; another one after a crash."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def worker(self) -> Worker:
        if self._worker is not None and not self._worker.lives:
            self.close()
        self._worker = self._worker or Worker()
        return self._worker

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


_POOL: ContextVar[_Pool | None] = ContextVar("_POOL", default=None)


@contextmanager
def workers() -> Iterator[None]:
    """A context whose calls share a process, which ends with it: what a converter imports is imported once. Inside of
    another such context it is that one's."""
    if _POOL.get() is not None:
        yield
        return
    pool = _Pool()
    token = _POOL.set(pool)
    try:
        yield
    finally:
        _POOL.reset(token)
        pool.close()


def in_child(function: str, *args: Any, what: str = "its converter", once: bool = False) -> Answer:
    """Call `module:function` in another process; with `once`, in one that does nothing else.

    Raises `TargetError` where the function does, or raises anything else, or the process crashes.
    """
    pool = None if once else _POOL.get()
    own = _Pool() if pool is None else pool
    try:
        return own.worker().call(function, args, what)
    finally:
        if pool is None:
            own.close()


def tried(session: Callable[[Path, int], Any], path: Path, runs: Sequence[Sequence[Any]]) -> None:
    """Load the file at `path` and run it on the input arrays of each run, elsewhere. Raises `TargetError` where that
    crashes; what fails in another way will fail here as well, and is told then."""
    with TemporaryDirectory() as folder:
        name = f"{session.__module__}:{session.__qualname__}"
        in_child(f"{__name__}:try_out", name, path, saved(runs, Path(folder)), what="its runtime")


def saved(runs: Sequence[Sequence[Any]], folder: Path) -> list[Path]:
    """Files in the folder with the arrays of each run, for `arrays_in`."""
    files = [folder / f"{number}.npz" for number in range(len(runs))]
    for file, arrays in zip(files, runs, strict=True):
        np.savez(file, *arrays)
    return files


# -- the child's side --------------------------------------------------------------------------------------------------


def arrays_in(files: Sequence[str]) -> list[list[Any]]:
    """The arrays of each file that `saved` wrote."""
    found = []
    for file in files:
        with np.load(file) as held:
            found.append([held[key] for key in held.files])
    return found


def try_out(session: str, path: str, files: Sequence[str]) -> str:
    """Load a file in a session's class, and run it; what it raises."""
    try:
        opened = _named(session)(Path(path), 1)
        for arrays in arrays_in(files):
            opened.run(arrays)
    except Exception as error:  # it will be raised, and told, where the file is run in earnest
        return first_line(error)
    return ""


def main() -> None:
    """Answer calls until the pipe is closed. What anything prints goes to the log."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    sys.addaudithook(_refuse)
    for line in calls:
        function, args = json.loads(line)
        answer = json.dumps(_answer(function, args))
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(answer.encode() + b"\n")
        answers.flush()


def _answer(function: str, args: Sequence[Any]) -> dict[str, Any]:
    try:
        return {"value": _named(function)(*args)}
    except PrunecError as error:
        return {"error": error.message, "told": True, "hint": error.hint, "log": getattr(error, "log", "")}
    except Exception as error:  # converters raise errors of many unrelated kinds
        return {"error": first_line(error), "told": False, "hint": None, "log": ""}


def _named(name: str) -> Any:
    module, _, member = name.partition(":")
    return reduce(getattr, member.split("."), import_module(module))


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event.startswith(CONNECTIONS):
        raise PermissionError(f"a converter of models has no business with {event}")


if __name__ == "__main__":
    main()
