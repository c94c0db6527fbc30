"""What a value is like, without its numbers: to tell whether two runs of a model give the same kind of thing.

    {"boxes": float32[17, 4], "labels": int64[17]}
    outline: {"boxes": Like("float32", 2), "labels": Like("int64", 1)}

Where data decide how much a model finds, two runs agree in containers, keys, dtypes and numbers of dimensions, and not
in sizes. Mappings and dataclasses count as dicts, lists and tuples as lists, since a traced part gives plain ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch

from prunec.compiler.ir.inputs import LITERALS


class Like(NamedTuple):
    """A tensor's dtype and number of dimensions, or a plain value's type."""

    kind: str
    dims: int = 0

    def __str__(self) -> str:
        return f"{self.kind}[{', '.join('_' * self.dims)}]" if self.dims else self.kind


def outline(value: Any, *, values: bool = False) -> Any:
    """A nest of dicts and lists with a `Like` for each leaf; with `values`, numbers and strings stay as they are."""
    if isinstance(value, torch.Tensor):
        return Like(str(value.dtype).removeprefix("torch."), value.ndim)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: outline(item, values=values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [outline(item, values=values) for item in value]
    return value if values and isinstance(value, LITERALS) else Like(type(value).__name__)


def mismatch(got: Any, want: Any, where: str = "") -> str:
    """The first place where two outlines differ, in words; empty where they agree.

    Lists are compared as far as both reach, and None agrees with anything: both depend on what was found in the data.
    """
    if Like("NoneType") in (got, want):
        return ""
    if isinstance(got, dict) and isinstance(want, dict) and got.keys() == want.keys():
        return next((text for key in want if (text := mismatch(got[key], want[key], f"{where}[{key!r}]"))), "")
    if isinstance(got, list) and isinstance(want, list):
        pairs = enumerate(zip(got, want, strict=False))
        return next((text for i, pair in pairs if (text := mismatch(*pair, f"{where}[{i}]"))), "")
    return "" if got == want else f"{_shown(got)} instead of {_shown(want)}{where and f' at {where}'}"


def _shown(found: Any) -> str:
    if isinstance(found, dict):
        return f"a dict of {', '.join(map(repr, found)) or 'nothing'}"
    return f"a list of {len(found)}" if isinstance(found, list) else str(found)
