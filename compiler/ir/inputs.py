"""Example inputs: a model's arguments by name, the tensors in them, and others like them.

    trace(model, (x, None, [a, b], True))       forward(image, mask=None, crops=(), fast=False)
      arguments    {"image": x, "crops": [a, b]}      each becomes an input of the program
      frozen       {"mask": None, "fast": True}       read by Python while the model is traced, and decided for good

An input is a tensor, or lists, tuples and mappings that hold some; what else they hold is decided like the frozen ones.
The program's inputs stand in the order of forward's parameters, whatever order a mapping names them in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import ModelError, nearest

Inputs = Sequence[Any] | Mapping[str, Any]
"""A model's arguments: in order, or by name."""

LITERALS: Final = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
"""What a call's arguments may hold besides tensors."""


@dataclass(frozen=True)
class Arguments:
    """A call of a model's forward, taken apart."""

    inputs: Mapping[str, Any]
    """The name of each input -> a tensor, or a nest that holds some; those of `*args` are numbered."""
    frozen: Mapping[str, Any]
    """The arguments that hold no tensor, by name."""
    bound: inspect.BoundArguments
    _names: Mapping[str, Any]

    def call(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the same call on other inputs."""
        bound = inspect.BoundArguments(self.bound.signature, type(self.bound.arguments)(self.bound.arguments))
        for name, spelled in self._names.items():
            value = bound.arguments[name]
            if isinstance(spelled, str):
                bound.arguments[name] = values.get(spelled, value)
            elif isinstance(spelled, dict):
                bound.arguments[name] = {key: values.get(name, value[key]) for key, name in spelled.items()}
            else:
                bound.arguments[name] = tuple(values.get(n, v) for n, v in zip(spelled, value, strict=True))
        return bound.args, bound.kwargs


def arguments(model: nn.Module, inputs: Any, named: Mapping[str, Any] | None = None) -> Arguments:
    """The example inputs by the names of forward's parameters; `named` are given by name beside those in order.

    Raises ModelError where they don't fit forward, hold something that is neither a tensor nor a literal, or no tensor.
    """
    signature = inspect.signature(model.forward)
    bound = _bind(model, signature, inputs, named or {})
    names: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for key, value in bound.arguments.items():
        kind = signature.parameters[key].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            names[key] = [f"{key}_{i}" for i in range(len(value))]
            flat.update(zip(names[key], value, strict=True))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            names[key] = {name: name for name in value}
            flat.update(value)
        else:
            names[key] = key
            flat[key] = value
    for name, value in flat.items():
        _check(name, value)
    found = {name: value for name, value in flat.items() if any(True for _ in tensors_in(value))}
    return Arguments(found, {name: value for name, value in flat.items() if name not in found}, bound, names)


def _bind(
    model: nn.Module, signature: inspect.Signature, inputs: Any, extra: Mapping[str, Any]
) -> inspect.BoundArguments:
    named = isinstance(inputs, Mapping)
    if not named and not isinstance(inputs, tuple | list):
        message = f"the example inputs must be a tuple of tensors, or a mapping by name, not {type(inputs).__name__}"
        raise ModelError(message, hint="for one input write (x,)")
    try:
        return signature.bind(**inputs, **extra) if named else signature.bind(*inputs, **extra)
    except TypeError as error:
        wanted = f"{type(model).__name__}.forward{signature}"
        unknown = next((name for name in inputs if name not in signature.parameters), None) if named else None
        hint = None if unknown is None else nearest(unknown, signature.parameters)
        raise ModelError(f"{len(inputs)} example inputs don't fit {wanted}: {error}", hint=hint) from error


def _check(name: str, value: Any) -> None:
    """Refuse what can neither be an input of a program nor be decided while it is traced."""
    for leaf in pytree.tree_leaves(value):
        if not isinstance(leaf, (torch.Tensor, *LITERALS)):
            raise ModelError(
                f"the example input '{name}' holds a {type(leaf).__name__}",
                hint="give tensors, numbers, strings and None, in lists, tuples or dicts",
            )


def tensors_in(inputs: Any) -> Iterator[torch.Tensor]:
    """The tensors in a nest of inputs, in order."""
    return (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor))


def map_tensors(function: Callable[[torch.Tensor], Any], inputs: Any) -> Any:
    """The same nest with the function applied to its tensors."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, inputs)


def batch_of(inputs: Any) -> int | None:
    """The size of the first tensor's first dimension; None where there is none."""
    return next((int(tensor.shape[0]) for tensor in tensors_in(inputs) if tensor.ndim), None)


def is_batched(tensor: torch.Tensor, batch: int | None) -> bool:
    """Whether the tensor's first dimension may be the batch."""
    return tensor.ndim > 0 and tensor.shape[0] == batch


def called(function: Callable[..., Any], inputs: Any) -> Any:
    """What a model gives for one batch of data: a tensor, a tuple of arguments, or a mapping of them by name."""
    if isinstance(inputs, Mapping):
        return function(**inputs)
    return function(*inputs) if isinstance(inputs, tuple | list) else function(inputs)


def names_of(name: str, value: Any) -> list[str]:
    """A name for each tensor of an input: its own, or with the keys that lead to it, `crops_0`, `tokens_mask`."""
    paths, _ = pytree.tree_flatten_with_path(value)
    return ["_".join([name, *map(_key_text, path)]) for path, leaf in paths if isinstance(leaf, torch.Tensor)]


def _key_text(key: Any) -> str:
    return str(getattr(key, "key", None) or getattr(key, "name", None) or getattr(key, "idx", 0))
