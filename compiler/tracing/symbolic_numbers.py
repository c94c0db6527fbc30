"""Numbers that know where they come from: what traced code gets when it asks a tensor for its size.

    n, c, h, w = x.shape          four `Int`s, each an int to Python, each an item of the node `x.shape` to the graph
    if h > 7:                     decided: comparisons give a plain bool
    x.view(n, c * h * w)          recorded: `n` and the product become nodes, so that the batch size stays dynamic
    range(h), int(h), [0] * h     plain numbers

They are true subclasses of `int`, `float` and `tuple`, so code that checks types, indexes lists or calls into C takes
them as they are. A number becomes a node when the graph first reads it, not when it is computed.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, SupportsIndex

import torch
from torch import fx

_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_BITWISE = ("lshift", "rshift", "and", "or", "xor")


class Refused(Exception):
    """The model can't be traced; `trace` adds the place and raises it as a `ModelError`."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class GraphBuilder(Protocol):
    """What a number needs of the tracer that it belongs to."""

    active: bool
    froze: bool
    """Whether code made a plain number of a size, which becomes a literal; see `tracing.dynamic_batch`."""
    decided: bool
    """Whether code compared a size, which decides what it does; see `tracing.other_sizes`."""

    def call_node(self, function: Callable[..., Any], args: tuple[Any, ...], value: Any) -> fx.Node:
        """A new node at the graph's end."""
        ...


class Handle:
    """The origin of a traced value: its node, which is made when it is first read."""

    __slots__ = ("_make", "_node", "tracer", "value")

    def __init__(self, tracer: GraphBuilder, value: Any, make: fx.Node | Callable[[], fx.Node]) -> None:
        self.tracer = tracer
        self.value = value
        self._node = make if isinstance(make, fx.Node) else None
        self._make = None if isinstance(make, fx.Node) else make

    @property
    def node(self) -> fx.Node:
        """The node that computes the value."""
        if self._node is None:
            assert self._make is not None, "a handle has a node or makes one"
            self._node, self._make = self._make(), None
        return self._node

    def derive(self, function: Callable[..., Any], args: tuple[Any, ...], value: Any) -> Handle:
        """The handle of a value that `function` computes from traced ones; its node is made when it is first read."""
        tracer = self.tracer
        return Handle(tracer, value, lambda: tracer.call_node(function, args, value))

    def item(self, key: Any, value: Any) -> Handle:
        """The handle of `self[key]`, whose value is `value`."""
        tracer = self.tracer
        return Handle(tracer, value, lambda: tracer.call_node(operator.getitem, (self.node, key), value))


class Number:
    """What `Int`, `Float` and `Flag` have in common: a handle, and the plain number."""

    handle: Handle

    @property
    def plain(self) -> Any:
        """The number without its history."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self.plain), (self.plain,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Number:
        return self


class Int(int, Number):
    """A size, or what integer arithmetic made of sizes."""

    def __new__(cls, value: int, handle: Handle) -> Int:
        """`value` is what the example inputs give."""
        self = super().__new__(cls, value)
        self.handle = handle
        return self

    @property
    def plain(self) -> int:
        """The number without its history."""
        return int.__int__(self)

    __reduce__ = Number.__reduce__

    def __int__(self) -> int:
        self.handle.tracer.froze = True
        return self.plain

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __floor__(self) -> int:
        return self

    __ceil__ = __trunc__ = __pos__ = __floor__


class Float(float, Number):
    """What true division, or arithmetic with a float, made of sizes."""

    def __new__(cls, value: float, handle: Handle) -> Float:
        """`value` is what the example inputs give."""
        self = super().__new__(cls, value)
        self.handle = handle
        return self

    @property
    def plain(self) -> float:
        """The number without its history."""
        return float.__float__(self)

    __reduce__ = Number.__reduce__

    def __int__(self) -> int:
        self.handle.tracer.froze = True
        return int(self.plain)

    __trunc__ = __int__

    def __floor__(self) -> int:
        self.handle.tracer.froze = True
        return math.floor(self.plain)

    def __ceil__(self) -> int:
        self.handle.tracer.froze = True
        return math.ceil(self.plain)

    def __round__(self, digits: Any = None) -> Any:
        self.handle.tracer.froze = True
        return round(self.plain, digits)


class Flag(int, Number):
    """`module.training`: a bool for the code that is traced, a node that reads the model's flag in the graph."""

    def __new__(cls, handle: Handle) -> Flag:
        """The handle's value is the mode whose branches are traced."""
        self = super().__new__(cls, bool(handle.value))
        self.handle = handle
        return self

    @property
    def plain(self) -> bool:
        """The mode whose branches are traced."""
        return bool(int.__int__(self))

    def __repr__(self) -> str:
        return str(self.plain)

    __reduce__ = Number.__reduce__


