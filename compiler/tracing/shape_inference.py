"""What a call gives on the meta device: from a closed form, from memory, or by running torch's meta kernel.

    Conv2d(3, 8, 3, stride=2) of [1, 3, 9, 9]        [1, 8, 4, 4]       closed form (`ir/closed_forms.py`)
    BatchNorm2d(8) of [1, 8, 4, 4]                   [1, 8, 4, 4]       closed form
    cat([1, 8, 4, 4], [1, 2, 4, 4], dim 1)           [1, 10, 4, 4]      closed form
    AvgPool2d(2) of [1, 8, 4, 4]                     [1, 8, 2, 2]       closed form
    Upsample(scale_factor=2) of [1, 8, 4, 4]         [1, 8, 8, 8]       run; from memory when it comes again

Many of torch's meta kernels are written in Python and take a millisecond: as long as the real thing. A network repeats
itself, so what was asked before (the same function or layer, on the same shapes) is answered from memory.

Closed forms are for dense (contiguous) floating-point tensors that fit. For everything else they give None, and the
layer is run, which complains where the input is wrong. A call that works in place writes zeros into its input, which
marks it as written to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.ir.closed_forms import IN_PLACE, dense, function_shape, module_shape
from prunec.compiler.ir.modules import eval_copy, is_scripted, to_meta, unhooked
from prunec.compiler.tracing.calls import Call
from prunec.compiler.tracing.containers import leaves
from prunec.compiler.tracing.meta_model import StandIn

_Template = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Size, strides and dtype of a result."""


class Unhashable(Exception):
    """An argument that can't be part of a key."""


class MetaRunner:
    """Runs calls on the meta device for one trace, and remembers their results."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Template] = {}

    def call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a function of tensors."""
        if (known := function_shape(call.target, args, kwargs)) is not None:
            return args[0].zero_() if call.target in IN_PLACE else dense(*known)
        return self._remembered(call.function, args, kwargs, lambda: call.function(*args, **kwargs))

    def closed_form(self, module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, bool] | None:
        """The value of a leaf module that has a closed form, and whether that is its input, written into."""
        shape = module_shape(module, x)
        if shape is None:
            return None
        return (x.zero_(), True) if getattr(module, "inplace", False) else (dense(shape, x.dtype), False)

    def module(self, standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a leaf module."""
        if type(standin.copy) in _IDENTITIES and len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            return args[0]
        if len(args) == 1 and not kwargs and (known := self.closed_form(standin.copy, args[0])) is not None:
            return known[0]
        if is_scripted(standin.original):
            return on_zeros(standin.original, args, kwargs)
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
    """Run a leaf's copy. Where that fails, run the layer itself on zeros: there may be no meta kernel for it; and where
    the input is at fault, its own message is clearer."""
    try:
        return standin.copy(*args, **kwargs)
    except (RuntimeError, NotImplementedError, ValueError):
        tensors = (*standin.original.parameters(), *standin.original.buffers())
        if any(tensor.is_meta for tensor in tensors):
            raise
        return on_zeros(standin.original, args, kwargs)


def on_zeros(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """What a layer gives for tensors of these shapes, on the meta device: it is run on zeros, in eval mode."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    real = _map_tensors((args, kwargs), lambda t: torch.zeros(t.size(), dtype=t.dtype, device=device))
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return _map_tensors(unhooked(eval_copy(module))(*real[0], **real[1]), to_meta)


def shapes_on_data(function: Callable[..., Any], args: Any, kwargs: Any) -> set[str]:
    """The shapes that a call gives on zeros, ones and random numbers in the place of its meta tensors: none where it
    fails on these, too; several where its result's size depends on values."""
    found: list[torch.Tensor] = []
    _map_tensors((args, kwargs), lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    if not found or sum(tensor.numel() for tensor in found) > _MOST_DATA:
        return set()
    shapes = set()
    for fill in (torch.zeros, torch.ones, _drawn):
        real = _map_tensors((args, kwargs), partial(_filled, fill))
        try:
            with torch.random.fork_rng(devices=[]):
                value = function(*real[0], **real[1])
        except Exception:  # the call's own fault, which is told as such
            continue
        shapes.add(str([tensor.shape for tensor in leaves(value) if isinstance(tensor, torch.Tensor)]))
    return shapes


def _filled(fill: Callable[..., torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    return fill(tensor.size(), dtype=tensor.dtype)


def _drawn(size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(size.numel()) % 3).reshape(size).to(dtype)


_MOST_DATA = 10**7
"""Elements of a call's tensors up to which it is tried on data."""


def _map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return fx.node.map_aggregate(value, lambda a: function(a) if isinstance(a, torch.Tensor) else a)


def _signature(value: Any) -> Hashable:
    """All of an argument that a result's shape can depend on, as part of a key."""
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
    """Whether a result is a view of an operand, or the operand itself: such a result isn't remembered."""
    found: list[torch.Tensor] = []
    _map_tensors(operands, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    storage = value.untyped_storage()._cdata
    return any(storage == tensor.untyped_storage()._cdata for tensor in found)


_IDENTITIES = frozenset((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout))
"""Layers that give back their input itself in eval mode, the mode of all copies."""
