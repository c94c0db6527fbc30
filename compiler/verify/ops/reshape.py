"""Marks of operations that only move data: the operation itself is run on the marks.

x               data [2, 4, 8, 8]    marks [1, 4, 1, 1]    K R K K
x.flatten(1)    data [2, 256]        marks [1, 256]        64 K, 64 R, 128 K
x[:, 1:3]       data [2, 2, 8, 8]    marks [1, 2, 1, 1]    R K
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from prunec.compiler.ir.ops import words
from prunec.compiler.verify.masks import (
    Call,
    Marked,
    collapse,
    full_marks,
    leaves_of,
    linked,
    mark,
    mark_all,
    marks_of,
    plain,
    small_marks,
)
from prunec.compiler.verify.table import row


@row(
    *words("""
        reshape view flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t adjoint roll flip
        view_as reshape_as squeeze unsqueeze getattr ravel rot90 meshgrid diagonal
    """)
)
def moved(call: Call) -> Any:
    """`view`, `cat`, `getitem` and their like. Other tensors among the arguments are indices: they may lose nothing."""
    data = call.plain()
    if call.name == "meshgrid" and isinstance(call.args[0], Tensor | Marked):
        call = replace(call, args=(call.args,))  # `meshgrid(x, y)` is `meshgrid((x, y))`
    if call.name == "getattr" and call.args[1] in ("real", "imag"):
        return mark(data, marks_of(call.args[0]))
    source, rest = call.args[0], (call.args[1:], dict(call.kwargs))
    if any(isinstance(x, Marked) and x.has_removed for x in leaves_of(rest)) and call.name[-3:] != "_as":
        raise call.error("removed channels are used as an index")
    if not any(isinstance(x, Tensor) for x in leaves_of(data)):
        return data
    run = partial(_on_marks, call.run, plain(rest[0]), plain(rest[1]))
    if call.name in _VIEWS:
        cheap = partial(_on_marks, torch.Tensor.reshape, *run.args[1:]) if call.name == "view" else run
        return linked(mark_all(data, cheap(small_marks(source))), source, run)
    return linked(mark_all(data, run(full_marks(source))), source, run)


def _on_marks(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], marks: Tensor) -> Any:
    return run(marks, *args, **kwargs)


@row("view_as_complex", "view_as_real")
def _complex(call: Call) -> Any:
    """Two real numbers as one complex number, and back: both parts are kept or both are removed."""
    marks = marks_of(call.args[0])
    if call.name == "view_as_real":
        return mark(call.plain(), marks[..., None])
    return mark(call.plain(), collapse(call, marks, [marks.ndim - 1], "half of a number is removed")[..., 0])


_VIEWS: Final = frozenset(
    words("""
        reshape view flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t cat stack chunk split
        tensor_split unbind getitem select narrow roll flip expand squeeze unsqueeze
    """)
)
"""Operations that take any dtype and strides: run on `small_marks`, they need no memory of the data's size."""
