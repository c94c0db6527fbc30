"""Calls that are traced as other ones, which give the same and whose result is known on shapes alone.

copy.deepcopy(x), torch.tensor(x), x.new_tensor(y)      x.detach().clone(), in the right dtype
torch.tensor([x.mean(), x.std()])                       torch.stack([x.mean().detach(), x.std().detach()])
x.repeat_interleave(counts, 2)                          x.index_select(2, places), where `counts` is known
x.tensor_split(cuts, 2)                                 x.tensor_split([3, 5], 2), where `cuts` is known
x.norm(dim=1)                                           torch.norm(x, "fro", 1), which TorchScript takes
x.bool(), x.bfloat16()                                  x.to(torch.bool), which TorchScript knows, too
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Known = Callable[[Tensor], Tensor | None]
"""Of a tensor: its value, where it is a constant; else None."""


def equivalent(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], known: Known) -> Callable[[], Any] | None:
    """A call to trace in the place of another; None where that is traced itself."""
    rule = _RULES.get(function)
    return None if rule is None else rule(known, *args, **kwargs)


def _deepcopy(_: Known, x: Tensor, memo: dict[int, Any]) -> Callable[[], Any] | None:
    def copied() -> Tensor:
        if id(x) not in memo:
            memo[id(x)] = x.detach().clone()
        found: Tensor = memo[id(x)]
        return found

    return copied if x.is_meta else None


def _tensor(known: Known, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Callable[[], Any] | None:
    if isinstance(data, Tensor):
        return lambda: _as(data.detach().clone(), dtype)
    return _stacked(known, data, dtype=dtype)


def _stacked(known: Known, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Callable[[], Any] | None:
    if not isinstance(data, list | tuple) or not all(isinstance(x, Tensor) and x.numel() == 1 for x in data):
        return None
    if len({x.dtype for x in data}) != 1 or all(known(x) is not None for x in data):
        return None
    return lambda: _as(torch.stack([x.detach().reshape(()) for x in data]), dtype)


def _new_tensor(
    _: Known, like: Tensor, data: Any, *, dtype: torch.dtype | None = None, **__: Any
) -> Callable[[], Any] | None:
    if not isinstance(data, Tensor):
        return None
    return lambda: _as(data.detach().clone(), dtype or like.dtype)


def _as(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype in (None, x.dtype) else x.to(dtype)


def _repeat_interleave(
    known: Known, *args: Any, dim: int | None = None, output_size: int | None = None, **named: Any
) -> Callable[[], Any] | None:
    given = [*args, *(named[key] for key in ("input", "repeats") if key in named)]
    repeats = given[1] if len(given) > 1 else given[0]
    counts = known(repeats) if isinstance(repeats, Tensor) else None
    if counts is None:
        return None
    places = torch.repeat_interleave(counts.reshape(-1))
    if len(given) == 1:  # counts alone: the places that they stand for
        return lambda: places
    x, dim = given[0], given[2] if len(given) > 2 else dim
    if counts.numel() == 1:
        return lambda: x.repeat_interleave(int(counts), dim)
    return lambda: x.flatten().index_select(0, places) if dim is None else x.index_select(dim, places)


def _tensor_split(known: Known, x: Tensor, *args: Any, dim: int = 0, **named: Any) -> Callable[[], Any] | None:
    given = (*args, *named.values())
    cuts = known(given[0]) if given and isinstance(given[0], Tensor) else None
    if cuts is None:
        return None
    return lambda: torch.tensor_split(x, cuts.tolist(), args[1] if len(args) > 1 else dim)


def _norm(
    _: Known, x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Callable[[], Any] | None:
    return None if dim is None or dtype else lambda: torch.norm(x, p, dim, keepdim)


def _cast(dtype: torch.dtype) -> Callable[..., Callable[[], Any] | None]:
    """The rule of a method that is named after the dtype that it gives."""
    return lambda _, x, **kwargs: lambda: x.to(dtype, **kwargs)


_RULES: Mapping[Any, Callable[..., Callable[[], Any] | None]] = {
    Tensor.__deepcopy__: _deepcopy,
    torch.tensor: _tensor,
    torch.as_tensor: _stacked,
    torch.asarray: _stacked,
    Tensor.new_tensor: _new_tensor,
    torch.repeat_interleave: _repeat_interleave,
    Tensor.repeat_interleave: _repeat_interleave,
    torch.tensor_split: _tensor_split,
    Tensor.tensor_split: _tensor_split,
    Tensor.norm: _norm,
    Tensor.bool: _cast(torch.bool),
    Tensor.bfloat16: _cast(torch.bfloat16),
}
