"""How a call that a function mode sees is spelled in a graph.

what the mode sees                        the node
<method 'add'> (x, 1)                     call_function operator.add (x, 1)
<function __rsub__> (x, 1)                call_function operator.sub (1, x)
<method 'view'> (x, 2, -1)                call_method   view (x, 2, -1)
<attribute 'T'>.__get__ (x)               call_function getattr (x, 'T')
<function interpolate> (x, ...)           call_function F.interpolate (x, ...)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

Function = Callable[..., Any]

_BINARY: Mapping[str, Function] = {
    **dict.fromkeys(("add", "__add__"), operator.add),
    **dict.fromkeys(("sub", "__sub__"), operator.sub),
    **dict.fromkeys(("mul", "__mul__"), operator.mul),
    **dict.fromkeys(("div", "true_divide", "__truediv__", "__div__"), operator.truediv),
    **dict.fromkeys(("floor_divide", "__floordiv__"), operator.floordiv),
    **dict.fromkeys(("remainder", "__mod__"), operator.mod),
    **dict.fromkeys(("matmul", "__matmul__"), operator.matmul),
    **dict.fromkeys(("pow", "__pow__"), operator.pow),
    **dict.fromkeys(("gt", "__gt__"), operator.gt),
    **dict.fromkeys(("ge", "__ge__"), operator.ge),
    **dict.fromkeys(("lt", "__lt__"), operator.lt),
    **dict.fromkeys(("le", "__le__"), operator.le),
    **dict.fromkeys(("eq", "__eq__"), operator.eq),
    **dict.fromkeys(("ne", "__ne__"), operator.ne),
    **dict.fromkeys(("add_", "__iadd__"), operator.iadd),
    **dict.fromkeys(("sub_", "__isub__"), operator.isub),
    **dict.fromkeys(("mul_", "__imul__"), operator.imul),
    **dict.fromkeys(("div_", "__itruediv__", "__idiv__"), operator.itruediv),
    "__ifloordiv__": operator.ifloordiv,
    "__ipow__": operator.ipow,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__iand__": operator.iand,
    "__ior__": operator.ior,
    "__ixor__": operator.ixor,
    "__lshift__": operator.lshift,
    "__rshift__": operator.rshift,
    "__getitem__": operator.getitem,
}
_REFLECTED: Mapping[str, Function] = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul,
}
_UNARY: Mapping[str, Function] = {"neg": operator.neg, "__neg__": operator.neg, "__invert__": operator.invert}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNTRACED = _words(
    "requires_grad_ retain_grad register_hook _set_grad_enabled set_grad_enabled __repr__ __hash__ __dir__ is_tensor "
    "has_names data_ptr"
)
_DECIDES = _words("__bool__ __contains__ is_nonzero equal allclose")
_SELECTS = _words("__getitem__ nonzero argwhere where unique unique_consecutive masked_select")
_READS_NUMBERS = _words(
    "__int__ __float__ __index__ __complex__ __format__ __array__ item tolist numpy _pack_padded_sequence "
    "__dlpack__ __dlpack_device__"
)
_COUNTS = _SELECTS | _words("where bincount repeat_interleave tensor_split histc one_hot nms")
"""Calls for which the values of the tensors decide how large the result is, in some of their forms."""
_PLAIN_NUMBERS = _words("ndim dim ndimension __len__ element_size itemsize get_device __int__ __float__ __index__")
"""Calls whose number needs no node: it can't depend on the batch, or Python makes a plain number of it anyway."""
_RESHAPE = _words("squeeze_ unsqueeze_ transpose_ t_ swapaxes_ swapdims_")
"""Methods that write no element, but give a tensor another shape."""
_WRITERS = frozenset({"__setitem__", "_assert"})
"""Calls that return None, and are nodes all the same."""

_AROUND = "name a part to compile: region: backbone"
_BRANCH = (
    "a branch depends on the values of a tensor",
    "decide by shapes, or compute both sides and use torch.where; or " + _AROUND,
)
_NUMBER = (
    "a tensor's values are read as Python numbers",
    "keep the value a tensor; a graph can't hold what it was; or " + _AROUND,
)
_SIZE = (
    "the size of a result depends on the values of a tensor",
    "use a result of fixed size, such as a mask; or " + _AROUND,
)


