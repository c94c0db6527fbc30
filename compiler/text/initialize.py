"""Gives values to what a program's text declares: those that the text spells out, and made-up ones for all else.

    module fc = Linear(4, 2)
    value fc.weight = [[1, 0, 0, 0], [0, 1, 0, 0]]      as it says; `fc.bias` is made up
    tie head.weight = fc.weight                         the very same tensor

A made-up tensor depends on its name and shape alone. The scales are those of a trained network, so that what flows
through it stays near one: a weight has variance 1 / fan-in, a norm's weight lies around one, a running variance is
positive.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.ir.inputs import map_tensors, names_of
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.program import State


def materialised(
    declared: Mapping[str, State], values: Mapping[str, torch.Tensor], ties: Mapping[str, str], *, training: bool
) -> dict[str, State]:
    """The state that a text declares, with values: `declared` holds modules and tensors on the meta device, `values`
    the tensors that are spelled out, `ties` name -> the name whose tensor it shares."""
    state: dict[str, State] = {}
    for name, value in declared.items():
        if isinstance(value, nn.Module):
            state[name] = fill_module(name, value.to_empty(device="cpu"), values).train(training)
            continue
        tensor = values.get(name, synthetic(name, value))
        is_parameter = isinstance(value, nn.Parameter)
        state[name] = nn.Parameter(tensor, requires_grad=value.requires_grad) if is_parameter else tensor
    for name, other in ties.items():
        _put(state, name, _get(state, other))
    return state


def _get(state: Mapping[str, State], name: str) -> torch.Tensor:
    owner, key = _place(state, name)
    found = state[name] if owner is None else getattr(owner, key)
    assert isinstance(found, torch.Tensor), f"'{name}' is no tensor"
    return found


def _put(state: dict[str, State], name: str, tensor: torch.Tensor) -> None:
    owner, key = _place(state, name)
    if owner is None:
        state[name] = tensor
    else:
        setattr(owner, key, tensor)


def _place(state: Mapping[str, State], name: str) -> tuple[nn.Module | None, str]:
    """The module that holds a tensor, and the tensor's name there; no module for a tensor of the state itself."""
    if name in state:
        return None, name
    for prefix, value in state.items():
        if isinstance(value, nn.Module) and name.startswith(f"{prefix}."):
            path, _, key = name.removeprefix(f"{prefix}.").rpartition(".")
            return value.get_submodule(path), key
    raise AssertionError(f"'{name}' is in no module of the text")


def synthetic(name: str, like: torch.Tensor) -> torch.Tensor:
    """A made-up tensor of the shape and type of `like`, seeded by its name; integers are zero (they count batches)."""
    if not (like.is_floating_point() or like.is_complex()):
        return torch.zeros(like.shape, dtype=like.dtype)
    generator = _generator(name)
    key = name.rpartition(".")[2]
    shape = tuple(like.shape)
    if key == "running_var":
        return (0.5 + torch.rand(shape, generator=generator)).to(like.dtype)
    normal = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        fan_in = max(math.prod(shape[1:]), 1)
        return (normal / math.sqrt(fan_in)).to(like.dtype)
    if key == "weight":
        return (1 + 0.1 * normal).to(like.dtype)
    return (0.1 * normal if "." in name else normal).to(like.dtype)


def fill_module(name: str, module: nn.Module, given: Mapping[str, torch.Tensor]) -> nn.Module:
    """Give every tensor of a module its value, in place: the given one, or a made-up one. Returns the module."""
    with torch.no_grad():
        for key, tensor in module_tensors(name, module):
            tensor.copy_(given[key] if key in given else synthetic(key, tensor))
    return module


def example_inputs(graph: fx.Graph) -> Iterator[Any]:
    """An example input for each placeholder that takes tensors."""
    values = ((str(node.target), node.meta["val"]) for node in graph.find_nodes(op="placeholder"))
    return (example_input(name, value) for name, value in values if names_of(name, value))


def example_input(name: str, like: Any) -> Any:
    """A seeded example like the value on the meta device (a tensor, or a nest of them): normal numbers, or 0 and 1,
    which index any table of two rows."""
    names = iter(names_of(name, like))
    return map_tensors(lambda tensor: _example(next(names), tensor), like)


def _example(name: str, like: torch.Tensor) -> torch.Tensor:
    if like.is_floating_point() or like.is_complex():
        return torch.randn(tuple(like.shape), generator=_generator(name)).to(like.dtype)
    return torch.randint(0, 2, tuple(like.shape), generator=_generator(name)).to(like.dtype)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))
