"""How far two values are apart: `max|got - want| / max|want|`, infinite where shapes or structure differ.

difference(got, want)             outputs of a model, nested as it returns them
compare_values(want, got)         one node's value: the masked reference's and the slim program's
relative_difference(got, want)    lists of numpy arrays, such as the outputs of an ONNX file

want  [a  b  c  d]    marks  K R K K      of a masked value only kept elements count, in row-major order:
got   [a' c' d']                          (a, c, d) against (a', c', d')
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.verify.masks import REMOVED, Lined, Marked, leaves_of, plain

Array = npt.NDArray[Any]

TOLERANCE: Final[Mapping[torch.dtype, float]] = {torch.float32: 1e-5, torch.float64: 1e-9}
"""The largest relative difference that passes, by the dtype in which both programs are run."""


@dataclass(frozen=True)
class Trial:
    """One comparison of outputs: the batch size, the inputs and the largest relative difference."""

    batch: int
    inputs: tuple[Any, ...]
    difference: float


@dataclass(frozen=True)
class Comparison:
    """A node's value in the rewritten program against the reference's: relative difference, and both shapes."""

    difference: float
    got: tuple[int, ...]
    want: tuple[int, ...]
    """The reference's shape without what is removed; () where it wasn't asked for (`diagnose`)."""
    reordered: bool = False
    """Whether both hold the same elements in another order; found out only with `diagnose`."""
    size: float = 0.0
    """The largest finite magnitude of what the reference keeps."""


def difference(got: Any, want: Any) -> float:
    """The largest relative difference between two nests of outputs; infinite where their structure isn't the same."""
    (new, new_spec), (old, old_spec) = pytree.tree_flatten(got), pytree.tree_flatten(want)
    if new_spec != old_spec:
        return float("inf")
    return max((leaf_difference(a, b) for a, b in zip(new, old, strict=True)), default=0.0)


def leaf_difference(got: Any, want: Any) -> float:
    """`difference` of two leaves. Integers, booleans and what isn't a tensor must be equal: 0.0, or infinite."""
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
    """Whether a tensor is of floating-point or of complex numbers; within a kind, dtypes may differ in width."""
    return tensor.is_floating_point(), tensor.is_complex()


def parts(tensor: Tensor) -> Tensor:
    """A complex tensor as real numbers, [..., 2]; any other tensor unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _ratio(got: Tensor, want: Tensor) -> float:
    """`max|got - want| / max|want|`; NaN or infinite where a tensor holds NaN or infinity."""
    if not want.numel():
        return 0.0
    distance, scale = (max(-low, high) for low, high in (_bounds(got - want), _bounds(want)))
    if distance == 0 and math.isfinite(scale):
        return 0.0
    return distance / scale if scale else float("inf")


def magnitude(tensor: Tensor) -> float:
    """The largest finite `|x|` of a tensor that isn't empty; one pass over the data where all elements are finite."""
    low, high = _bounds(tensor)
    if math.isfinite(low) and math.isfinite(high):
        return max(-low, high)
    return float(tensor.abs().nan_to_num(0.0, 0.0, 0.0).max())


def _bounds(tensor: Tensor) -> tuple[float, float]:
    """The minimum and the maximum, in one pass; NaN if any element is."""
    low, high = tensor.aminmax()
    return float(low), float(high)


def compare_values(want: Any, got: Any, *, diagnose: bool = False) -> Comparison | None:
    """Compare a node's value in the reference (`want`, with marks) with its value in the rewritten program (`got`).

    Only kept elements are compared, in row-major order, which removal doesn't change; leaves that aren't tensors, such
    as sizes, may differ. None where the two can't be matched. `diagnose` fills in the details of a `Comparison`.
    """
    olds = [leaf for leaf in leaves_of(want) if isinstance(leaf, Tensor | Marked)]
    news = [leaf for leaf in leaves_of(got) if isinstance(leaf, Tensor)]
    if not olds or len(olds) != len(news):
        return None
    found = [_compare_tensors(old, new, diagnose=diagnose) for old, new in zip(olds, news, strict=True)]
    known = [comparison for comparison in found if comparison is not None]
    if len(known) < len(found):
        return None
    worst = max(known, key=lambda comparison: comparison.difference)
    return replace(worst, size=max(comparison.size for comparison in known)) if len(known) > 1 else worst


