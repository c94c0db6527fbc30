"""Recurrent layers: rows and columns of a state go in every tensor."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec.compiler.ir.modules import clone_module
from prunec.compiler.verify.masks import (
    FREE,
    KEPT,
    REMOVED,
    Call,
    Marked,
    Value,
    collapse,
    full_marks,
    mark,
    marks_of,
    plain,
    zeroed,
)
from prunec.compiler.verify.table import row


def _gone(value: Value, dim: int) -> Tensor:
    """Which positions of a matrix's (a vector's) dimension are removed in all of it."""
    marks: Tensor = full_marks(value)
    return marks == REMOVED if marks.ndim == 1 else (marks == REMOVED).all(1 - dim)


def _last(call: Call, value: Value) -> Tensor:
    """Which positions of a value's last dimension are removed."""
    marks = collapse(call, marks_of(value), range(marks_of(value).ndim - 1), "a step lost some of its elements")
    return (marks == REMOVED).flatten().expand(plain(value).shape[-1])


def _columns(call: Call, value: Value, own: Tensor) -> Tensor:
    """Which columns of a weight should be removed: those of the channels that arrive. Where zeros arrive that are a
    constant, either will do: the weight's own."""
    free = torch.zeros(plain(value).shape[-1], dtype=torch.bool)
    if isinstance(value, Marked):
        loose = ((value.marks == FREE).expand(value.data.shape) & (value.data == 0)).flatten(0, -2)
        free = loose.all(0)
        marks = torch.where(free & (value.marks == FREE), KEPT, value.marks).to(torch.uint8)
        value = mark(value.data, marks)
    return torch.where(free, own, _last(call, value))


def _recurrent(call: Call, gates: int) -> Any:
    """LSTM, GRU, RNN and their cells: what is removed of the state goes in all tensors, and what arrives in the first
    layer's columns. A removed unit's weights are zero, so no other unit reads it."""
    module = call.module
    assert module is not None, "the row is for modules"
    cell = isinstance(module, nn.RNNCellBase)
    state = _gone(call.params["weight_hh" if cell else "weight_hh_l0"], 1)
    sides = 1 if cell else 1 + int(module.bidirectional)  # type: ignore[arg-type]
    for name, value in call.params.items():
        first = cell or "_l0" in name
        columns = state if "_hh" in name else state.repeat(sides)
        if first and name.startswith("weight_ih"):
            columns = _columns(call, call.args[0], _gone(value, 1))
        expected = [state.repeat(gates), columns]
        if any(not torch.equal(_gone(value, dim), expected[dim]) for dim in range(plain(value).ndim)):
            raise call.error(f"the removed positions of {name} are not those of the state or of what arrives")
    clean = clone_module(module, {name: zeroed(value) for name, value in call.params.items()})
    given = pytree.tree_map(lambda x: zeroed(x) if isinstance(x, Tensor | Marked) else x, call.args)
    return pytree.tree_map(partial(_as_state, state=state), replace(call, run=clean, args=given).plain())


def _as_state(data: Tensor, *, state: Tensor) -> Value:
    line = state.repeat(data.shape[-1] // state.numel()).to(torch.uint8) * (REMOVED - KEPT) + KEPT
    return mark(data, line.reshape([1] * (data.ndim - 1) + [-1]))


row("lstm", "lstmcell")(partial(_recurrent, gates=4))
row("gru", "grucell")(partial(_recurrent, gates=3))
row("rnn", "rnncell")(partial(_recurrent, gates=1))
