"""Marks of recurrent layers: a removed unit of the hidden state is removed from every tensor of the layer.

weight_hh_l0 [gates * H, H]    rows: the state's removed units, in each gate    columns: the same units
weight_ih_l0 [gates * H, I]    rows: likewise                                   columns: what x has lost
weight_ih_l1                   rows: likewise                                   columns: the units, both directions'
output, h_n, c_n [.., H]       the units, along the last dimension
weight_hr_l0 [P, H]            rows: what the projection loses, as do weight_hh's columns, output and h_n
                               columns: the units
"""

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
    beside,
    collapse,
    full_marks,
    mark,
    marks_of,
    plain,
    zeroed,
)
from prunec.compiler.verify.table import row


def _gone(value: Value, dim: int) -> Tensor:
    """[size of `dim`]: which rows (or columns) of a matrix, or elements of a vector, are removed as a whole."""
    marks: Tensor = full_marks(value)
    return marks == REMOVED if marks.ndim == 1 else (marks == REMOVED).all(1 - dim)


def _last(call: Call, value: Value) -> Tensor:
    """[size]: which positions of a value's last dimension are removed, at every step alike."""
    marks = collapse(call, marks_of(value), range(marks_of(value).ndim - 1), "a step lost some of its elements")
    return (marks == REMOVED).flatten().expand(plain(value).shape[-1])


def _columns(call: Call, value: Value, own: Tensor) -> Tensor:
    """[columns]: which columns of weight_ih must be removed: those of the channels that `value` lost. Where `value` is
    a constant zero, either is right, and the weight's `own` columns count."""
    free = torch.zeros(plain(value).shape[-1], dtype=torch.bool)
    if isinstance(value, Marked):
        loose = ((beside(value) == FREE).expand(value.data.shape) & (value.data == 0)).flatten(0, -2)
        free = loose.all(0).cpu()
        marks = torch.where(free & (value.marks == FREE), KEPT, value.marks).to(torch.uint8)
        value = mark(value.data, marks)
    return torch.where(free, own, _last(call, value))


def _recurrent(call: Call, gates: int) -> Any:
    """LSTM, GRU, RNN and their cells: the layer is run with zeros for all that is removed.

    A removed unit's weights are zero, so that no other unit reads it. Raises `VerifyError` where a tensor of the layer
    loses other positions than the hidden state, or than what arrives.
    """
    module = call.module
    assert module is not None, "the row is for modules"
    cell = isinstance(module, nn.RNNCellBase)
    projected = not cell and bool(module.proj_size)
    state = _gone(call.params["weight_hr_l0" if projected else "weight_hh" if cell else "weight_hh_l0"], 1)
    given = _gone(call.params["weight_hr_l0"], 0) if projected else state
    sides = 1 if cell else 1 + int(module.bidirectional)  # type: ignore[arg-type]
    for name, value in call.params.items():
        first = cell or "_l0" in name
        columns = given if "_hh" in name else given.repeat(sides)
        if first and name.startswith("weight_ih"):
            columns = _columns(call, call.args[0], _gone(value, 1))
        expected = [given, state] if "_hr" in name else [state.repeat(gates), columns]
        if any(not torch.equal(_gone(value, dim), expected[dim]) for dim in range(plain(value).ndim)):
            raise call.error(f"the removed positions of {name} are not those of the state or of what arrives")
    clean = clone_module(module, {name: zeroed(value) for name, value in call.params.items()})
    inputs = pytree.tree_map(lambda x: zeroed(x) if isinstance(x, Tensor | Marked) else x, call.args)
    result = replace(call, run=clean, args=inputs).plain()
    if not projected:
        return pytree.tree_map(partial(_as_state, state=state), result)
    output, (last, inner) = result
    return _as_state(output, state=given), (_as_state(last, state=given), _as_state(inner, state=state))


def _as_state(data: Tensor, *, state: Tensor) -> Value:
    """A result whose last dimension holds the hidden state, once a direction, with the state's marks."""
    line = state.repeat(data.shape[-1] // state.numel()).to(torch.uint8) * (REMOVED - KEPT) + KEPT
    return mark(data, line.reshape([1] * (data.ndim - 1) + [-1]))


row("lstm", "lstmcell")(partial(_recurrent, gates=4))
row("gru", "grucell")(partial(_recurrent, gates=3))
row("rnn", "rnncell")(partial(_recurrent, gates=1))
