"""What a node calls and with which arguments, as the files that know operations by name ask for it.

x.relu_(), torch.relu(x), F.relu(x)     op_name         "relu"
x.mean(axis=1)                          argument        1, as `dim`
x[None, :, [0, 2]]                      index_dims      entry 1 indexes dimension 0, entry 2 dimension 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from prunec.compiler.ir.train_eval import by_mode


def words(text: str) -> list[str]:
    """The words of a text: for long lists of names."""
    return text.split()


_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
"""Custom operators, and torch's own below its functions, which take their arguments in other ways than these."""

_HOMES = ("torch", "_operator", "operator", "math", "builtins", "torchvision.ops")
"""Modules whose functions are known by their bare names; see `op_name`."""


def op_name(node: fx.Node) -> str:
    """The name of a node's function or method without a trailing underscore (`relu_` is `relu`).

    A function from elsewhere than torch and the standard library is named in full, so that a user's own `add` is never
    taken for torch's; so are operators of `torch.ops`, but for torchvision's.
    """
    target = node.target
    if isinstance(target, str):
        return target if target.startswith("__") else target.rstrip("_")
    name = _NAMES.get(target)
    if name is None:
        name = _name_of(target)
        if "." not in name:  # one of a library's: what a user wrote isn't kept alive
            _NAMES[target] = name
    return name


_NAMES: dict[Callable[..., Any], str] = {}


def _name_of(target: Callable[..., Any]) -> str:
    if isinstance(target, _OPERATORS):
        namespace, _, name = str(target).partition(".")
        return name.removesuffix(".default") if namespace == "torchvision" else str(target)
    name = getattr(target, "__name__", str(target))
    home = getattr(target, "__module__", None) or "torch"
    if target is not by_mode and home not in _HOMES and not home.startswith(("torch.", "torch._")):
        return f"{home}.{name}"
    return name if name.startswith("__") else name.rstrip("_")


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name, also by the name that numpy has for it."""
    if len(node.args) > position:
        return node.args[position]
    known = (name, *_NUMPY_NAMES.get(name, ()))
    return next((node.kwargs[key] for key in known if key in node.kwargs), default)


_NUMPY_NAMES: Mapping[str, tuple[str, ...]] = {"dim": ("axis",), "keepdim": ("keepdims",), "input": ("x", "a")}


def rank_of(node: fx.Node) -> int:
    """The rank of the node's value."""
    return len(shape_of_argument(node))


def shape_of_argument(value: object) -> tuple[int, ...]:
    """The shape of an argument that is a node with a tensor; () for a number."""
    known = value.meta.get("val") if isinstance(value, fx.Node) else value
    return (*known.shape,) if isinstance(known, torch.Tensor) else ()


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of that shape has."""
    return prod(shape)


def is_tensor(entry: object) -> bool:
    """Whether an argument or an index's entry is a tensor, or a node that gives one."""
    return isinstance(entry, torch.Tensor) or (
        isinstance(entry, fx.Node) and isinstance(entry.meta.get("val"), torch.Tensor)
    )


def index_dims(entries: Sequence[Any], rank: int) -> list[tuple[int, int]]:
    """(place in the index, dimension that it indexes) of every entry that indexes one: all but None and Ellipsis."""
    consuming = [i for i, e in enumerate(entries) if e is not None and e is not Ellipsis]
    dims: list[tuple[int, int]] = []
    dim = 0
    for place, entry in enumerate(entries):
        if entry is Ellipsis:
            dim = rank - sum(i > place for i in consuming)
        elif entry is not None:
            dims.append((place, dim))
            dim += 1
    return dims


def known_places(index: object) -> list[int] | None:
    """A list or vector of whole numbers as a list; of truth values, where these are true. None for anything else, and
    for a tensor without data."""
    if isinstance(index, torch.Tensor):
        if index.ndim != 1 or index.is_meta or index.is_floating_point() or index.dtype == torch.uint8:
            return None
        return [int(place) for place in (index.nonzero().flatten() if index.dtype == torch.bool else index).tolist()]
    if isinstance(index, list | tuple) and index and all(type(place) is bool for place in index):
        return [place for place, chosen in enumerate(index) if chosen]
    if not isinstance(index, list | tuple) or not index or any(type(place) is not int for place in index):
        return None
    return list(index)


def known(entry: Any) -> Any:
    """What an argument is for the example inputs: the value of a node, or the literal itself."""
    return entry.meta["val"] if isinstance(entry, fx.Node) else entry


def put(node: fx.Node, position: int, name: str, value: Any) -> None:
    """Replace an argument where it was given, by position or by name; the node is edited in place."""
    if len(node.args) > position:
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}
