"""What common layers and functions give, in closed form: a shape, without running anything.

    Conv2d(3, 8, 3, stride=2) of [1, 3, 9, 9]        [1, 8, 4, 4]
    BatchNorm2d(8) of [1, 8, 4, 4]                   [1, 8, 4, 4]
    cat([1, 8, 4, 4], [1, 2, 4, 4], dim 1)           [1, 10, 4, 4]

Only for dense (contiguous) floating-point tensors that fit; for everything else the answer is `None`, and whoever asked
runs the layer, which complains where the input is wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

Sizes = tuple[int, ...]


def dense(sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor without data."""
    return torch.empty(sizes, dtype=dtype, device="meta")


def module_shape(module: nn.Module, x: Any) -> Sizes | None:
    """The shape that a leaf module gives, in new memory (or in place where it is `inplace`), with its input's type."""
    rule = _MODULES.get(type(module))
    if rule is None or not _is_dense(x) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if any(p is not None and not (p.dtype == x.dtype and p.is_contiguous()) for p in module._parameters.values()):
        return None
    return rule(module, x)


def function_shape(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sizes, torch.dtype] | None:
    """The shape and type that a function gives."""
    if target is torch.cat:
        return _joined(args, kwargs)
    if target in _SUMS and len(args) == 2 and not kwargs:
        left, right = args
        if _is_dense(left) and _is_dense(right) and left.shape == right.shape and left.dtype == right.dtype:
            return tuple(left.shape), left.dtype
    return None


IN_PLACE = frozenset({operator.iadd, operator.isub, operator.imul})
"""Functions that write what they give into their first operand."""
_SUMS = IN_PLACE | {operator.add, operator.sub, operator.mul}


def _is_dense(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.is_contiguous()


def _joined(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sizes, torch.dtype] | None:
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


Rule = Callable[[Any, torch.Tensor], Sizes | None]


def _kept_if(fits: Callable[[Any, torch.Tensor], bool]) -> Rule:
    return lambda module, x: tuple(x.shape) if fits(module, x) else None


def _batch_norm(*ranks: int) -> Rule:
    return _kept_if(lambda module, x: x.dim() in ranks and x.shape[1] == module.num_features)


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
}