class Shape(tuple[int, ...]):
    """A tensor's size: a tuple of `Int`s that passes for a `torch.Size`.

    `handle` is set where it is the whole size of a tensor, and so one node. A part (`x.shape[1:]`) has none: its items
    are nodes one by one.
    """

    handle: Handle | None

    def __new__(cls, sizes: Iterable[int], handle: Handle | None = None) -> Shape:
        """With a handle, `sizes` are plain and become items of its node; without one they are kept, traced or not."""
        items = sizes if handle is None else (Int(size, handle.item(i, size)) for i, size in enumerate(sizes))
        self = super().__new__(cls, items)
        self.handle = handle
        return self

    @property
    def __class__(self) -> type:
        return torch.Size

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("a traced shape keeps its class")

    @property
    def plain(self) -> torch.Size:
        """The sizes without their history."""
        return torch.Size(map(int.__int__, self))

    def numel(self) -> int:
        """The product of the sizes."""
        return math.prod(self)

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if isinstance(key, slice):
            return Shape(super().__getitem__(key))
        return super().__getitem__(key)

    def __add__(self, other: Any) -> Any:
        return _join(self, other)

    def __radd__(self, other: Any) -> Any:
        return _join(other, self)

    def __repr__(self) -> str:
        return repr(self.plain)

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.Size, (tuple(self.plain),)


def _join(left: Any, right: Any) -> Any:
    """`left + right` as `torch.Size` has it: a size of sizes alone, else a plain tuple."""
    if not (isinstance(left, tuple) and isinstance(right, tuple)):
        return NotImplemented
    joined = (*left, *right)
    return Shape(joined) if all(isinstance(size, int) for size in joined) else joined


def wrap_number(value: float, handle: Handle) -> Any:
    """An int or float with a handle: `Int` or `Float`; a bool unchanged."""
    if isinstance(value, bool):
        return value
    return Int(value, handle) if isinstance(value, int) else Float(value, handle)


def plain_number(value: Any) -> Any:
    """A traced number as a plain one; anything else unchanged."""
    return value.plain if isinstance(value, Number) else value


def _compute(function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """Apply a function to numbers, of which one at least is traced. After the trace the result is a plain number."""
    value = function(*map(plain_number, operands))
    handle = next(operand.handle for operand in operands if isinstance(operand, Number))
    if not handle.tracer.active or not isinstance(value, int | float):
        return value
    return wrap_number(value, handle.derive(function, operands, value))


def _binary(function: Callable[..., Any], *, reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        return _compute(function, (other, self) if reflected else (self, other))

    return method


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *rest: Any) -> Any:
        return _compute(function, (self, *rest))

    return method


def _function(name: str) -> Callable[..., Any]:
    return getattr(operator, f"{name}_" if name in {"and", "or"} else name)  # type: ignore[no-any-return]


def _define(cls: type, names: tuple[str, ...]) -> None:
    for name in names:
        setattr(cls, f"__{name}__", _binary(_function(name), reflected=False))
        setattr(cls, f"__r{name}__", _binary(_function(name), reflected=True))


def _deciding(name: str, base: type) -> Callable[..., Any]:
    """A comparison (or hash) of a traced number: as of a plain one, and noted."""
    plain = getattr(base, name)

    def method(self: Any, *others: Any) -> Any:
        self.handle.tracer.decided = True
        return plain(self, *others)

    return method


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "bool", "hash")
for _kind, _base in ((Int, int), (Float, float)):
    for _name in _COMPARISONS:
        setattr(_kind, f"__{_name}__", _deciding(f"__{_name}__", _base))
_define(Int, _BINARY + _BITWISE)
_define(Float, _BINARY)
_define(Flag, ("mul",))
_UNARY: Mapping[str, Callable[..., Any]] = {"neg": operator.neg, "abs": operator.abs, "round": builtins.round}
_ROUNDING: Mapping[str, Callable[..., Any]] = {"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc}
for _kind, _operations in ((Int, _UNARY), (Float, {**_UNARY, **_ROUNDING})):
    for _name, _operation in _operations.items():
        setattr(_kind, f"__{_name}__", _unary(_operation))
