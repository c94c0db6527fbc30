"""What a forward is told where it asks whether values that aren't known are true, and whether it stops at once."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType
from typing import Final

import torch

from prunec.compiler.user_code import is_users

_CHECKS: Final = frozenset(
    check.__code__
    for check in (
        *(torch._assert, torch._check, torch._check_with, torch._check_index, torch._check_value, torch._check_type),
        torch._check_not_implemented,
    )
)
"""The code of torch's functions that raise where a condition doesn't hold."""


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
        """Whether an exception comes of a `raise`, `assert` or check of torch in the code that asked last, or that
        called it.

        Such code checks values, and the answer led to nothing else. What fails elsewhere, in torch or in a library, may
        fail since values are missing.
        """
        trace = error.__traceback__ if error else None
        while trace is not None and trace.tb_next is not None and trace.tb_next.tb_frame.f_code not in _CHECKS:
            trace = trace.tb_next
        if trace is None or trace.tb_frame.f_code not in self._asking:
            return False
        if trace.tb_next is not None:
            return True
        return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _users_code(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            yield frame.f_code
        frame = frame.f_back
