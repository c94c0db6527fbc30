"""Tensors of one element where torch wants a number: they are read while the forward runs, and so are decided.

    torch.baddbmm(s, q, k, alpha=1 / self.norm)     alpha is a number, where `norm` is a buffer
    x[:, :count[0]]                                 the bound is a number, where `count` was made from literals
    F.pad(x, (0, self.stride - 1))                  so are sizes

Only constants are known while a model is traced. What depends on the input stays a tensor here, and whoever needs its
value says so.
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
"""A tensor of one element -> its number, or the tensor itself where it isn't known."""

_FACTORS = ("alpha", "beta")
_SIZED = frozenset("pad view reshape expand repeat new_zeros new_ones new_full zeros ones full arange narrow".split())
"""Operations whose arguments behind the first tensor are sizes, or lists of them."""


def with_numbers(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], read: Read) -> tuple[tuple[Any, ...], Any]:
    """The arguments of the call `name`, with numbers for known tensors among its factors and the bounds of slices."""
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
    """The arguments of an index with a 0 for each single position that depends on the input; None where there is none.
    The shape is the same."""
    if name != "__getitem__":
        return None
    entries = args[1] if type(args[1]) is tuple else (args[1],)
    places = tuple(0 if _is_place(entry) else entry for entry in entries)
    return None if all(a is b for a, b in zip(places, entries, strict=True)) else (args[0], places)


def _is_place(entry: Any) -> bool:
    whole = isinstance(entry, torch.Tensor) and not (entry.is_floating_point() or entry.dtype == torch.bool)
    return whole and not entry.ndim


def _bounds(index: Any, read: Read) -> Any:
    if type(index) is tuple:
        return tuple(_bounds(entry, read) for entry in index)
    if isinstance(index, slice) and any(isinstance(x, torch.Tensor) for x in (index.start, index.stop, index.step)):
        return slice(*(_number(x, read) for x in (index.start, index.stop, index.step)))
    return index


def _sizes(value: Any, read: Read) -> Any:
    return type(value)(_sizes(item, read) for item in value) if type(value) in (tuple, list) else _number(value, read)


def _number(value: Any, read: Read) -> Any:
    return read(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else value


class Places(tuple[torch.Tensor, ...]):
    """What `torch.where(mask)` gives: a vector of places a dimension, none of which can be looked at."""

    mask: torch.Tensor
    complaint: tuple[str, str]

    def __new__(cls, mask: torch.Tensor, complaint: tuple[str, str]) -> Places:
        """`complaint` tells whoever looks what is wrong."""
        self = super().__new__(cls, [mask] * mask.ndim)
        self.mask, self.complaint = mask, complaint
        return self

    def __iter__(self) -> Iterator[torch.Tensor]:
        raise Refused(*self.complaint)

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        raise Refused(*self.complaint)


def places_of(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Places | None:
    """What a call gives that only asks where a mask is true; None for any other call."""
    asks = call.function is torch.where or (call.name == "nonzero" and kwargs.get("as_tuple") is True)
    mask = args[0] if asks and len(args) == 1 else None
    return Places(mask, call.complaint()) if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool else None


def with_mask(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an index or an assignment with the mask itself in the place of its places."""
    return (args[0], args[1].mask, *args[2:]) if len(args) > 1 and type(args[1]) is Places else args
