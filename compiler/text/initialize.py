"""The modules and tensors of a program that was read from text: those that it gives values, and made-up ones.

module fc = Linear(4, 2)
value fc.weight = [[1, 0, 0, 0], [0, 1, 0, 0]]      as it says; `fc.bias` is made up
tie head.weight = fc.weight                         the very same tensor
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prunec.compiler.ir.program import State
from prunec.compiler.text.synthetic import fill_module, synthetic


def materialised(
    declared: Mapping[str, State], values: Mapping[str, torch.Tensor], ties: Mapping[str, str], *, training: bool
) -> dict[str, State]:
    """What was declared on the meta device, with values."""
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
