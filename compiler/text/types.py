"""The types of values in a program's text: `f32[1, 3, 8, 8]` for a tensor, the value itself for anything else."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch

from prunec.compiler.errors import ModelError, nearest
from prunec.compiler.text.lexer import Fragment
from prunec.compiler.text.literals import Reader, literal

SHORT: Final[Mapping[str, torch.dtype]] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
LARGEST: Final = 10**9
"""How many elements a tensor may have that a text declares: all of them are made up."""
_SPELLING: Final = {dtype: name for name, dtype in SHORT.items()}

_TENSOR: Final = re.compile(r"(?P<dtype>\w+) *\[ *(?P<shape>(?:[0-9]{1,18}(?: *, *[0-9]{1,18})*)?) *\]")


def type_text(value: Any) -> str:
    """The type of a node's value; nested values keep their structure."""
    if isinstance(value, torch.Tensor):
        dtype = _SPELLING.get(value.dtype, str(value.dtype).removeprefix("torch."))
        return f"{dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {type_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(type_text, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(type_text, value))}{',' if len(value) == 1 else ''})"
    try:
        return literal(value)
    except ModelError:  # an object that an operation passed on: its class is all there is to say
        return type(value).__name__


def read_tensor_type(fragment: Fragment) -> torch.Tensor:
    """A meta tensor of the type that the text states."""
    match = _TENSOR.fullmatch(fragment.code)
    if match is None:
        raise fragment.error(f"expected a shape such as f32[1, 3, 8, 8], got '{fragment.code}'")
    name = match["dtype"]
    dtype = SHORT.get(name, getattr(torch, name, None))
    if not isinstance(dtype, torch.dtype):
        raise fragment.part(0, len(name)).error(f"expected a type such as f32, got '{name}'", nearest(name, SHORT))
    shape = [int(size) for size in match["shape"].split(",") if size]
    if math.prod(shape) > LARGEST:
        raise fragment.error(f"expected at most {LARGEST:,} elements, got {math.prod(shape):,}")
    return torch.empty(shape, dtype=dtype, device="meta")


def read_type(fragment: Fragment) -> Any:
    """The value of an input: a meta tensor, or a nest of these and of literals."""
    code = fragment.code
    if code[:1] in _BRACKETS and code[-1:] == _BRACKETS[code[0]]:
        items = _items(fragment.part(1, len(code) - 1))
        if code[0] != "{":
            return (list if code[0] == "[" else tuple)(map(_read_item, items))
        return dict(map(_entry, items))
    return read_tensor_type(fragment)


def _read_item(fragment: Fragment) -> Any:
    """A value in a nest: where it has no shape it is a literal."""
    known = _TENSOR.fullmatch(fragment.code) or fragment.code[:1] in _BRACKETS
    return read_type(fragment) if known else Reader(fragment, {}).value(fragment.expression())


_BRACKETS: Final[Mapping[str, str]] = {"[": "]", "(": ")", "{": "}"}


def _items(rest: Fragment) -> list[Fragment]:
    """The stretches between the commas; nothing need follow the last one."""
    items = rest.split(",")
    return items if items[-1].code else items[:-1]


def _entry(item: Fragment) -> tuple[Any, Any]:
    colon = item.find(":")
    if colon < 0:
        raise item.error(f"expected a key and a type such as 'x': f32[8], got '{item.code}'")
    key = item.part(0, colon)
    return Reader(key, {}).value(key.expression()), _read_item(item.part(colon + 1))


def same_type(one: str, other: str) -> bool:
    """Whether two texts state the same type, whatever the space in them."""
    return "".join(one.split()) == "".join(other.split())
