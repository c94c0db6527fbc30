"""The functions that a program's text may call, by the names that a person writes: `F.gelu`, not `torch._C._nn.gelu`.

    function_name(torch.nn.functional.gelu)   "F.gelu"
    resolve_function("F.gelu")                torch.nn.functional.gelu

A text names functions, and reading it runs them on meta tensors, so a name resolves through tables of pure functions
alone: what can be overridden on tensors, tensor factories, arithmetic. `torch.load` and its like aren't in them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch.fx.node import _get_qualified_name

from prunec.compiler.emit.expressions import NAMESPACES, public_name
from prunec.compiler.ir.train_eval import by_mode

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
"""What calls or reads whatever it is given."""

_OP_NAMESPACES = frozenset({"aten", "prims", "torchvision"})


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
    """`aten.relu.default` or `aten.relu` -> the operator."""
    if not 2 <= len(path) <= 3 or path[0] not in _OP_NAMESPACES or any(part.startswith("_") for part in path):
        return None
    found: Any = torch.ops
    for part in path:
        found = getattr(found, part, None)
    return found if callable(found) else None
