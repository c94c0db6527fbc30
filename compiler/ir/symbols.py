"""Functions by the names that a person writes, both ways: `F.gelu`, not `torch._C._nn.gelu`.

    function_name(torch.nn.functional.gelu)   "F.gelu"
    resolve_function("F.gelu")                torch.nn.functional.gelu
    INFIX[operator.add]                       "+"

Programs as text and emitted source spell functions so. Reading a text runs them on meta tensors, so a name resolves
through tables of pure functions alone: what can be overridden on tensors, tensor factories, arithmetic. `torch.load`
and its like aren't in them.
"""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import math
import operator
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx.node import _get_qualified_name

from prunec.compiler.ir.operations import operation_of
from prunec.compiler.ir.train_eval import by_mode

INFIX: Mapping[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
    operator.lshift: "<<",
    operator.rshift: ">>",
    operator.lt: "<",
    operator.le: "<=",
    operator.eq: "==",
    operator.ne: "!=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.is_: "is",
    operator.is_not: "is not",
}
IN_PLACE: Mapping[Any, str] = {
    operator.iadd: "+=",
    operator.isub: "-=",
    operator.imul: "*=",
    operator.itruediv: "/=",
    operator.ifloordiv: "//=",
    operator.imod: "%=",
    operator.ipow: "**=",
    operator.iand: "&=",
    operator.ior: "|=",
    operator.ixor: "^=",
}
PREFIX: Mapping[Any, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~", operator.not_: "not "}
RENAMED: Mapping[Any, str] = {operator.abs: "abs", operator.truth: "bool", torch._assert: "torch._assert"}

NAMESPACES: tuple[tuple[str, ModuleType | type], ...] = (
    ("F", F),
    ("torch", torch),
    ("torch.linalg", torch.linalg),
    ("torch.fft", torch.fft),
    ("torch.special", torch.special),
    ("torch.Tensor", torch.Tensor),
    ("math", math),
    ("operator", operator),
    ("", builtins),
)
"""Where public names are looked for, and the prefix that each is written with; the first that has a function wins."""
LIBRARIES = frozenset({"torch", "torchvision"})
"""What an emitted file may import."""

Function = Callable[..., Any]

_BUILTINS = frozenset({
    "abs", "all", "any", "bool", "dict", "divmod", "float", "getattr", "int", "isinstance", "len", "list", "max",
    "min", "pow", "range", "round", "slice", "sorted", "str", "sum", "tuple", "zip",
})  # fmt: skip

_TORCH = frozenset({
    "arange", "as_strided", "as_tensor", "asarray", "bartlett_window", "blackman_window", "broadcast_shapes",
    "can_cast", "empty", "empty_strided", "eye", "fill", "full", "hamming_window", "hann_window",
    "is_grad_enabled", "is_tensor", "kaiser_window", "linspace", "logspace", "mm", "normal", "ones", "promote_types",
    "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "range", "result_type",
    "scalar_tensor", "spmm", "tensor", "tril_indices", "triu_indices", "vander", "zeros",
})  # fmt: skip
"""Functions of `torch` that make tensors or ask about types, and others that aren't listed as overridable."""

_FORBIDDEN = frozenset({"operator.call", "operator.attrgetter", "operator.itemgetter", "operator.methodcaller"})
"""Functions that call, or read an attribute of, whatever they are given."""

OP_NAMESPACES = frozenset({"aten", "prims", "torchvision"})


def function_name(target: Function) -> str:
    """The public name of a call target; for a function that has none, where it was defined."""
    return "by_mode" if target is by_mode else public_name(target) or str(_get_qualified_name(target))


def resolve_function(name: str) -> Function | None:
    """The function of that name, or `None` where the name isn't one that a text may call."""
    if name.startswith("torch.ops."):
        return _resolve_op(name.split(".")[2:])
    if name.startswith("torchvision.ops."):
        return _torchvision().get(name)
    return _functions().get(name.removeprefix("builtins."))


def function_names() -> Iterable[str]:
    """The names that resolve, but for the open-ended `torch.ops`: for the hints of error messages."""
    return _functions().keys()


@cache
def _functions() -> Mapping[str, Function]:
    """Name -> function, from the namespaces that the emitter spells functions by."""
    table: dict[str, Function] = {"torch._assert": torch._assert, "by_mode": by_mode}
    pure = set(torch.overrides.get_testing_overrides())  # by equality: a builtin may be several objects
    for prefix, namespace in NAMESPACES:
        for name, value in inspect.getmembers_static(namespace):
            full = f"{prefix}.{name}" if prefix else name
            if callable(value) and not name.startswith("_") and _is_allowed(prefix, name, value, pure):
                table[full] = value
    return {name: value for name, value in table.items() if name not in _FORBIDDEN}


def _is_allowed(prefix: str, name: str, value: Any, pure: set[Function]) -> bool:
    if not prefix:
        return name in _BUILTINS
    if inspect.isclass(value):
        return False
    if prefix == "torch":
        in_place = inspect.isbuiltin(value) and name.endswith("_")
        return in_place or name in _TORCH or (isinstance(value, Hashable) and value in pure)
    return prefix != "torch.Tensor" or inspect.ismethoddescriptor(value)


@cache
def _torchvision() -> Mapping[str, Function]:
    """torchvision's operators; empty where it isn't installed."""
    if importlib.util.find_spec("torchvision") is None:
        return {}
    members = vars(importlib.import_module("torchvision.ops"))
    return {f"torchvision.ops.{name}": value for name, value in members.items() if inspect.isfunction(value)}


def _resolve_op(path: list[str]) -> Function | None:
    """`aten.relu.default` or `aten.relu` -> the operator; of others than torch's, only those that are registered."""
    if not 2 <= len(path) <= 3 or any(part.startswith("_") for part in path):
        return None
    found: Any = torch.ops
    for part in path:
        found = getattr(found, part, None)
    known = path[0] in OP_NAMESPACES or operation_of(found) is not None
    return found if callable(found) and known else None


def public_name(target: Callable[..., Any]) -> str | None:
    """How a user of torch writes a function or class: `F.gelu`, `torch.linalg.norm`, `torchvision.ops.roi_align`."""
    if target in RENAMED:
        return RENAMED[target]
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"torch.ops.{target!s}"
    return _index_of_names().get(id(target)) or _name_by_module(target)


@cache
def _index_of_names() -> dict[int, str]:
    """Function or class -> public name, for all that torch, math and the builtins offer; the first namespace wins."""
    found: dict[int, str] = {}
    for prefix, namespace in NAMESPACES:
        for name, value in vars(namespace).items():
            if callable(value) and not name.startswith("_") and not (namespace is F and isinstance(value, type)):
                found.setdefault(id(value), f"{prefix}.{name}" if prefix else name)
    return found


def _name_by_module(target: Callable[..., Any]) -> str | None:
    """The shortest importable path of a function that one of the libraries defines in Python."""
    parts = (getattr(target, "__module__", None) or "").split(".")
    name = getattr(target, "__qualname__", "")
    if parts[0] not in LIBRARIES or not name.isidentifier() or name.startswith("_"):
        return None
    for length in range(1, len(parts) + 1):
        path = ".".join(parts[:length])
        private = any(part.startswith("_") for part in parts[:length])
        if not private and getattr(importlib.import_module(path), name, None) is target:
            return f"{path}.{name}"
    return None
