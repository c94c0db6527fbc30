"""Picking: indices, slices, gathers."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx

from prunec.compiler.ir.ops import index_dims, known_places
from prunec.compiler.targets.onnx.call import Call, Names, on_op
from prunec.compiler.targets.onnx.sizes import Size

_END: Final = 2**31 - 1
"""An end of a slice that reaches to the last element."""


@on_op("getitem")
def getitem(call: Call) -> Names:
    """A part of a tuple, or a tensor's numbers, slices, new dimensions, and one list of places."""
    subject, index = call.node.args[0], call.node.args[1]
    if not call.is_tensor(subject):
        return call.parts(subject)[call.plain(index)]
    entries = list(index) if isinstance(index, tuple) else [index]
    places = index_dims(entries, call.rank_of(subject))
    listed = [(place, dim) for place, dim in places if _is_list(call, entries[place])]
    if len(listed) > 1 or any(isinstance(entry, bool) for entry in entries):
        call.decline("an index of this form")
    if listed:
        return _gathered(call, subject, entries, *listed[0])
    if len(places) == 1 and len(entries) == 1 and isinstance(call.plain(entries[0]), int):
        number = call.graph.constant(call.plain(entries[0]), torch.int64)
        return call.add("Gather", call.name(subject), number, axis=places[0][1])
    return _sliced(call, subject, entries, places)


def _is_list(call: Call, entry: Any) -> bool:
    return isinstance(entry, list | tuple) or (isinstance(entry, fx.Node | torch.Tensor) and call.is_tensor(entry))


def _sliced(call: Call, subject: Any, entries: list[Any], places: list[tuple[int, int]]) -> str:
    """One Slice; a number is a slice of one, whose dimension the shape that comes out lacks."""
    shape: list[Size] = list(call.shape_of(subject))
    cuts: list[tuple[int, int, int, int]] = []
    open_cut = False
    for place, dim in places:
        entry, size = call.plain(entries[place]), shape[dim]
        if isinstance(entry, int):
            cuts.append((entry, entry + 1 if entry != -1 else _END, dim, 1))
            shape[dim] = 1
            continue
        if not isinstance(entry, slice):
            call.decline("an index of this form")
        start, stop, step = (d if x is None else x for x, d in zip(_parts(entry), (0, _END, 1), strict=True))
        if (start, stop, step) == (0, _END, 1):
            continue
        if isinstance(size, int):
            shape[dim] = len(range(size)[entry])
        open_cut = open_cut or not isinstance(size, int)
        cuts.append((start, min(stop, _END), dim, step))
    name = call.name(subject)
    if cuts:
        starts, stops, axes, steps = (call.numbers(*column) for column in zip(*cuts, strict=True))
        given = [starts, stops, axes] + ([steps] if any(cut[3] != 1 for cut in cuts) else [])
        name = call.add("Slice", name, *given)
    if not open_cut:
        return call.reshaped(name, shape, call.shape)
    if call.rank != len(shape) or any(isinstance(entry, int) or entry is None for entry in entries):
        call.decline("a part of the batch in another shape")
    return name


def _parts(entry: slice) -> tuple[Any, Any, Any]:
    return entry.start, entry.stop, entry.step


def _gathered(call: Call, subject: Any, entries: list[Any], place: int, dim: int) -> str:
    """One list or tensor of places; beside it, whole dimensions alone."""
    others = [entry for number, entry in enumerate(entries) if number != place]
    if any(entry is not Ellipsis and entry != slice(None) for entry in others):
        call.decline("an index of this form")
    return call.add("Gather", call.name(subject), _places(call, entries[place]), axis=dim)


def _places(call: Call, entry: Any) -> str:
    """The name of the positions that an index picks."""
    if isinstance(entry, list | tuple):
        known = known_places(call.plain(entry))
        return call.decline("an index of this form") if known is None else call.numbers(*known)
    if call.dtype_of(entry) not in {torch.int64, torch.int32}:
        call.decline("a mask")
    return call.name(entry)


@on_op("select")
def select(call: Call) -> str:
    """One position of a dimension."""
    axis, place = call.literal(1, "dim"), call.literal(2, "index")
    number = call.graph.constant(place, torch.int64)
    return call.add("Gather", call.first, number, axis=call.bound(axis, call.rank_of(call.subject)))


@on_op("index_select")
def index_select(call: Call) -> str:
    """Positions of a dimension."""
    axis = call.bound(call.literal(1, "dim"), call.rank)
    return call.add("Gather", call.first, call.name(call.given(2, "index")), axis=axis)


@on_op("gather")
def gather(call: Call) -> str:
    """For each element of the index, one of the same column; torch also takes a shorter index."""
    dim, index = call.bound(call.literal(1, "dim"), call.rank), call.given(2, "index")
    old, new = call.shape_of(call.subject), call.shape_of(index)
    if any(a != b for place, (a, b) in enumerate(zip(old, new, strict=True)) if place != dim):
        call.decline("its index is shorter than the tensor")
    return call.add("GatherElements", call.first, call.name(index), axis=dim)
