"""Shapes of results worked out from arguments: those of common layers, of arithmetic and means.

    Conv2d(3, 8, 3, stride=2) of [1, 3, 9, 9]        [1, 8, 4, 4]
    x * scale of [1, 8, 4, 4] and [1, 8, 1, 1]       [1, 8, 4, 4]
    cat([1, 8, 4, 4], [1, 2, 4, 4], dim 1)           [1, 10, 4, 4]

Closed forms are for dense (contiguous) floating-point tensors that fit; for everything else they give None. Other
functions are in `function_forms.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunec.compiler.ir.function_forms import form_of

Sizes = tuple[int, ...]
_Known = tuple[Sizes, torch.dtype] | None
"""Shape and dtype of a result; None where there is no closed form."""


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
