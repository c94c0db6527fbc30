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
from typing import IO, Any, TextIO

KEPT = 4000
"""So many characters of the end of what was printed are kept."""


class Log:
    """What was printed in a `captured` block."""

    def __init__(self) -> None:
        self.text = ""


@contextmanager
def captured() -> Iterator[Log]:
    """A context that prints nothing; what was printed stands in the log when it is left."""
    log = Log()
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(action="ignore"):
        streams = sys.stdout, sys.stderr
        for stream in streams:
            stream.flush()
        saved = [os.dup(number) for number in (1, 2)]
        beside = [os.fdopen(os.dup(number), "w", encoding="utf-8", errors="replace") for number in saved]
        here = io.TextIOWrapper(io.FileIO(os.dup(file.fileno()), "w"), "utf-8", errors="replace", write_through=True)
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (
                _Apart(here, _elsewhere(old, number, out))
                for number, (old, out) in enumerate(zip(streams, beside, strict=True), 1)
            )
            yield log
        finally:
            sys.stdout, sys.stderr = streams
            here.close()
            for number, old, out in zip((1, 2), saved, beside, strict=True):
                os.dup2(old, number)
                os.close(old)
                with suppress(OSError):
                    out.close()
            log.text = _end(file)


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
