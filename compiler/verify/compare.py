"""How far two values are apart, relative to the size of the one that is right."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def difference(got: Any, want: Any) -> float:
    """The largest relative difference between two nests of outputs; infinite where their structure isn't the same."""
    (new, new_spec), (old, old_spec) = pytree.tree_flatten(got), pytree.tree_flatten(want)
    if new_spec != old_spec:
        return float("inf")
    return max((leaf_difference(a, b) for a, b in zip(new, old, strict=True)), default=0.0)


def leaf_difference(got: Any, want: Any) -> float:
    """`difference` of two single values, tensors or not."""
    if not isinstance(want, Tensor):
        return 0.0 if got is want or got == want else float("inf")
    if not isinstance(got, Tensor) or got.shape != want.shape or _kind(got) != _kind(want):
        return float("inf")
    got, want = parts(got), parts(want)
    if not want.is_floating_point():
        return 0.0 if torch.equal(got, want) else float("inf")
    relative = _ratio(got, want)
    if math.isfinite(relative):
        return relative
    finite = want.isfinite()  # looked at only where something isn't: indexing by it is slow
    if not torch.allclose(got[~finite], want[~finite], equal_nan=True) or not bool(got[finite].isfinite().all()):
        return float("inf")
    return _ratio(got[finite], want[finite])


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def parts(tensor: Tensor) -> Tensor:
    """The parts of complex numbers; any other tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _ratio(got: Tensor, want: Tensor) -> float:
    """The largest distance over the largest magnitude; no number where the tensors hold any that aren't."""
    if not want.numel():
        return 0.0
    distance, scale = (max(-low, high) for low, high in (_bounds(got - want), _bounds(want)))
    if distance == 0 and math.isfinite(scale):
        return 0.0
    return distance / scale if scale else float("inf")


def magnitude(tensor: Tensor) -> float:
    """The largest finite magnitude of a tensor that isn't empty; in one pass where all are finite."""
    low, high = _bounds(tensor)
    if math.isfinite(low) and math.isfinite(high):
        return max(-low, high)
    return float(tensor.abs().nan_to_num(0.0, 0.0, 0.0).max())


def _bounds(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest element, found in one pass; no number where any isn't one."""
    low, high = tensor.aminmax()
    return float(low), float(high)
