"""What functions and methods give beside those of `closed_forms.py`, worked out from their arguments.

    F.relu(x) of [1, 8, 4, 4]                        [1, 8, 4, 4]
    F.avg_pool2d(x, 2) of [1, 8, 5, 4]               [1, 8, 2, 2]
    q @ k of [1, 2, 5, 4] and [1, 2, 4, 5]           [1, 2, 5, 5]

The first of torch's meta kernels in Python that runs imports torch's compiler and sympy, which takes as long as
importing torch. The forms here are for dense (contiguous) floating-point tensors that fit; for all else they give None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F

Sizes = tuple[int, ...]
Form = tuple[Sizes, torch.dtype]
"""The shape and dtype of a result, which is contiguous."""


def is_dense(x: Any) -> bool:
    """Whether a value is a tensor that the closed forms are for."""
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.is_contiguous()


def form_of(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """The shape and dtype that a function or method gives; None where there is no closed form."""
    try:
        rule = _FUNCTIONS.get(target)
        return None if rule is None else rule(*args, **kwargs)
    except (
        TypeError,
        ValueError,
    ):  # arguments that the form doesn't know, or that don't fit: the call itself will tell
        return None


# -- functions -----------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _compared(left: Any, right: Any) -> Form | None:
    """A comparison of two tensors, or of a tensor and a number."""
    if not is_dense(left) or not (is_dense(right) or _is_number(right)):
        return None
    shape = np.broadcast_shapes(left.shape, right.shape) if isinstance(right, torch.Tensor) else left.shape
    return tuple(shape), torch.bool


def _kept(x: Any) -> Form | None:
    return (tuple(x.shape), x.dtype) if is_dense(x) else None


def _activation(x: Any, *options: Any, **named: Any) -> Form | None:
    """An elementwise function whose options are numbers or words; `inplace` is none of them."""
    plain = all(value is False or type(value) in (int, float, str) for value in (*options, *named.values()))
    return _kept(x) if plain and named.keys() <= {"inplace", "approximate", "negative_slope", "alpha"} else None


def _softmax(x: Any, dim: int, _stacklevel: int = 3) -> Form | None:
    return _kept(x) if is_dense(x) and type(dim) is int and -x.ndim <= dim < x.ndim else None


def _layer_norm(x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Form | None:
    shape = tuple(shape)
    fits = is_dense(x) and shape and tuple(x.shape[-len(shape) :]) == shape
    given = [value for value in (weight, bias) if value is not None]
    alike = all(is_dense(v) and tuple(v.shape) == shape and v.dtype == x.dtype for v in given)
    return _kept(x) if fits and alike else None


def _linear(x: Any, weight: Any, bias: Any = None) -> Form | None:
    if not (is_dense(x) and is_dense(weight) and x.ndim and weight.ndim == 2 and x.shape[-1] == weight.shape[1]):
        return None
    if weight.dtype != x.dtype or not (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype)):
        return None
    return (*x.shape[:-1], weight.shape[0]), x.dtype


def _product(left: Any, right: Any) -> Form | None:
    """A product of (stacks of) matrices."""
    if not (is_dense(left) and is_dense(right) and left.dtype == right.dtype and min(left.ndim, right.ndim) >= 2):
        return None
    if left.shape[-1] != right.shape[-2]:
        return None
    stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return (*stack, left.shape[-2], right.shape[-1]), left.dtype


def _attention(query: Any, key: Any, value: Any, *, dropout_p: float = 0.0, is_causal: bool = False) -> Form | None:
    """Attention without a mask; its operands needn't be contiguous, since it multiplies copies of them."""
    tensors = (query, key, value)
    if not all(isinstance(t, torch.Tensor) and t.ndim == 4 and t.is_floating_point() for t in tensors):
        return None
    if len({t.dtype for t in tensors}) > 1 or len({t.shape[:2] for t in tensors}) > 1 or not query.numel():
        return None
    if query.shape[3] != key.shape[3] or key.shape[2] != value.shape[2] or not _is_number(dropout_p):
        return None
    return (*query.shape[:3], value.shape[3]), query.dtype


