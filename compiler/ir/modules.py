"""What is asked of leaf modules: their tensors, shallow copies of them, their hooks, the mode that they are in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Final

import torch
from torch import nn

META: Final = torch.device("meta")


def module_tensors(name: str, module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a leaf module, with the module's name before their own."""
    # Most have no children; for these, torch's own search takes ten times as long.
    nested = bool(module._modules) or is_scripted(module)
    parameters = dict(module.named_parameters()) if nested else module._parameters
    buffers = dict(module.named_buffers()) if nested else module._buffers
    prefix = f"{name}." if name else ""
    for table in (parameters, buffers):
        for key, tensor in table.items():
            if tensor is not None:
                yield prefix + key, tensor


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """A model's modules by their first dotted names, as `nn.Module.named_modules` has them: that one hands each module
    through all of its parents, which takes longer the deeper it lies."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found[name] = module
        prefix = f"{name}." if name else ""
        children = [(prefix + key, child) for key, child in module._modules.items() if child is not None]
        waiting += reversed(children)
    return found


def is_scripted(module: Any) -> bool:
    """Whether a module is TorchScript, which nothing can look into or take apart: it is a leaf as it is."""
    return isinstance(module, torch.jit.ScriptModule)


def clone_module(module: nn.Module, tensors: Mapping[str, torch.Tensor] | None = None, **attributes: Any) -> nn.Module:
    """A shallow copy of a leaf module with some tensors and attributes replaced; all else is shared, but for what
    `compile()` has put in place of its forward, which goes on running the original.

    A replaced parameter stays a parameter (and keeps `requires_grad`), a replaced buffer stays a buffer. `None` takes
    the tensor out.
    """
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__.update(module.__dict__)
    copy.__dict__.pop("_compiled_call_impl", None)
    for table in ("_parameters", "_buffers", "_modules"):
        copy.__dict__[table] = dict(module.__dict__[table])
    for key, value in (tensors or {}).items():
        table = "_buffers" if key in module._buffers else "_parameters"
        if value is not None and table == "_parameters" and not isinstance(value, nn.Parameter):
            old = module._parameters.get(key)
            value = nn.Parameter(value, requires_grad=old is None or old.requires_grad)
        copy.__dict__[table][key] = value
    for key, value in attributes.items():
        setattr(copy, key, value)
    _refresh_flat_weights(copy)
    return copy


def _refresh_flat_weights(module: nn.Module) -> None:
    """A recurrent layer runs on a list of its weights, not on its attributes."""
    if isinstance(module, nn.RNNBase):
        module.__dict__["_flat_weights"] = [getattr(module, key) for key in module._flat_weights_names]


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same size, strides and type without data."""
    if tensor.layout != torch.strided:
        return tensor.to("meta")
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def unhooked(module: nn.Module) -> nn.Module:
    """A leaf module without its forward hooks, which the tracer calls itself, and without what `compile()` has put in
    place of its forward, which goes on reading the original. The module itself where it has neither."""
    if not (module._forward_hooks or module._forward_pre_hooks or "_compiled_call_impl" in module.__dict__):
        return module
    return clone_module(module, None, **{key: OrderedDict[Any, Any]() for key in HOOKS})


def eval_copy(module: nn.Module) -> nn.Module:
    """The module itself where all of it is in eval mode; else a copy in eval mode, which shares the tensors."""
    if not (module.training or module._modules or is_scripted(module)) or not any(
        part.training for part in module.modules()
    ):
        return module
    if is_scripted(module):
        return deepcopy(module).eval()
    copy = clone_module(module, training=False)
    copy.__dict__["_modules"] = {name: child and eval_copy(child) for name, child in module._modules.items()}
    return copy


def own_copy(module: nn.Module) -> nn.Module:
    """A copy whose parts may be in modes of their own; it shares the tensors."""
    if is_scripted(module):
        return deepcopy(module)
    copy = clone_module(module)
    copy.__dict__["_modules"] = {name: child and own_copy(child) for name, child in module._modules.items()}
    return copy


def with_own_tensors(state: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    """A program's state (leaf modules and tensors by dotted names) with copies of all its tensors, on a device where
    one is named; what is one tensor there is one here. Modules are copied as `own_copy` does."""
    memo: dict[int, torch.Tensor] = {}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in memo:
            own = tensor.detach().clone() if device is None else tensor.detach().to(device, copy=True)
            own = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
            memo[id(tensor)] = own
        return memo[id(tensor)]

    found = {name: own_copy(x) if isinstance(x, nn.Module) else x for name, x in state.items()}
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            found[name] = copied(value)
        elif is_scripted(value):
            if device is not None:
                value.to(device)
        elif isinstance(value, nn.Module):
            for part in value.modules():
                tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
                for table in tables:
                    table.update({key: copied(x) for key, x in table.items() if x is not None})
                _refresh_flat_weights(part)
    return found


def modes_of(module: nn.Module) -> Mapping[str, bool]:
    """The dotted name of every part of a module -> whether it is in train mode."""
    return {name: part.training for name, part in module.named_modules(remove_duplicate=False)}


def set_modes(module: nn.Module, modes: Mapping[str, bool]) -> None:
    """Put every part of a module in the mode of its name; one of an unknown name in that of the part that it is in."""
    for name, part in module.named_modules(remove_duplicate=False):
        known = name
        while known not in modes:
            known = known.rpartition(".")[0]
        part.training = modes[known]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A context in which the module is in eval mode; afterwards each part, which other models may share, has its own
    flag."""
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag


@contextmanager
def lent_copies(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """A context in which the tensors have copies of their memory: whatever is written into them is gone afterwards."""
    held = [(tensor, tensor.data) for tensor in tensors]
    try:
        for tensor, memory in held:
            tensor.data = memory.clone()
        yield
    finally:
        for tensor, memory in held:
            tensor.data = memory