def _compare_tensors(want: Tensor | Marked, got: Tensor, *, diagnose: bool) -> Comparison | None:
    if not got.numel() and not plain(want).numel():
        return Comparison(0.0, tuple(got.shape), tuple(got.shape))
    if not isinstance(want, Marked):
        relative, size = _difference_and_size(got, want)
        return Comparison(relative, tuple(got.shape), tuple(want.shape), size=size)
    if want.data.dtype == torch.int64 and bool((want.marks == REMOVED).all()):
        return None  # indices of channels (argmax), which no node reads
    if want.has_free and int(want.kept.sum()) != got.numel():
        return None
    old = kept_elements(want)
    shape = tuple(int(_any_but(want.kept, dim).sum()) for dim in range(want.data.ndim)) if diagnose else ()
    old, new = (old, got) if old.shape == got.shape else (old.flatten(), got.flatten())
    relative, size = _difference_and_size(new, old)
    old, new = parts(old).flatten(), parts(new).flatten()
    reordered = diagnose and leaf_difference(new.sort().values, old.sort().values) <= TOLERANCE[torch.float64]
    return Comparison(relative, tuple(got.shape), shape, reordered, size)


def kept_elements(value: Tensor | Marked) -> Tensor:
    """The elements that aren't removed, in row-major order: of the value's rank, or flat.

    By whole slices, which is faster, where one dimension decides.
    """
    if not isinstance(value, Marked):
        return value
    if isinstance(value, Lined) and (lines := value.lines.along_each()) is not None:
        data = value.data
        for dim, line in enumerate(lines):
            data = _picked(data, dim, line) if len(line) > 1 else data
        return data
    varying = [dim for dim, size in enumerate(value.marks.shape) if size > 1]
    if len(varying) != 1:
        return value.data[value.kept]
    return _picked(value.data, varying[0], value.marks.flatten())


def _picked(data: Tensor, dim: int, marks: Tensor) -> Tensor:
    """The positions of a dimension that aren't removed."""
    places = torch.from_numpy(np.flatnonzero(marks.numpy() != REMOVED)).to(data.device)
    if dim < data.ndim - 1 or not data.numel():
        return data.index_select(dim, places)
    rows = data.reshape(-1, data.shape[-1])  # of a matrix, torch picks columns ten times as fast
    return rows.index_select(1, places).reshape(*data.shape[:-1], len(places))


def _difference_and_size(got: Tensor, want: Tensor) -> tuple[float, float]:
    """`leaf_difference`, and the largest finite magnitude of `want`; one pass over each where all is finite."""
    if got.shape == want.shape and got.dtype == want.dtype and want.is_floating_point() and want.numel():
        distance, size = (max(-low, high) for low, high in (_bounds(got - want), _bounds(want)))
        if math.isfinite(distance) and math.isfinite(size) and size:
            return distance / size, size
    return leaf_difference(got, want), magnitude(want) if want.is_floating_point() and want.numel() else 0.0


def _any_but(kept: Tensor, dim: int) -> Tensor:
    """[size of `dim`]: which positions of a dimension hold a kept element."""
    return kept.movedim(dim, 0).flatten(1).any(1) if kept.ndim > 1 else kept


def relative_difference(got: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest `max|got - expected| / max|expected|` of the outputs, over their finite numbers; infinite where
    shapes differ, or where one isn't finite and the other isn't the same."""
    if [value.shape for value in got] != [value.shape for value in expected]:
        return float("inf")
    return max((_relative(one, other) for one, other in zip(got, expected, strict=True)), default=0.0)


def _relative(got: Array, expected: Array) -> float:
    reference = expected.astype(np.complex128 if np.iscomplexobj(expected) else np.float64)
    finite = np.isfinite(reference)
    if not finite.all():
        if not np.array_equal(got[~finite], reference[~finite], equal_nan=True):
            return float("inf")
        got, reference = got[finite], reference[finite]
    if not reference.size:
        return 0.0
    difference = float(np.abs(got - reference).max())
    scale = float(np.abs(reference).max())
    if difference == 0.0:
        return 0.0
    return difference / scale if scale and np.isfinite(difference) else float("inf")
