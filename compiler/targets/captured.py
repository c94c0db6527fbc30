"""Holds back what converters and runtimes print, so that it can be shown where they fail, and only there.

They print through Python's streams, its logging and warnings, and straight to the process's file descriptors. All of it
is caught; what other threads print meanwhile, such as a progress bar, goes where it always goes.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Final, TextIO

KEPT = 4000
"""So many characters of the end of what was printed are kept."""


class Log:
    """What was printed in a `captured` block."""

    def __init__(self) -> None:
        self.text = ""


_ONE_BY_ONE: Final = threading.RLock()
"""The descriptors are the process's: who catches them second must not find the first one's file there."""


@contextmanager
def captured() -> Iterator[Log]:
    """A context that prints nothing; what was printed stands in the log when it is left. Another thread's waits."""
    log = Log()
    with _ONE_BY_ONE, warnings.catch_warnings(action="ignore"):
        numbers = [number for number in (1, 2) if _is_open(number)]
        with tempfile.TemporaryFile() as file:
            streams = {name: getattr(sys, name) for name in ("stdout", "stderr") if getattr(sys, name) is not None}
            for stream in streams.values():
                stream.flush()
            saved = {number: os.dup(number) for number in numbers}
            beside = {n: os.fdopen(os.dup(old), "w", encoding="utf-8", errors="replace") for n, old in saved.items()}
            here = io.TextIOWrapper(
                io.FileIO(os.dup(file.fileno()), "w"), "utf-8", errors="replace", write_through=True
            )
            try:
                for number in numbers:
                    os.dup2(file.fileno(), number)
                for name, stream in streams.items():
                    number = 1 if name == "stdout" else 2
                    out = beside.get(number)
                    setattr(sys, name, _Apart(here, stream if out is None else _elsewhere(stream, number, out)))
                yield log
            finally:
                for name, stream in streams.items():
                    setattr(sys, name, stream)
                here.close()
                for number, old in saved.items():
                    os.dup2(old, number)
                    os.close(old)
                    with suppress(OSError):
                        beside[number].close()
                log.text = _end(file)


def _is_open(number: int) -> bool:
    """Whether the process has such a descriptor; a service may have none."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _elsewhere(stream: TextIO, number: int, out: TextIO) -> TextIO:
    """Where other threads print: a stream that writes to the descriptor, which is caught, has another one."""
    try:
        return out if stream.fileno() == number else stream
    except (OSError, ValueError, AttributeError):
        return stream


def _end(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - KEPT))
    return file.read().decode(errors="replace").strip()


class _Apart(io.TextIOBase):
    """Writes what this thread prints to one stream, and what the others print to another."""

    def __init__(self, here: TextIO, elsewhere: TextIO) -> None:
        self._here, self._elsewhere, self._thread = here, elsewhere, threading.get_ident()

    def _stream(self) -> TextIO:
        return self._here if threading.get_ident() == self._thread else self._elsewhere

    def write(self, text: str) -> int:
        return self._stream().write(text)

    def flush(self) -> None:
        self._stream().flush()

    def fileno(self) -> int:
        return self._stream().fileno()

    def isatty(self) -> bool:
        return self._stream().isatty()

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self._elsewhere.encoding
