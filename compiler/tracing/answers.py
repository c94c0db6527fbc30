"""What a forward is told where it asks whether values that aren't known are true, and whether it stops at once."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType

from prunec.compiler.user_code import is_users


class Answers:
    """Answers to the questions of one run: those that are planned, and False when these are used up."""

    def __init__(self, planned: Sequence[bool] = ()) -> None:
        self.planned = tuple(planned)
        self.given: list[bool] = []
        self._asking: frozenset[CodeType] = frozenset()

    def next(self) -> bool:
        """The answer to the next question."""
        done = len(self.given)
        self.given.append(self.planned[done] if done < len(self.planned) else False)
        self._asking = frozenset(_users_code(sys._getframe()))
        return self.given[-1]

    def stops(self, error: BaseException | None) -> bool:
        """Whether an exception comes of a `raise` or `assert` in the code that asked last, or that called it.

        Such code checks values, and the answer led to nothing else. What fails elsewhere, in torch or in a library, may
        fail since values are missing.
        """
        trace = error.__traceback__ if error else None
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is None or trace.tb_frame.f_code not in self._asking:
            return False
        return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _users_code(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            yield frame.f_code
        frame = frame.f_back
