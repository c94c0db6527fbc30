"""Where code asks for the value of a tensor during a trace: known for constants, and for some uses not needed at all.

    torch.baddbmm(s, q, k, alpha=1 / self.norm)     alpha is a number, where `norm` is a buffer
    x[:, :count[0]]                                 the bound is a number, where `count` was made from literals
    F.pad(x, (0, self.stride - 1))                  so are sizes
    x[i], where `i` depends on the input            the shape is that of x[0]; `i` stays a tensor in the graph

Where a mask is true, and at how many places, depends on its values. Yet code may use these places as an index:

    x[torch.where(rows)] = 0                        is   x[rows] = 0
    x[(rows > 0).nonzero(as_tuple=True)] = 0        is   x[rows > 0] = 0
    i, j = torch.where(rows)                        is refused: the size of `i` isn't known

Only constants have values while a model is traced. What depends on the input is handed on as a tensor; whoever needs
its value raises the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np
import torch

from prunec.compiler.tracing.calls import Call
from prunec.compiler.tracing.containers import leaves
from prunec.compiler.tracing.symbolic_numbers import Refused

Read = Callable[[torch.Tensor], Any]
"""Of a tensor of one element: its number, or the tensor itself where its value isn't known."""

_FACTORS = ("alpha", "beta")
"""Keyword arguments that torch wants as numbers."""
_SIZED = frozenset("pad view reshape expand repeat new_zeros new_ones new_full zeros ones full arange narrow".split())
"""Operations whose arguments behind the first tensor are sizes, or lists of them."""


def with_numbers(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], read: Read) -> tuple[tuple[Any, ...], Any]:
    """A call's arguments, with numbers for known one-element tensors among factors, bounds of slices and sizes."""
    if name == "new_tensor":  # takes the values alone, whatever holds them
        args = tuple(arg.tolist() if isinstance(arg, np.ndarray) else arg for arg in args)
    if any(isinstance(kwargs.get(key), torch.Tensor) for key in _FACTORS):
        kwargs = {key: _number(value, read) if key in _FACTORS else value for key, value in kwargs.items()}
    if name in ("__getitem__", "__setitem__"):
        args = (args[0], _bounds(args[1], read), *args[2:])
    if name in _SIZED and any(isinstance(leaf, torch.Tensor) for leaf in leaves(args[1:])):
        args = (args[0], *(_sizes(arg, read) for arg in args[1:]))
    return args, kwargs


def at_zero(name: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The arguments of `x[index]` with 0 for each integer tensor of no dimensions, which gives the same shape.

    None where there is none, and for other calls.
    """
    if name != "__getitem__":
        return None
    entries = args[1] if type(args[1]) is tuple else (args[1],)
    places = tuple(0 if _is_place(entry) else entry for entry in entries)
    return None if all(a is b for a, b in zip(places, entries, strict=True)) else (args[0], places)


def _is_place(entry: Any) -> bool:
    """Whether an entry of an index is an integer tensor of no dimensions."""
    whole = isinstance(entry, torch.Tensor) and not (entry.is_floating_point() or entry.dtype == torch.bool)
    return whole and not entry.ndim


def _bounds(index: Any, read: Read) -> Any:
    if type(index) is tuple:
        return tuple(_bounds(entry, read) for entry in index)
    if isinstance(index, slice) and any(isinstance(x, torch.Tensor) for x in (index.start, index.stop, index.step)):
        return slice(*(_number(x, read) for x in (index.start, index.stop, index.step)))
    return index


def _sizes(value: Any, read: Read) -> Any:
    """A size, or a list of sizes, with numbers for known tensors."""
    return type(value)(_sizes(item, read) for item in value) if type(value) in (tuple, list) else _number(value, read)


def _number(value: Any, read: Read) -> Any:
    return read(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else value


class Places(tuple[torch.Tensor, ...]):
    """What `torch.where(mask)` gives: an index vector for each dimension of the mask, whose sizes aren't known.

    It may be used as an index as a whole (`with_mask`); looking into it raises `Refused`.
    """

    mask: torch.Tensor
    complaint: tuple[str, str]

    def __new__(cls, mask: torch.Tensor, complaint: tuple[str, str]) -> Places:
        """`complaint` is the message and the hint of the error."""
        self = super().__new__(cls, [mask] * mask.ndim)
        self.mask, self.complaint = mask, complaint
        return self

    def __iter__(self) -> Iterator[torch.Tensor]:
        raise Refused(*self.complaint)

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        raise Refused(*self.complaint)


def places_of(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Places | None:
    """What a call gives that asks where a mask is true (`torch.where`, `nonzero(as_tuple=True)`); None for others."""
    asks = call.function is torch.where or (call.name == "nonzero" and kwargs.get("as_tuple") is True)
    mask = args[0] if asks and len(args) == 1 else None
    return Places(mask, call.complaint()) if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool else None


def with_mask(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of `x[torch.where(mask)]`, read or assigned to, as those of `x[mask]`; of other calls unchanged."""
    return (args[0], args[1].mask, *args[2:]) if len(args) > 1 and type(args[1]) is Places else args
