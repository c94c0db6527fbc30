"""A layer's least squares from sums over its rows: nothing of the rows themselves is kept.

    u [rows, p]   what the layer reads for one output position          t [rows, o]   what it should give there

    A = E[u u^T] - E[u] E[u]^T        B = E[u t^T] - E[u] E[t]^T        all sums in float64
    W = (A + r I)^-1 (B + r W0)       b = E[t] - E[u] W                 r = ridge * mean(diag A)

The ridge pulls towards the weights `W0` that are there. It is the one with the least error on rows that weren't fitted;
then all rows are fitted with it. Weights that are right only as differences of large numbers (of an input that hardly
varies, and the bias against it) are no solution, since rounding them to their type shows: the next best ridge is taken.
A grouped convolution is as many least squares side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

CLOSE: Final = 1e-6
"""What rounding may change of what a layer gives, as a share."""
RIDGES: Final = (1e-12, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean variance of what is read. The first serves where what is gone can be told from what is left."""


@dataclass
class Moments:
    """Sums over rows, for `groups` least squares of `p` inputs and `o` outputs each, in float64."""

    count: int
    inputs: Tensor
    """[groups, p]: the sum of u."""
    targets: Tensor
    """[groups, o]: the sum of t."""
    gram: Tensor
    """[groups, p, p]: the sum of u u^T."""
    cross: Tensor
    """[groups, p, o]: the sum of u t^T."""
    squares: Tensor
    """[groups, o]: the sum of t^2."""

    @staticmethod
    def none(groups: int, p: int, o: int, device: torch.device | None = None) -> Moments:
        """The sums over no rows."""
        shapes = (groups, p), (groups, o), (groups, p, p), (groups, p, o), (groups, o)
        return Moments(0, *(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, u: Tensor, t: Tensor) -> None:
        """Add rows: u [rows, groups, p], t [rows, groups, o]."""
        u, t = u.double().movedim(0, 1), t.double().movedim(0, 1)
        self.count += u.shape[1]
        self.inputs += u.sum(1)
        self.targets += t.sum(1)
        self.gram += u.transpose(1, 2) @ u
        self.cross += u.transpose(1, 2) @ t
        self.squares += t.square().sum(1)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.inputs + other.inputs,
            self.targets + other.targets,
            self.gram + other.gram,
            self.cross + other.cross,
            self.squares + other.squares,
        )

    def through(self, spread: Tensor) -> Moments:
        """The sums of one least squares, had it read u @ spread [p, q] in place of u."""
        gram, cross = spread.T @ self.gram @ spread, spread.T @ self.cross
        return Moments(self.count, self.inputs @ spread, self.targets, gram, cross, self.squares)

    @property
    def is_finite(self) -> bool:
        """Whether no row had an infinite value or NaN."""
        return all(bool(x.isfinite().all()) for x in (self.gram, self.cross, self.squares))

    def error(self, fit: Fit) -> Tensor:
        """[groups, o]: the mean of (t - u W - b)^2; rounding may leave it a little below zero."""
        w, b = fit.weight, fit.bias
        apart = self.squares - 2 * (w * self.cross).sum(1) + (w * (self.gram @ w)).sum(1)
        read = (self.inputs.unsqueeze(1) @ w).squeeze(1)
        return (apart + 2 * b * (read - self.targets)) / self.count + b.square()

    def size(self, fit: Fit) -> Tensor:
        """[groups, o]: the sum of the squares of all that is added up for an output, on average."""
        read = self.gram.diagonal(dim1=1, dim2=2) / self.count
        return (read.unsqueeze(2) * fit.weight.square()).sum(1) + fit.bias.square()

    def limit(self, old: Fit, weights: Tensor, precision: float) -> float:
        """How large the weighted sum of `size` may be, for weights of this relative precision."""
        size = float(((self.squares / self.count + self.size(old)) * weights).sum())
        return size * growth(precision) ** 2


def growth(precision: float) -> float:
    """How many times larger than what comes out may be what is added up: rounding makes errors of `CLOSE` then."""
    return max(CLOSE / precision, 10.0)


@dataclass(frozen=True)
class Fit:
    """The weights of a layer: it gives u W + b."""

    weight: Tensor
    """[groups, p, o]."""
    bias: Tensor
    """[groups, o]."""


def solve(moments: Moments, old: Fit, ridge: float, *, intercept: bool) -> Fit | None:
    """The least squares with this ridge (infinite: the old weights stay); None where they can't be solved.

    Without an intercept the bias stays, and nothing is centred.
    """
    n = moments.count
    mean = moments.inputs / n if intercept else torch.zeros_like(moments.inputs)
    aim = moments.targets / n if intercept else old.bias
    weight = old.weight
    if ridge != float("inf"):
        a = moments.gram / n - mean.unsqueeze(2) * mean.unsqueeze(1)
        b = moments.cross / n - (mean if intercept else moments.inputs / n).unsqueeze(2) * aim.unsqueeze(1)
        found = _ridged(a, b, old.weight, ridge)
        if found is None:
            return None
        weight = found
    bias = aim - (mean.unsqueeze(1) @ weight).squeeze(1) if intercept else old.bias
    return Fit(weight, bias)


def _ridged(a: Tensor, b: Tensor, old: Tensor, ridge: float) -> Tensor | None:
    """(A + r I)^-1 (B + r W0); None where that isn't finite. A group that reads constants alone keeps its weights."""
    size = a.diagonal(dim1=1, dim2=2).mean(1)
    alive = size > 0
    pull = torch.where(alive, ridge * size, 1.0)[:, None, None]
    right = b - a @ old  # solved for what changes, which is small
    shifted = a + pull * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if bool((info == 0).all()):
        change = torch.cholesky_solve(right, factor)
    else:  # rounding has made an eigenvalue negative
        values, vectors = torch.linalg.eigh(a)
        least = pull.squeeze(2)
        change = vectors @ ((vectors.transpose(1, 2) @ right) / (values.clamp(min=0) + least).unsqueeze(2))
    change = torch.where(alive[:, None, None], change, 0.0)
    return old + change if bool(change.isfinite().all()) else None


@dataclass(frozen=True)
class Choice:
    """The weights that are best on rows that weren't fitted."""

    fit: Fit
    ridge: float | None
    """None where the old weights and the old bias are best."""
    before: float
    """The error of the old weights on the held-out rows."""
    after: float
    """That of what was chosen, fitted to the others."""


def choose(
    fitted: Moments, held: Moments, old: Fit, weights: Tensor, *, intercept: bool, precision: float = 2.0**-52
) -> Choice:
    """The ridge with the least error on `held`, weighted by `weights` [groups, o]; then all rows fitted with it.
    `precision` is that of the type that the weights will have."""
    before = float((held.error(old) * weights).sum())
    found = []
    for ridge in ridges(intercept, precision):
        fit = solve(fitted, old, ridge, intercept=intercept)
        error = before if fit is None else float((held.error(fit) * weights).sum())
        if error < before:
            found.append((error, ridge))
    whole = fitted + held
    limit = whole.limit(old, weights, precision)
    for error, ridge in sorted(found):
        final = solve(whole, old, ridge, intercept=intercept)
        if final is not None and float((whole.size(final) * weights).sum()) <= limit:
            return Choice(final, ridge, before, max(error, 0.0))
    return Choice(old, None, before, before)


def ridges(intercept: bool, precision: float) -> Iterator[float]:
    """All ridges that are tried; an infinite one moves the bias alone. What is read has noise of its type's precision,
    so that none is smaller."""
    yield from (max(ridge, precision) for ridge in RIDGES)
    if intercept:
        yield float("inf")
