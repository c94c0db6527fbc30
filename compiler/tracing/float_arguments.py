"""Whole numbers that stand where a function takes a float: TorchScript refuses what Python takes.

F.hardtanh(x, 0, 6)                  ->   F.hardtanh(x, 0.0, 6.0)
F.interpolate(x, scale_factor=2)     ->   F.interpolate(x, scale_factor=2.0)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args

import torch
from torch import fx


def write_floats(graph: fx.Graph) -> None:
    """Make floats of the whole numbers that a graph gives to functions of torch as floats; it is edited in place."""
    for node in graph.nodes:
        if node.op != "call_function" or not any(map(_has_int, (*node.args, *node.kwargs.values()))):
            continue
        floats = _floats(node.target)
        for place, given in enumerate(node.args):
            if place in floats and _has_int(given):
                node.update_arg(place, _as_float(given))
        for name, given in node.kwargs.items():
            if name in floats and _has_int(given):
                node.update_kwarg(name, _as_float(given))


def _has_int(given: Any) -> bool:
    return type(given) is int or (isinstance(given, tuple | list) and any(type(item) is int for item in given))


def _as_float(given: Any) -> Any:
    if isinstance(given, tuple | list):
        return type(given)(float(item) if type(item) is int else item for item in given)
    return float(given)


@cache
def _floats(function: Callable[..., Any]) -> frozenset[int | str]:
    """The places and names of a function's arguments that are floats, or lists of them, and nothing else."""
    if not str(getattr(function, "__module__", None) or "torch").startswith("torch"):
        return frozenset()
    found: Mapping[str, bool] = _declared(function)
    return frozenset(key for place, name in enumerate(found) if found[name] for key in (place, name))


def _declared(function: Callable[..., Any]) -> dict[str, bool]:
    """Each argument -> whether it is a float, by the signature of a Python function or torch's schema."""
    if inspect.isfunction(function):
        return {key: _is_float(found) for key, found in inspect.signature(function).parameters.items()}
    name = torch.jit._builtins._find_builtin(function)  # type: ignore[no-untyped-call]
    schemas = torch._C._jit_get_schemas_for_operator(name) if name else []
    if len(schemas) != 1:
        return {}
    return {argument.name: str(argument.type) in ("float", "Optional[float]") for argument in schemas[0].arguments}


def _is_float(found: inspect.Parameter) -> bool:
    if found.annotation is found.empty:
        return isinstance(found.default, float)
    kinds = {kind for kind in get_args(found.annotation) if kind is not type(None)} or {found.annotation}
    return kinds <= {float, list[float]}
