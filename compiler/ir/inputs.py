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
from prunec.compiler.ir.modules import is_scripted

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
    in_order: tuple[str, ...]
    """The names of those that were given by position; the others were given by keyword."""

    def call(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the same call, each given as it was, with other values for these inputs."""
        given = {name: values.get(name, value) for name, value in (*self.frozen.items(), *self.inputs.items())}
        args = tuple(given.pop(name) for name in self.in_order)
        return args, given


def arguments(model: nn.Module, inputs: Any, named: Mapping[str, Any] | None = None) -> Arguments:
    """The example inputs by the names of forward's parameters; `named` are given by name beside those in order.

    Raises ModelError where they don't fit forward, hold something that is neither a tensor nor a literal, or no tensor.
    """
    flat = _named(model, inputs, named or {})
    for name, value in flat.items():
        _check(name, value)
    found = {name: value for name, value in flat.items() if any(True for _ in tensors_in(value))}
    frozen = {name: value for name, value in flat.items() if name not in found}
    in_order = () if isinstance(inputs, Mapping) else names_in_order(model.forward, len(inputs))
    return Arguments(found, frozen, in_order)


def by_name(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names of the function's parameters, in their order; those of `*args` are numbered.

    A decorator may take keywords that the function behind it doesn't have, and give some that the call leaves out: the
    former come last. Raises TypeError where the arguments don't fit.
    """
    signature, decorated = inspect.signature(function), hasattr(function, "__wrapped__")
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    taken: Mapping[str, Any] = kwargs
    if decorated and inspect.Parameter.VAR_KEYWORD not in kinds.values():
        taken = {name: value for name, value in kwargs.items() if name in kinds}
    bound = signature.bind_partial(*args, **taken) if decorated else signature.bind(*args, **taken)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
            given.update({f"{name}_{i}": item for i, item in enumerate(value)})
        else:
            given.update(value if kinds[name] is inspect.Parameter.VAR_KEYWORD else {name: value})
    return given | {name: value for name, value in kwargs.items() if name not in taken}


def names_in_order(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    """The names that `by_name` gives to the first `count` arguments that a call gives by position."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
    return tuple(names[:count] + [f"{rest}_{i}" for i in range(count - len(names))])


def _named(model: nn.Module, inputs: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    if is_scripted(model):
        message = f"{type(model).__name__}: the model is a scripted module"
        raise ModelError(message, hint="give the module that was scripted instead")
    named = isinstance(inputs, Mapping)
    if not named and not isinstance(inputs, tuple | list):
        message = f"the example inputs must be a tuple of tensors, or a mapping by name, not {type(inputs).__name__}"
        raise ModelError(message, hint="for one input write (x,)")
    try:
        return by_name(model.forward, *(((), {**inputs, **extra}) if named else (inputs, extra)))
    except TypeError as error:
        signature = inspect.signature(model.forward)
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
