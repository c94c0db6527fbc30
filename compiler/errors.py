"""What can go wrong, sorted by who can mend it.

Every error carries a message and, where there is one, a place in a file (`Span`) and a hint. The command line prints

    plan.yaml:4:5: unknown key 'ration'
        ration: 0.5
        ^^^^^^
    hint: did you mean 'ratio'?

and exits with the error's `exit_code`: 1 where the plan or the model is at fault, 2 where the compiler is.
"""

from __future__ import annotations

import difflib
import linecache
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

LONGEST_LINE: Final = 1000
"""A longer line isn't shown."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one line of a source file; `line` and `column` count from 1."""

    file: str
    line: int
    column: int
    length: int = 1
    text: str = ""

    @classmethod
    def of_line(cls, at: tuple[str, int] | None) -> Span | None:
        """A whole line, of a file and a number."""
        if at is None:
            return None
        text = linecache.getline(*at).rstrip("\n")
        return cls(*at, len(text) - len(text.lstrip()) + 1, max(len(text.strip()), 1), text)

    def caret(self) -> str:
        """The line with carets under the stretch, indented by four; an empty string where the text isn't known."""
        if not self.text.strip() or len(self.text) > LONGEST_LINE:
            return ""
        stripped = self.text.lstrip()
        offset = self.column - 1 - (len(self.text) - len(stripped))
        return f"    {stripped.rstrip()}\n    {' ' * max(offset, 0)}{'^' * max(self.length, 1)}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class PrunecError(Exception):
    """The root of every error that `prunec` raises on purpose. `keys` lead to what is at fault: in a plan, or in its
    pass's options."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, keys: tuple[str | int, ...] = (), at: Span | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.keys = keys
        self.at = at
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"{self.at}: {self.message}" if self.at else self.message]
        if self.at and self.at.caret():
            lines.append(self.at.caret())
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


ALONE: Final = "of one process alone"
"""The note of an error that one process has, of several that do the same."""


class PlanError(PrunecError):
    """The plan is at fault: its author can mend it."""


class ModelError(PrunecError):
    """The model, its weights or its inputs are at fault, or can't be taken as they are."""


class DataError(PrunecError):
    """The data that the plan names can't be read or don't fit."""


class OutputError(PrunecError):
    """The artifacts can't be written where they were asked for."""


class TargetError(PrunecError):
    """A runtime isn't installed, can't take the model, or computes something else. `log` is what its tools printed."""

    def __init__(self, message: str, *, at: Span | None = None, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, at=at, hint=hint)
        self.log = log


class TextError(PrunecError):
    """A program's text doesn't parse."""


class PassError(PrunecError):
    """A pass can't do what its options ask of this program. `keys` lead from its options to the one at fault."""


class VerifyError(PrunecError):
    """A rewrite changed the function: a bug in the compiler or in a pass, never the user's fault."""

    exit_code: ClassVar[int] = 2


def first_line(error: BaseException) -> str:
    """The innermost cause of a foreign error in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    # a KeyError's text is its key as code: one line, however many the key has
    text = error.args[0] if isinstance(error, KeyError) and "\n" in str(error.args[0]) else error
    lines = str(text).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


LONGEST_NAME: Final = 200
"""A longer name resembles none, and comparing it takes long."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """A hint that names the valid spelling nearest to `name`, or lists the valid ones where there are few."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6) if len(name) <= LONGEST_NAME else []
    if close:
        return f"did you mean '{close[0]}'?"
    if names and len(names) <= 12:
        return "valid: " + ", ".join(names)
    return None
