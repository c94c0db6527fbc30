"""How far two values are apart, relative to the size of the one that is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.verify.masks import FREE, REMOVED, Marked, plain


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


@dataclass(frozen=True)
class Comparison:
    """One node's value in both programs."""

    difference: float
    got: tuple[int, ...]
    want: tuple[int, ...]
    reordered: bool = False
    """The same elements, in another order."""


def compare_values(want: Any, got: Any, *, diagnose: bool = False) -> Comparison | None:
    """Two values of a node, the old one without its removed elements; None where that can't be told.

    Sizes and other numbers may well differ. Kept elements stand in the same order in both, whatever the shape.
    """
    olds = [leaf for leaf in pytree.tree_leaves(want) if isinstance(leaf, Tensor | Marked)]
    news = [leaf for leaf in pytree.tree_leaves(got) if isinstance(leaf, Tensor)]
    if not olds or len(olds) != len(news):
        return None
    found = [_compare_tensors(old, new, diagnose=diagnose) for old, new in zip(olds, news, strict=True)]
    known = [comparison for comparison in found if comparison is not None]
    return max(known, key=lambda comparison: comparison.difference) if len(known) == len(found) else None


def _compare_tensors(want: Tensor | Marked, got: Tensor, *, diagnose: bool) -> Comparison | None:
    if not got.numel() and not plain(want).numel():
        return Comparison(0.0, tuple(got.shape), tuple(got.shape))
    if not isinstance(want, Marked):
        return Comparison(leaf_difference(got, want), tuple(got.shape), tuple(want.shape))
    kept = want.kept
    if want.data.dtype == torch.int64 and bool((want.marks == REMOVED).all()):
        return None  # places among channels, which nothing reads
    if bool((want.marks == FREE).any()) and int(kept.sum()) != got.numel():
        return None
    shape = tuple(int(_any_but(kept, dim).sum()) for dim in range(kept.ndim)) if diagnose else ()
    old, new = _without_removed(want, kept), got.flatten()
    old, new = parts(old), parts(new)
    relative = leaf_difference(new, old)
    reordered = diagnose and leaf_difference(new.sort().values, old.sort().values) <= TOLERANCE[torch.float64]
    return Comparison(relative, tuple(got.shape), shape, reordered)


def _without_removed(value: Marked, kept: Tensor) -> Tensor:
    """The kept elements in row-major order; by whole slices where one dimension decides, which is much faster."""
    varying = [dim for dim, size in enumerate(value.marks.shape) if size > 1]
    if len(varying) != 1:
        return value.data[kept]
    places = (value.marks.flatten() != REMOVED).nonzero().flatten()
    return value.data.index_select(varying[0], places).flatten()


def _any_but(kept: Tensor, dim: int) -> Tensor:
    """Which positions of a dimension hold anything kept."""
    return kept.movedim(dim, 0).flatten(1).any(1) if kept.ndim > 1 else kept


Array = npt.NDArray[Any]

TOLERANCE: Final[Mapping[torch.dtype, float]] = {torch.float32: 1e-5, torch.float64: 1e-9}


@dataclass(frozen=True)
class Trial:
    """One comparison of outputs: the batch size, the inputs and the largest relative difference."""

    batch: int
    inputs: tuple[Any, ...]
    difference: float


def relative_difference(got: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest `max|got - expected| / max|expected|` of the outputs; infinite where shapes differ or a NaN is."""
    if [value.shape for value in got] != [value.shape for value in expected]:
        return float("inf")
    return max((_relative(one, other) for one, other in zip(got, expected, strict=True)), default=0.0)


def _relative(got: Array, expected: Array) -> float:
    if not expected.size:
        return 0.0
    reference = expected.astype(np.complex128 if np.iscomplexobj(expected) else np.float64)
    difference = float(np.abs(got - reference).max())
    scale = float(np.abs(reference).max())
    if difference == 0.0:
        return 0.0
    return difference / scale if scale and np.isfinite(difference) and np.isfinite(scale) else float("inf")
