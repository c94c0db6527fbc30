"""A stand-in for a model that has every tensor's shape and no tensor's data.

    model.layer1[0].conv.weight     [64, 64, 3, 3] on the CPU
    copy.layer1[0].conv.weight      the same on the meta device, still a parameter, known as "layer1.0.conv.weight"

The copy shares everything else that it can with the model: containers are rebuilt, so that a forward that appends to
a list or sets an attribute does so on the copy, and whatever is in them is shared. Modules get their final form before
their attributes are filled in, so shared modules and back references come out as in the original.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunec.compiler.ir.modules import HOOKS, META, is_scripted, named_modules, to_meta
from prunec.compiler.ir.operations import OPERATIONS, operation_of
from prunec.compiler.ir.wrappers import wrapped
from prunec.compiler.tracing import lowering
from prunec.compiler.tracing.layouts import attributes_that
from prunec.compiler.tracing.rebinding import Swap
from prunec.compiler.tracing.symbolic_numbers import Refused

_TABLES = ("_parameters", "_buffers", "_modules")
_TRACED_THROUGH = frozenset(
    home.__name__ for home in (nn.modules.container, nn.modules.transformer, nn.modules.padding)
)
"""Files of torch whose modules are traced through: they only call other modules, or a function whose literals may have
to change with the widths."""
_DICTS = frozenset((dict, OrderedDict))
_CONTAINERS = _DICTS | {list, set}
_EMPTY = _DICTS | {set}
_ATOMS = frozenset((int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device))
_not_plain = attributes_that(lambda key, kind: kind not in _ATOMS)


@dataclass(frozen=True)
class StandIn:
    """A module's copy, and what the tracer needs to know of the module."""

    name: str
    original: nn.Module
    copy: nn.Module
    leaf: bool
    hooks: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    """A leaf's hooks, which the tracer runs itself; the hooks of other modules run when their copies are called."""

    @cached_property
    def config(self) -> Hashable | None:
        """All that a leaf's output shape may depend on besides its inputs; `None` where that can't be told."""
        return _config(self.copy)


@dataclass(frozen=True)
class MetaCopy:
    """A model's stand-in. `modules` is keyed by the ids of original and copy alike."""

    root: nn.Module
    modules: Mapping[int, StandIn]
    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Dotted name -> (the original parameter or buffer, its stand-in)."""

    @property
    def originals(self) -> Iterator[nn.Module]:
        """The model's modules."""
        return (standin.original for standin in self.modules.values())


def meta_copy(model: nn.Module, named: Mapping[str, nn.Module] | None = None) -> MetaCopy:
    """Copy a model onto the meta device, in eval mode. Raises `Refused` for modules that can't be copied so.

    `named` are its `named_modules`, where these are known.
    """
    originals = _looked_into(named_modules(model) if named is None else named)
    copies = {id(module): _blank(module) for module in originals.values()}
    tensors = {name: (tensor, _meta_like(name, tensor)) for name, tensor in _named_tensors(originals)}
    standins = {**copies, **{id(tensor): copy for tensor, copy in tensors.values()}}
    swap, by_class = Swap(standins), not OPERATIONS.made()
    kinds: dict[type, _Kind] = {}
    modules: dict[int, StandIn] = {}
    for name, module in originals.items():
        copy = copies[id(module)]
        if copy is module:
            modules[id(module)] = StandIn(name, module, module, leaf=True)
            continue
        if not by_class or type(module) not in kinds:
            kinds[type(module)] = _kind_of(module)
        kind = kinds[type(module)]
        _fill(module, copy, standins, swap)
        if kind.forward is not None:
            copy.__dict__["forward"] = partial(kind.forward, copy)
        leaf = kind.leaf and bool(name)
        hooks = _take_hooks(copy) if leaf else _NONE
        modules[id(module)] = modules[id(copy)] = StandIn(name, module, copy, leaf, hooks)
    return MetaCopy(copies[id(model)], modules, tensors)


_NONE: Final[Mapping[str, Mapping[int, Any]]] = {}


def _take_hooks(leaf: nn.Module) -> Mapping[str, Mapping[int, Any]]:
    """Take the hooks off a leaf's copy; returns them."""
    own = leaf.__dict__
    hooks = {key: own[key] for key in HOOKS if own.get(key)}
    own.update({key: OrderedDict() for key in hooks})
    return hooks


