"""Where in the user's source something happened: the innermost line that is neither torch's nor ours."""

from __future__ import annotations

import inspect
import linecache
import os
import traceback
from functools import cache
from types import FrameType, TracebackType

import torch

from prunec.compiler import errors
from prunec.compiler.errors import Span

_FOREIGN = (
    *(os.path.dirname(inspect.getfile(module)) + os.sep for module in (torch, errors)),  # `errors` is at our root
    *("<frozen ", "<eval_with_key>"),
)
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
def is_users(file: str) -> bool:
    """Whether a source file is the user's (or a library's that models come from), rather than torch's or ours."""
    return not file.startswith(_FOREIGN)


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


def user_span(trace: TracebackType | None) -> Span | None:
    """The user's innermost line in a traceback."""
    frames = [frame for frame in traceback.extract_tb(trace) if is_users(frame.filename)]
    if not frames:
        return None
    last = frames[-1]
    start, end = last.colno or 0, last.end_colno or 0
    length = end - start if last.lineno == last.end_lineno else 1
    text = linecache.getline(last.filename, last.lineno or 1).rstrip("\n")
    return Span(last.filename, last.lineno or 1, start + 1, max(length, 1), text)


def line_span(at: tuple[str, int] | None) -> Span | None:
    """A whole line as a span."""
    if at is None:
        return None
    text = linecache.getline(*at).rstrip("\n")
    return Span(*at, len(text) - len(text.lstrip()) + 1, max(len(text.strip()), 1), text)
