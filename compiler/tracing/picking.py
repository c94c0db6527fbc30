"""The places where a mask is true: how many there are depends on values, and yet code may use them as an index.

x[torch.where(rows)] = 0                     is   x[rows] = 0
x[(rows > 0).nonzero(as_tuple=True)] = 0     is   x[rows > 0] = 0
i, j = torch.where(rows)                     is refused: the size of `i` isn't known
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

import torch

from prunec.compiler.tracing.calls import Call
from prunec.compiler.tracing.symbolic_numbers import Refused


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