# -- pooling -------------------------------------------------------------------------------------------------------


def _numbers(value: Any, rank: int) -> Sizes | None:
    """A size that is given once for all dimensions, or for each; None for anything else."""
    found = (value,) * rank if isinstance(value, int) else tuple(value)
    found = found * rank if len(found) == 1 else found
    return found if len(found) == rank and all(type(size) is int for size in found) else None


def _windows(rank: int, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, rounded_up: Any) -> Form | None:
    """Pooling by windows."""
    given = [_numbers(v, rank) for v in (kernel, kernel if stride in (None, (), []) else stride, padding, dilation)]
    if rounded_up or not is_dense(x) or x.ndim not in (rank + 1, rank + 2) or not x.numel() or None in given:
        return None
    sizes = []
    for size, k, step, pad, spread in zip(x.shape[-rank:], *(each or () for each in given), strict=True):
        if min(k, step, spread) < 1 or not 0 <= 2 * pad <= k:
            return None
        sizes.append((size + 2 * pad - spread * (k - 1) - 1) // step + 1)
    return ((*x.shape[:-rank], *sizes), x.dtype) if min(sizes) > 0 else None


def _average(
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: Any = False,
    count_include_pad: bool = True,
    divisor_override: None = None,
) -> Form | None:
    return None if divisor_override is not None else _windows(rank, x, kernel_size, stride, padding, 1, ceil_mode)


def _largest(
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    return_indices: Any = False,
) -> Form | None:
    return None if return_indices else _windows(rank, x, kernel_size, stride, padding, dilation, ceil_mode)


def _adaptive(rank: int, x: Any, output_size: Any, return_indices: Any = False) -> Form | None:
    """Pooling to a given size; None in it keeps the input's."""
    if return_indices or not is_dense(x) or x.ndim not in (rank + 1, rank + 2) or not x.numel():
        return None
    wanted = (output_size,) * rank if isinstance(output_size, int) else tuple(output_size)
    if len(wanted) != rank:
        return None
    sizes = [old if new is None else new for new, old in zip(wanted, x.shape[-rank:], strict=True)]
    return ((*x.shape[:-rank], *sizes), x.dtype) if all(type(s) is int and s > 0 for s in sizes) else None


def _names(text: str, *homes: Any) -> list[Any]:
    """The functions of these names, and the names themselves for the methods."""
    return [*(getattr(home, name) for name in text.split() for home in homes if hasattr(home, name)), *text.split()]


_FUNCTIONS: Final[Mapping[Any, Callable[..., Form | None]]] = {
    **dict.fromkeys((operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne), _compared),
    **dict.fromkeys(_names("relu sigmoid tanh", torch, F), _activation),
    **dict.fromkeys((F.gelu, F.silu, F.mish, F.relu6, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu), _activation),
    **dict.fromkeys(_names("exp log sqrt rsqrt abs neg sin cos erf", torch), _kept),
    operator.neg: _kept,
    **dict.fromkeys(_names("softmax", torch, F), _softmax),
    F.layer_norm: _layer_norm,
    F.linear: _linear,
    operator.matmul: _product,
    **dict.fromkeys(_names("matmul bmm", torch), _product),
    F.scaled_dot_product_attention: _attention,
    torch.roll: lambda x, shifts, dims: _kept(x),
    **{getattr(F, f"avg_pool{rank}d"): partial(_average, rank) for rank in (1, 2, 3)},
    **{getattr(F, f"max_pool{rank}d"): partial(_largest, rank) for rank in (1, 2, 3)},
    **{getattr(F, f"adaptive_max_pool{rank}d"): partial(_adaptive, rank) for rank in (1, 2, 3)},
}
"""Function or method -> its closed form, which takes its arguments."""
