"""What a call gives on the meta device: from a closed form, from memory, or by running torch's meta kernel.

    Conv2d(3, 8, 3, stride=2) of [1, 3, 9, 9]        [1, 8, 4, 4]       closed form (`module_shape`)
    BatchNorm2d(8) of [1, 8, 4, 4]                   [1, 8, 4, 4]       closed form
    cat([1, 8, 4, 4], [1, 2, 4, 4], dim 1)           [1, 10, 4, 4]      closed form (`function_shape`)
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
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from prunec.compiler.ir.modules import eval_copy, is_scripted, to_meta, unhooked
from prunec.compiler.tracing.calls import Call
from prunec.compiler.tracing.closed_forms import form_of
from prunec.compiler.tracing.containers import leaves
from prunec.compiler.tracing.meta_model import StandIn

_Template = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Size, strides and dtype of a result."""


Sizes = tuple[int, ...]
_Known = tuple[Sizes, torch.dtype] | None
"""Shape and dtype of a result; None where there is no closed form."""


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

    def module(self, standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a leaf module."""
        if type(standin.copy) in _IDENTITIES and len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            return args[0]
        if len(args) == 1 and not kwargs and (shape := module_shape(standin.copy, args[0])) is not None:
            return args[0].zero_() if getattr(standin.copy, "inplace", False) else dense(shape, args[0].dtype)
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


def dense(sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous meta tensor."""
    return torch.empty(sizes, dtype=dtype, device="meta")


Rule = Callable[[Any, torch.Tensor], Sizes | None]
"""The shape that a layer of some class gives for an input; None where the input doesn't fit."""


def module_shape(module: nn.Module, x: Any) -> Sizes | None:
    """The shape that a leaf module gives, with its input's dtype; None where there is no closed form."""
    rule = _MODULES.get(type(module))
    if rule is None or not _is_dense(x) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if any(p is not None and not (p.dtype == x.dtype and p.is_contiguous()) for p in module._parameters.values()):
        return None
    return rule(module, x)


def function_shape(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Known:
    """The shape and dtype that a function gives; None where there is no closed form."""
    rule = _FUNCTIONS.get(target) if isinstance(target, Hashable) else None
    return rule(args, kwargs) if rule is not None else form_of(target, args, kwargs)


def _combined(args: Sequence[Any], kwargs: Mapping[str, Any], *, in_place: bool = False) -> _Known:
    """Of arithmetic on two tensors of which one has the result's shape, or on a tensor and a number."""
    if len(args) != 2 or kwargs or not _is_dense(args[0]):
        return None
    left, right = args
    if type(right) in (int, float):
        return tuple(left.shape), left.dtype
    if not _is_dense(right) or left.dtype != right.dtype or left.ndim != right.ndim:
        return None
    if all(a == b or b == 1 for a, b in zip(left.shape, right.shape, strict=True)):
        return tuple(left.shape), left.dtype
    fits = not in_place and all(a in (1, b) for a, b in zip(left.shape, right.shape, strict=True))
    return (tuple(right.shape), left.dtype) if fits else None


def _averaged(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Known:
    """Of a mean over some dimensions."""
    if not 1 <= len(args) <= 3 or not kwargs.keys() <= {"dim", "keepdim"} or not _is_dense(args[0]):
        return None
    x, given = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
    dims = given if isinstance(given, tuple | list) else (given,)
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if not dims or not all(type(dim) is int and -x.ndim <= dim < x.ndim for dim in dims) or type(keep) is not bool:
        return None
    over = {dim % x.ndim for dim in dims}
    if len(over) < len(dims):
        return None
    sizes = [1 if d in over else size for d, size in enumerate(x.shape) if keep or d not in over]
    return tuple(sizes), x.dtype


def _is_dense(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.is_contiguous()


def _joined(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Known:
    parts = args[0] if args else None
    dim = args[1] if len(args) == 2 else kwargs.get("dim", 0)
    if not (isinstance(parts, list | tuple) and parts and len(args) + len(kwargs) <= 2 and kwargs.keys() <= {"dim"}):
        return None
    first = parts[0]
    if not (all(_is_dense(p) for p in parts) and type(dim) is int and -first.ndim <= dim < first.ndim):
        return None
    dim %= first.ndim
    rest = (*first.shape[:dim], *first.shape[dim + 1 :])
    if any((*p.shape[:dim], *p.shape[dim + 1 :]) != rest or p.dtype != first.dtype for p in parts):
        return None
    return (*first.shape[:dim], sum(p.shape[dim] for p in parts), *first.shape[dim + 1 :]), first.dtype


def _adaptive(rank: int, x: torch.Tensor, given: Any) -> Sizes | None:
    """The shape that adaptive pooling to `given` sizes gives."""
    sizes = (given,) * rank if isinstance(given, int) else given
    if x.ndim != rank + 2 or not isinstance(sizes, tuple | list) or len(sizes) != rank or 0 in x.shape:
        return None
    left = tuple(before if size is None else size for before, size in zip(x.shape[2:], sizes, strict=True))
    return (*x.shape[:2], *left) if all(type(size) is int and size > 0 for size in left) else None


def _pooled_to(rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Known:
    if len(args) != 2 or kwargs or not _is_dense(args[0]):
        return None
    sizes = _adaptive(rank, *args)
    return None if sizes is None else (sizes, args[0].dtype)


def _pool(rank: int) -> Rule:
    """The closed form of a layer that takes the mean or the maximum of windows."""

    def sizes(module: Any, x: torch.Tensor) -> Sizes | None:
        if x.ndim != rank + 2 or getattr(module, "return_indices", False) or 0 in x.shape:
            return None
        if getattr(module, "divisor_override", None) is not None:
            return None
        names = ("kernel_size", "stride", "padding", "dilation")
        given = [getattr(module, name, 1) for name in names]
        spread = [(value,) * rank if isinstance(value, int) else tuple(value) for value in given]
        left = tuple(map(partial(_windows, ceil=module.ceil_mode), x.shape[2:], *spread))
        return (*x.shape[:2], *left) if len(left) == rank and min(left) > 0 else None

    return sizes


def _windows(size: int, kernel: int, stride: int, pad: int, dilation: int, *, ceil: bool) -> int:
    """How many windows of a pooling there are; 0 where torch refuses."""
    if stride < 1 or pad < 0 or 2 * pad > kernel:
        return 0
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= size + pad else count


def _convolution(module: Any, x: torch.Tensor) -> Sizes | None:
    rank = len(module.kernel_size)
    if x.ndim != rank + 2 or x.shape[1] != module.in_channels or isinstance(module.padding, str):
        return None
    if module.padding_mode != "zeros":
        return None
    windows = zip(x.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation, strict=True)
    sizes = tuple(
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, pad, dilation in windows
    )
    return (x.shape[0], module.out_channels, *sizes) if min(sizes) > 0 else None


def _kept_if(fits: Callable[[Any, torch.Tensor], bool]) -> Rule:
    return lambda module, x: tuple(x.shape) if fits(module, x) else None


def _batch_norm(*ranks: int) -> Rule:
    return _kept_if(lambda module, x: x.dim() in ranks and x.shape[1] == module.num_features)


IN_PLACE = frozenset({operator.iadd, operator.isub, operator.imul})
"""Functions that write their result into their first operand."""
_FUNCTIONS: Mapping[Any, Callable[[Sequence[Any], Mapping[str, Any]], _Known]] = {
    torch.cat: _joined,
    **dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv), _combined),
    **dict.fromkeys(IN_PLACE, partial(_combined, in_place=True)),
    **dict.fromkeys(("mean", torch.mean), _averaged),
    F.adaptive_avg_pool1d: partial(_pooled_to, 1),
    F.adaptive_avg_pool2d: partial(_pooled_to, 2),
    F.adaptive_avg_pool3d: partial(_pooled_to, 3),
}
"""What a node calls -> the closed form of its result."""


_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softplus,
)
_MODULES: Mapping[type[nn.Module], Rule] = {
    **dict.fromkeys(_ACTIVATIONS, lambda module, x: tuple(x.shape)),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    nn.BatchNorm1d: _batch_norm(2, 3),
    nn.BatchNorm2d: _batch_norm(4),
    nn.BatchNorm3d: _batch_norm(5),
    nn.LayerNorm: _kept_if(lambda m, x: tuple(x.shape[-len(m.normalized_shape) :]) == m.normalized_shape),
    nn.GroupNorm: _kept_if(lambda m, x: x.dim() >= 2 and x.shape[1] == m.num_channels),
    nn.Linear: lambda m, x: (*x.shape[:-1], m.out_features) if x.ndim and x.shape[-1] == m.in_features else None,
    nn.AdaptiveAvgPool1d: lambda m, x: _adaptive(1, x, m.output_size),
    nn.AdaptiveAvgPool2d: lambda m, x: _adaptive(2, x, m.output_size),
    nn.AdaptiveAvgPool3d: lambda m, x: _adaptive(3, x, m.output_size),
    **dict.fromkeys((nn.AvgPool1d, nn.MaxPool1d), _pool(1)),
    **dict.fromkeys((nn.AvgPool2d, nn.MaxPool2d), _pool(2)),
    **dict.fromkeys((nn.AvgPool3d, nn.MaxPool3d), _pool(3)),
}
"""Layer -> its closed form."""

_IDENTITIES = frozenset((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout))
"""Layers that give back their input itself in eval mode, the mode of all copies."""
