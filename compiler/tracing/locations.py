"""Where in the user's source something happened: the innermost line that is neither torch's nor ours."""

from __future__ import annotations

import os
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


def user_line(frame: FrameType | None) -> tuple[str, int] | None:
    """File and line of the user's code that led to `frame`; `None` where torch's own containers did."""
    while frame is not None and frame.f_code.co_name != OUTERMOST:
        if is_users(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None
