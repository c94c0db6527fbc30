"""Python values as text and back: the literals of the textual IR, of module constructors and of generated source.

`literal` writes Python source that needs nothing but `import torch` (`float("inf")`, `torch.float32`,
`slice(0, 3, None)`), `Reader` reads it through `ast` and evaluates nothing: what isn't a literal is a `TextError` with
its place.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.errors import ModelError, TextError, nearest
from prunec.compiler.text.lexer import Fragment

TORCH_CONSTANTS = (torch.dtype, torch.memory_format, torch.layout)


def percent_name(node: fx.Node) -> str:
    """How the textual IR refers to a node."""
    return f"%{node.name}"


def literal(value: Any, node: Callable[[fx.Node], str] = percent_name) -> str:
    """The source of a value; `node` spells the graph nodes in it. `ModelError` for a value that has no literal."""
    match value:
        case fx.Node():
            return node(value)
        case None | bool() | int():
            return str(value)
        case complex():
            return repr(value) if math.isfinite(abs(value)) else f'complex("{value}")'
        case float():
            return repr(value) if math.isfinite(value) else f'float("{value}")'
        case str():
            return quote(value)
        case slice():
            return f"slice({', '.join(literal(part, node) for part in (value.start, value.stop, value.step))})"
        case torch.device():
            return f'torch.device("{value}")'
        case np.generic():
            return literal(value.item(), node)
        case tuple() | list() | dict():
            return _container(value, node)
    if value is Ellipsis:
        return "..."
    if isinstance(value, TORCH_CONSTANTS):
        return str(value)
    raise ModelError(f"a value of type '{type(value).__name__}' has no literal: {value!r:.80}")


def _container(value: tuple[Any, ...] | list[Any] | dict[Any, Any], node: Callable[[fx.Node], str]) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key, node)}: {literal(item, node)}" for key, item in value.items()) + "}"
    items = ", ".join(literal(item, node) for item in value)
    if isinstance(value, list):
        return f"[{items}]"
    return f"({items},)" if len(value) == 1 else f"({items})"


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the literals of one fragment; `%name` is looked up in `nodes`."""

    fragment: Fragment
    nodes: Mapping[str, fx.Node]

    def value(self, expr: ast.expr) -> Any:
        """The value that an expression spells."""
        read = _READERS.get(type(expr))
        if read is None:
            raise self._unexpected(expr)
        return read(self, expr)

    def node(self, expr: ast.expr) -> fx.Node | None:
        """The graph node that an expression refers to, `None` where it is none."""
        place = self.fragment.at(expr)
        if not isinstance(expr, ast.Name) or not place.code.startswith("%"):
            return None
        name = place.code[1:]
        if name not in self.nodes:
            raise place.error(f"expected a value that is defined above, got '%{name}'", nearest(name, self.nodes))
        return self.nodes[name]

    def _unexpected(self, expr: ast.expr) -> TextError:
        place = self.fragment.at(expr)
        return place.error(f"expected a literal, got {place.code!r}")

    def _constant(self, expr: ast.Constant) -> Any:
        if isinstance(expr.value, bytes):
            raise self._unexpected(expr)
        return expr.value

    def _tuple(self, expr: ast.Tuple) -> Any:
        return tuple(self.value(item) for item in expr.elts)

    def _list(self, expr: ast.List) -> Any:
        return [self.value(item) for item in expr.elts]

    def _dict(self, expr: ast.Dict) -> Any:
        if None in expr.keys:
            raise self._unexpected(expr)
        pairs = ((key, self.value(key), item) for key, item in zip(expr.keys, expr.values, strict=True) if key)
        return {self._hashable(key, value): self.value(item) for key, value, item in pairs}

    def _hashable(self, expr: ast.expr, value: Any) -> Any:
        try:
            hash(value)
        except TypeError as fault:
            raise self._unexpected(expr) from fault
        return value

    def _slice(self, expr: ast.Slice) -> Any:
        return slice(*(None if part is None else self.value(part) for part in (expr.lower, expr.upper, expr.step)))

    def _name(self, expr: ast.Name) -> Any:
        node = self.node(expr)
        if node is None:
            raise self._unexpected(expr)
        return node

    def _negative(self, expr: ast.UnaryOp) -> Any:
        operand = expr.operand
        number = isinstance(operand, ast.Constant) and type(operand.value) in (int, float)
        if not isinstance(expr.op, ast.USub) or not number:
            raise self._unexpected(expr)
        return -self._constant(operand)  # type: ignore[arg-type]  # `number` says that it is a constant

    def _torch_constant(self, expr: ast.Attribute) -> Any:
        place = self.fragment.at(expr)
        valid = {f"torch.{key}": value for key, value in vars(torch).items() if isinstance(value, TORCH_CONSTANTS)}
        if place.code not in valid:
            raise place.error(f"expected a literal, got {place.code!r}", nearest(place.code, valid))
        return valid[place.code]

    def _constructed(self, expr: ast.Call) -> Any:
        make = _CONSTRUCTED.get(self.fragment.at(expr.func).code)
        if make is None or expr.keywords:
            raise self._unexpected(expr)
        try:
            return make(*(self.value(item) for item in expr.args))
        except (TypeError, ValueError, RuntimeError, OverflowError) as fault:
            place = self.fragment.at(expr)
            raise place.error(f"expected a literal, got {place.code!r}: {fault}") from fault


_CONSTRUCTED: Mapping[str, Callable[..., Any]] = {"slice": slice, "float": float, "torch.device": torch.device}

_READERS: Mapping[type[ast.expr], Callable[[Reader, Any], Any]] = {
    ast.Constant: Reader._constant,
    ast.Tuple: Reader._tuple,
    ast.List: Reader._list,
    ast.Dict: Reader._dict,
    ast.Slice: Reader._slice,
    ast.Name: Reader._name,
    ast.UnaryOp: Reader._negative,
    ast.Attribute: Reader._torch_constant,
    ast.Call: Reader._constructed,
}


def quote(text: str) -> str:
    """A string literal in double quotes."""
    return f'"{text}"' if text.isprintable() and not set(text) & {'"', "\\"} else repr(text)
