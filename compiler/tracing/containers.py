"""Nested containers of tensors, numbers and literals: what calls are given, and what a model gives back.

leaves((x, [h, slice(0, n)]))      x, h, 0, n, None
rebuilt((x, [h]), f)               (f(x), [f(h)])
returned(Result(logits=y), [])     {"logits": y}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prunec.compiler.tracing.symbolic_numbers import Number, Refused

_SIMPLE = (int, float, bool, str, bytes, complex, range, type(None), type(...))
SIMPLE_TYPES = frozenset({*_SIMPLE, torch.dtype, torch.layout, torch.memory_format})
_CONTAINERS = (tuple, list, dict, slice)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested containers that is no container itself."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def rebuilt(value: Any, function: Callable[[Any], Any]) -> Any:
    """A container of the same kind with `function` applied to its items, one level deep; a numpy number as a plain one.

    A `torch.Size` becomes a plain tuple, since its items need not be numbers any more.
    """
    if isinstance(value, tuple):
        items = tuple(map(function, value))
        return type(value)(*items) if hasattr(value, "_fields") else items
    if isinstance(value, list):
        return list(map(function, value))
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(function(value.start), function(value.stop), function(value.step))
    return value.item() if isinstance(value, np.generic) else value


def is_foreign(leaf: Any) -> bool:
    """Whether an argument is of a kind that neither a graph nor generated source can hold."""
    if type(leaf) in SIMPLE_TYPES:
        return False
    return not isinstance(leaf, torch.Tensor | Number | torch.device | np.generic)


def returned(value: Any, left_out: list[str]) -> Any:
    """What a model gives back, in plain containers: mappings and dataclasses become dicts by field name. A named tuple
    keeps its type where it is the whole result; generated code can't spell an inner one, which becomes a plain tuple.

    Other objects (a cache of keys and values) can't be made by a graph. A field that holds one is left out, and so is
    one at a tuple's end; `left_out` gets a word on each. Raises `Refused` where that leaves nothing, or would move
    what comes behind it.
    """
    fields = _fields_of(value)
    if fields is not None:
        kept = {key: item for key, item in fields.items() if not _is_other(item)}
        if fields and not kept:
            raise _refused(next(iter(fields.values())))
        left_out += [f"'{key}' ({type(fields[key]).__name__})" for key in fields if key not in kept]
        return {key: returned(item, left_out) for key, item in kept.items()}
    if isinstance(value, _CONTAINERS):
        while type(value) is tuple and len(value) > 1 and _is_other(value[-1]):
            left_out.append(f"item {len(value) - 1} ({type(value[-1]).__name__})")
            value = value[:-1]
        return rebuilt(value, lambda item: returned(tuple(item) if hasattr(item, "_fields") else item, left_out))
    if is_foreign(value):
        raise _refused(value)
    return value


def _fields_of(value: Any) -> Mapping[str, Any] | None:
    """The entries of a mapping or dataclass, by name."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _is_other(value: Any) -> bool:
    """Whether a result is neither a tensor, a number or a literal, nor a container of these."""
    return _fields_of(value) is None and not isinstance(value, _CONTAINERS) and is_foreign(value)


def _refused(value: Any) -> Refused:
    return Refused(
        f"the model gives back a {type(value).__name__}, which a graph can't make",
        "return tensors, in tuples, lists or dicts; or turn it off by an option, such as use_cache",
    )


def twin_of(tensor: torch.Tensor, known: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The last of the known tensors that is another Python object for the same elements (of `Variable(x)`, x)."""
    storage = tensor.untyped_storage()._cdata
    return next((other for other in reversed(known) if _is_twin(other, tensor, storage)), None)


def _is_twin(other: torch.Tensor, tensor: torch.Tensor, storage: int) -> bool:
    """Whether two tensors lie at the same place of the same memory, with the same shape and dtype."""
    if not other.is_meta or other.dtype != tensor.dtype or other.untyped_storage()._cdata != storage:
        return False
    same_place = other.storage_offset() == tensor.storage_offset() and other.stride() == tensor.stride()
    return bool(same_place and other.shape == tensor.shape)
