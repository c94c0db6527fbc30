"""Shapes without arithmetic: runs functions and leaf modules on meta tensors, and remembers what came out.

Many of torch's meta kernels are written in Python and take a millisecond: as long as the real thing. A network repeats
itself, so what was asked before (the same function or layer, on the same shapes) is answered from memory. The layers
that keep their input's shape, convolutions, sums and concatenations of dense tensors aren't run at all: `metashapes`
knows what they give. One that works in place writes zeros, which marks its input as written to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx

from prunec.compiler.ir.modules import eval_copy, to_meta, unhooked
from prunec.compiler.tracing.calls import Call
from prunec.compiler.tracing.meta_model import StandIn
from prunec.compiler.tracing.metashapes import IN_PLACE, dense, function_shape, module_shape

_Template = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Unhashable(Exception):
    """An argument that no key can be made of."""


class MetaRunner:
    """Runs calls on the meta device for one trace."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Template] = {}

    def call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a function of tensors."""
        if (known := function_shape(call.target, args, kwargs)) is not None:
            return args[0].zero_() if call.target in IN_PLACE else dense(*known)
        return self._remembered(call.function, args, kwargs, lambda: call.function(*args, **kwargs))

    def module(self, standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a leaf module."""
        if len(args) == 1 and not kwargs and (shape := module_shape(standin.copy, args[0])) is not None:
            return args[0].zero_() if getattr(standin.copy, "inplace", False) else dense(shape, args[0].dtype)
        if standin.config is None:
            return _run(standin, args, kwargs)
        return self._remembered(standin.config, args, kwargs, lambda: _run(standin, args, kwargs))

    def _remembered(self, what: Hashable, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        try:
            key = (what, _signature(args), _signature(kwargs))
        except Unhashable:
            return run()
        if key in self._known:
            size, stride, dtype = self._known[key]
            return torch.empty_strided(size, stride, dtype=dtype, device="meta")
        value = run()
        if type(value) is torch.Tensor and not _shares_memory(value, (args, kwargs)):
            self._known[key] = value.size(), value.stride(), value.dtype
        return value


def _run(standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a leaf's copy. Where that fails, the layer itself is run on zeros: there may be no meta kernel for it, and
    if its input is at fault, its own message is clearer than the meta kernel's."""
    try:
        return standin.copy(*args, **kwargs)
    except (RuntimeError, NotImplementedError, ValueError):
        tensors = (*standin.original.parameters(), *standin.original.buffers())
        if any(tensor.is_meta for tensor in tensors):
            raise
        device = tensors[0].device if tensors else torch.device("cpu")
        real = _map_tensors((args, kwargs), lambda t: torch.zeros(t.size(), dtype=t.dtype, device=device))
        return _map_tensors(unhooked(eval_copy(standin.original))(*real[0], **real[1]), to_meta)


def _map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return fx.node.map_aggregate(value, lambda a: function(a) if isinstance(a, torch.Tensor) else a)


def _signature(value: Any) -> Hashable:
    """All of an argument that a result's shape can depend on."""
    if isinstance(value, torch.Tensor):
        return value.size(), value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_signature, value))
    if isinstance(value, dict):
        return tuple((key, _signature(item)) for key, item in value.items())
    if isinstance(value, slice):
        return "slice", value.start, value.stop, value.step
    if isinstance(value, Hashable):
        return type(value), value
    raise Unhashable


def _shares_memory(value: torch.Tensor, operands: Any) -> bool:
    """Whether a result is a view of an operand, or the operand itself: then it has to be made anew each time."""
    found: list[torch.Tensor] = []
    _map_tensors(operands, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    storage = value.untyped_storage()._cdata
    return any(storage == tensor.untyped_storage()._cdata for tensor in found)
