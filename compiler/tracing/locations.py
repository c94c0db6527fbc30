"""Where in the user's source something happened: the innermost line that is neither torch's nor ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from types import FrameType

import torch

from prunec.compiler.user_code import is_users

_KERNELS = tuple(
    os.path.join(os.path.dirname(torch.__file__), part)
    for part in (
        "_refs" + os.sep,
        "_decomp" + os.sep,
        "_prims" + os.sep,
        "_prims_common" + os.sep,
        "_meta_registrations.py",
    )
)
OUTERMOST = "run_forward"
"""The function of ours that calls the model: frames beyond it belong to whoever asked for the trace."""
ENTERS = "_call_through"
"""The function of ours that runs the forward of a module that is traced through."""


@cache
def _is_kernel(file: str) -> bool:
    return file.startswith(_KERNELS)


def in_meta_kernel(frame: FrameType | None) -> bool:
    """Whether a function is called by one of torch's own meta kernels, and not by the user's code."""
    while frame is not None and not is_users(frame.f_code.co_filename) and frame.f_code.co_name != OUTERMOST:
        if _is_kernel(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


class Scope:
    """The forward of a module that is running: its module's name, and the user's line that called the module."""

    __slots__ = ("_line", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._line: tuple[tuple[str, int] | None] | None = None
        """The line, in a tuple once it is known: all that is called in the meantime was led to by it."""

    def line(self, frame: FrameType | None, outer: Sequence[Scope]) -> tuple[str, int] | None:
        """The user's line that led to the `frame` in which the scope was entered, in the scopes `outer`."""
        if self._line is None:
            self._line = (user_line(frame, outer),)
        return self._line[0]


def user_line(frame: FrameType | None, scopes: Sequence[Scope] = ()) -> tuple[str, int] | None:
    """File and line of the user's code that led to `frame`; `None` where torch's own containers did.

    `scopes` are those that the frame is in, the innermost last; each was entered by a function called `ENTERS`.
    """
    while frame is not None and (code := frame.f_code).co_name != OUTERMOST:
        if is_users(code.co_filename):
            return code.co_filename, frame.f_lineno
        if scopes and code.co_name == ENTERS:
            return scopes[-1].line(frame.f_back, scopes[:-1])
        frame = frame.f_back
    return None