_NO_KERNEL = (
    "torch can't tell from shapes alone what an operation gives",
    "register a meta kernel for it; or " + _AROUND,
)
_SHOWN: Mapping[str, str] = {
    "__int__": "int()",
    "__float__": "float()",
    "__index__": "an index",
    "__getitem__": "x[mask]",
    "__array__": "numpy.asarray()",
    "where": "torch.where(mask)",
    "_pack_padded_sequence": "pack_padded_sequence",
    "__dlpack_device__": "from_dlpack",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A function that was called, and the node that stands for it."""

    function: Function
    name: str
    kind: str
    target: Any
    order: tuple[int, ...] | None = None
    """The order of the arguments in the node, where it differs."""
    suffix: tuple[Any, ...] = ()
    """Further arguments of the node: the attribute's name, of `getattr`."""

    @property
    def untraced(self) -> bool:
        """Whether the call is about autograd or printing, so that it needs no node."""
        return self.name in _UNTRACED or (self.kind == "set" and self.target != "data")

    @property
    def reshaped(self) -> str:
        """The view that an in-place method amounts to: `unsqueeze` for `unsqueeze_`; empty for other calls."""
        return self.name.rstrip("_") if self.name in _RESHAPE else ""

    @property
    def reads_values(self) -> bool:
        """Whether the call needs the values of its tensors, not only their shapes."""
        return self.name in _DECIDES | _READS_NUMBERS | (_SELECTS - {"__getitem__"})

    def decides(self, args: Sequence[Any]) -> bool:
        """Whether the call asks a tensor's values for true or false."""
        of_bool = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.bool
        return self.name in _DECIDES or (self.name == "item" and of_bool)

    def on_meta(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments to run the call with: a device that is named in them is the meta device."""
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "meta"}
        if self.name == "to":
            args = tuple("meta" if isinstance(arg, str) else arg for arg in args)
        return args, kwargs

    @property
    def moves(self) -> bool:
        """Whether the call only takes its tensor to another device."""
        return self.name in {"cpu", "cuda"}

    def is_plain(self, value: Any) -> bool:
        """Whether user code gets this result as it is, without a node: bools, most strings, numbers that need none."""
        if isinstance(value, bool) or (value is None and self.name not in _WRITERS):
            return True
        if isinstance(value, int | float):
            return self.name in _PLAIN_NUMBERS
        return self.name == "tolist" or not (value is None or isinstance(value, torch.Tensor | tuple | list))

    def arrange(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The node's arguments, from those of the call."""
        if self.order is not None:
            args = tuple(args[i] for i in self.order)
        return (*args, *self.suffix), kwargs

    def complaint(self, *, in_arguments: bool = False, sized: bool = False) -> tuple[str, str]:
        """The error's message and hint where the call needs values that aren't known: its tensor's or, `in_arguments`,
        those of a tensor among the numbers that it is given. With `sized`, these decide the size of its result."""
        if self.name in _DECIDES:
            text, hint = _BRANCH
            return f"{text} (`if`, `while`, `and`, `in` or `assert` on it)", hint
        counts = sized or self.name in _COUNTS
        if in_arguments and not counts:
            return f"{_NUMBER[0]} (among the arguments of `{self.name}`)", _NUMBER[1]
        text, hint = _NUMBER if self.name in _READS_NUMBERS else _SIZE if counts else _NO_KERNEL
        shown = _SHOWN.get(self.name, f".{self.name}()" if self.kind == "call_method" else self.name)
        return f"{text} (`{shown}`)", hint


def with_dtype(function: Function, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """`x.type("torch.cuda.FloatTensor")` as `x.type(torch.float32)`: where a tensor lives is no matter of the graph."""
    given = args[1] if function is torch.Tensor.type and len(args) == 2 else None
    named = getattr(torch, given.rpartition(".")[2], None) if isinstance(given, str) else given
    return (args[0], named.dtype) if isinstance(named, type(torch.FloatTensor)) else args


def shown_type(name: str) -> str:
    """What `x.type()` is for a tensor on the meta device that stands for one on the CPU."""
    return name.replace("torch.meta.", "torch.") if name.startswith("torch.meta.") else name


def describe(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """The call of `function` on these arguments."""
    call = _spelled(function)
    if call.kind != "call_method" or kwargs:
        return call
    return _operator(function, len(args)) or call


@cache
def _spelled(function: Function) -> Call:
    name = getattr(function, "__name__", type(function).__name__)
    if name in {"__get__", "__set__"} and hasattr(function, "__self__"):
        attribute = _attribute(function.__self__)
        if name == "__set__":
            return Call(function, name, "set", attribute)
        return Call(function, attribute, "call_function", getattr, suffix=(attribute,))
    if name == "__setitem__":
        return Call(function, name, "call_function", operator.setitem)
    method = _methods().get(function)
    return Call(function, method or name, "call_method" if method else "call_function", method or function)


@cache
def _operator(function: Function, count: int) -> Call | None:
    """The operator that a method stands for, given its number of arguments; None where it stands for none."""
    name = _methods()[function]
    if count == 1 and name in _UNARY:
        return Call(function, name, "call_function", _UNARY[name])
    if count == 2 and name in _BINARY:
        return Call(function, name, "call_function", _BINARY[name])
    if count == 2 and name in _REFLECTED:
        return Call(function, name, "call_function", _REFLECTED[name], order=(1, 0))
    return None


@cache
def _methods() -> Mapping[Function, str]:
    """Every method of tensors -> its name, but for those that torch has as functions (its `split` is another)."""
    methods = {}
    for name in sorted(dir(torch.Tensor)):
        method = getattr(torch.Tensor, name)
        if callable(method) and not isinstance(method, type) and getattr(torch, name, None) is not method:
            methods[method] = name
    return methods


def _attribute(descriptor: Any) -> str:
    """The name of an attribute of tensors, from its descriptor or property."""
    return str(getattr(descriptor, "__name__", None) or descriptor.fget.__name__)