class _Kind(NamedTuple):
    """What a module's class says of it."""

    leaf: bool
    forward: Callable[..., Any] | None
    """What stands for its forward, called with the module's copy first; None where that stays."""


def _kind_of(module: nn.Module) -> _Kind:
    return _Kind(is_leaf(module), _call_wrapped if wrapped(module) is not None else lowering.MODULES.get(type(module)))


def _looked_into(found: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """The modules of a model by name, without what is in scripted ones."""
    scripted = tuple(f"{name}." for name, module in found.items() if name and is_scripted(module))
    return {name: module for name, module in found.items() if not name.startswith(scripted)} if scripted else found


def _named_tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter, then every buffer, by its first name: as `named_parameters`, in one walk over the modules."""
    seen: set[int] = set()
    for table in ("_parameters", "_buffers"):
        for prefix, module in modules.items():
            if is_scripted(module):
                continue
            for key, tensor in module.__dict__[table].items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield (f"{prefix}.{key}" if prefix else key), tensor


def is_leaf(module: nn.Module) -> bool:
    """Whether a module becomes one node: torch's own do, except containers and what `tracing.lowering` writes out; so
    do modules that a package has registered as operations."""
    home = type(module).__module__
    torchs = home.startswith(("torch.nn.", "torch.ao.nn.")) and home not in _TRACED_THROUGH
    opened = type(module) in lowering.MODULES or wrapped(module) is not None
    return (torchs and not opened) or operation_of(module) is not None


def _blank(module: nn.Module) -> nn.Module:
    """An instance of the module's class without attributes; a scripted part itself."""
    return module if is_scripted(module) else object.__new__(module.__class__)


_NOT_PLAIN: Final[Mapping[str, Callable[[torch.Tensor], bool]]] = {
    "quantised": lambda tensor: tensor.is_quantized,
    "nested": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout != torch.strided,
}


def _meta_like(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) in _USUAL and tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested):
        meta = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)
        plain = type(tensor) is torch.Tensor
        return meta if plain else torch.Tensor._make_subclass(nn.Parameter, meta, tensor.requires_grad)
    if is_lazy(tensor):
        raise Refused(f"{name} has no size yet", "run the model once, so that its lazy layers know their inputs")
    kind = next((word for word, is_so in _NOT_PLAIN.items() if is_so(tensor)), None)
    if kind is not None:
        raise Refused(f"'{name}' is {kind}, and channels are taken out of plain tensors", "make it a dense tensor")
    meta = to_meta(tensor)
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


_USUAL: Final = frozenset((torch.Tensor, nn.Parameter))


def _fill(module: nn.Module, copy: nn.Module, standins: Mapping[int, Any], swap: Swap) -> None:
    """Give a blank copy its tensors, its children and its other attributes."""
    own = module.__dict__
    attributes = own.copy()
    for key, kind in _not_plain(own):
        value = own[key]
        if kind in _EMPTY and not value and key.startswith("_"):
            attributes[key] = kind()
        elif key in _TABLES:
            attributes[key] = {k: standins.get(id(v), v) for k, v in value.items()}
        elif kind is not tuple or not _ATOMS.issuperset(map(type, value)):
            attributes[key] = swap.nest(value)
    attributes["training"] = False
    attributes.pop("_compiled_call_impl", None)  # it would run the original
    copy.__dict__.update(attributes)


def _call_wrapped(wrapper: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What stands for a wrapper's forward."""
    inner = wrapped(wrapper)
    assert inner is not None, "it is a wrapper"
    return inner(*args, **kwargs)


def _is_plain(value: Any) -> bool:
    """Whether an attribute is an immutable value that holds no module and no tensor."""
    kind = type(value)
    return kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, value)))


def _config(module: nn.Module) -> Hashable | None:
    """The class, attributes and tensor shapes of a leaf; None where it has children, hooks or unknown attributes."""
    if module._modules or module._forward_hooks or module._forward_pre_hooks:
        return None
    attributes = []
    for key, value in module.__dict__.items():
        if _is_plain(value):
            attributes.append((key, value))
        elif key not in _TABLES and (type(value) not in _CONTAINERS or value):
            return None
    tensors = (*module._parameters.items(), *module._buffers.items())
    shapes = tuple((key, None if t is None else (t.shape, t.dtype)) for key, t in tensors)
    return type(module), tuple(attributes), shapes
