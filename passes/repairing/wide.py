"""A layer's least squares where it reads more than there are rows: these are kept, and what is solved has their size.

    U [n, p], n < p    what the layer reads              R [n, o]    what its outputs lack: t - (u W0 + b0)

    K = U U^T / n      a = (K + r I)^-1 R / n            U and R centred, where there is a bias
    W = W0 + U^T a     b = b0 + E[R] - E[U] U^T a        r = ridge * mean(diag(U^T U / n))

These are the weights that `moments.py` finds, since (A + r I)^-1 U^T = U^T (K + r I)^-1 (with A = U^T U / n). For 512
samples, a classifier that reads 25,088 numbers asks for a matrix of 512 x 512, where A would have 5 GB. Errors of rows
that weren't fitted come from K between the two, so that new weights are made once, of some outputs at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from prunec.passes.repairing.moments import growth, ridges

AT_ONCE: Final = 2**25
"""About how many elements of new weights are made at a time."""


@dataclass
class Rows:
    """Rows of `groups` least squares side by side."""

    inputs: list[Tensor] = field(default_factory=list)
    """u, each [some rows, groups, p], as the layer reads it."""
    lacking: list[Tensor] = field(default_factory=list)
    """[some rows, groups, o], in float64: what the layer's outputs lack."""
    size: Tensor = field(default_factory=lambda: torch.zeros(()))
    """[groups, o]: the sums of squares of what is to be given."""
    given: Tensor = field(default_factory=lambda: torch.zeros(()))
    """[groups, o]: those of what is given."""

    def add(self, u: Tensor, lacking: Tensor) -> None:
        """Add rows: u [rows, groups, p], lacking [rows, groups, o]."""
        self.inputs.append(u)
        self.lacking.append(lacking.double())

    def aim(self, t: Tensor, given: Tensor) -> None:
        """Note what is to be given, and is, [rows, groups, o]."""
        self.size, self.given = self.size.to(t) + t.square().sum(0), self.given.to(t) + given.square().sum(0)

    def __add__(self, other: Rows) -> Rows:
        size, given = self.size.to(other.size) + other.size, self.given.to(other.given) + other.given
        return Rows(self.inputs + other.inputs, self.lacking + other.lacking, size, given)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.inputs))

    @property
    def is_finite(self) -> bool:
        """Whether no row has an infinite value or NaN."""
        return all(bool(x.isfinite().all()) for x in (*self.inputs, *self.lacking))

    @property
    def u(self) -> Tensor:
        """[groups, n, p], in float64."""
        return torch.cat(self.inputs).double().movedim(0, 1)

    @property
    def r(self) -> Tensor:
        """[groups, n, o]."""
        return torch.cat(self.lacking).movedim(0, 1)


@dataclass(frozen=True)
class Solver:
    """The least squares of some rows, for any ridge."""

    u: Tensor
    """[groups, n, p], centred where there is an intercept."""
    r: Tensor
    """[groups, n, o], as well."""
    read: Tensor
    """[groups, 1, p]: what was taken from u; zeros without an intercept."""
    lacked: Tensor
    """[groups, 1, o]: what was taken from r."""

    @staticmethod
    def of(rows: Rows, *, intercept: bool) -> Solver:
        """Of these rows."""
        u, r = rows.u, rows.r
        read, lacked = u.mean(1, keepdim=True), r.mean(1, keepdim=True)
        if not intercept:
            read, lacked = torch.zeros_like(read), torch.zeros_like(lacked)
        return Solver(u - read, r - lacked, read, lacked)

    @cached_property
    def _kernel(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues, [groups, n], and eigenvectors of K."""
        values, vectors = torch.linalg.eigh(self.u @ self.u.transpose(1, 2) / self.u.shape[1])
        return values.clamp(min=0), vectors

    def coefficients(self, ridge: float) -> Tensor:
        """a, [groups, n, o]: zero for a group that reads constants alone, and for an infinite ridge."""
        values, vectors = self._kernel
        size = values.sum(1) / self.u.shape[2]
        alive = (size > 0)[:, None, None]
        if ridge == float("inf"):
            return torch.zeros_like(self.r)
        pull = torch.where(alive, ridge * size[:, None, None], 1.0)
        found = vectors @ (vectors.transpose(1, 2) @ self.r / (values.unsqueeze(2) + pull)) / self.u.shape[1]
        return torch.where(alive, found, 0.0)

    def error(self, held: Rows, between: Tensor, a: Tensor) -> Tensor:
        """[groups, o]: the mean square of what `held` rows lack then; `between` is their kernel with these."""
        return (held.r - self.lacked - between @ a).square().mean(1)

    def between(self, held: Rows) -> Tensor:
        """[groups, rows, n]: the kernel of other rows with these."""
        return (held.u - self.read) @ self.u.transpose(1, 2)

    def changes(self, a: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Some outputs of each group, and what their weights change by, [groups, p, those]."""
        step = max(1, AT_ONCE // (self.u.shape[0] * self.u.shape[2]))
        for start in range(0, a.shape[2], step):
            some = slice(start, start + step)
            yield some, self.u.transpose(1, 2) @ a[:, :, some]

    def size(self, a: Tensor) -> Tensor:
        """[groups, o]: the sum of the squares of all that is added to an output, on average."""
        read = (self.u + self.read).square().mean(1)
        added = torch.cat([(read.unsqueeze(2) * change.square()).sum(1) for _, change in self.changes(a)], 1)
        return added + self.shift(a).square()

    def shift(self, a: Tensor) -> Tensor:
        """[groups, o]: what the bias changes by."""
        return (self.lacked - self.read @ self.u.transpose(1, 2) @ a).squeeze(1)


@dataclass(frozen=True)
class WideChoice:
    """What is best on rows that weren't fitted."""

    solver: Solver
    a: Tensor
    ridge: float | None
    """None where the old weights and the old bias are best."""
    before: float
    """The error of the old weights on the held-out rows."""
    after: float
    """That of what was chosen, fitted to the others."""


def choose(fitted: Rows, held: Rows, weights: Tensor, *, intercept: bool, precision: float = 2.0**-52) -> WideChoice:
    """As `moments.choose`: the ridge with the least error on `held`, weighted by `weights` [groups, o]; then all rows
    fitted with it. `precision` is that of the type that the weights will have."""
    before = float((held.r.square().mean(1) * weights).sum())
    solver = Solver.of(fitted, intercept=intercept)
    between = solver.between(held)
    found = []
    for ridge in ridges(intercept, precision):
        error = float((solver.error(held, between, solver.coefficients(ridge)) * weights).sum())
        if error < before:
            found.append((error, ridge))
    whole = fitted + held
    final = Solver.of(whole, intercept=intercept)
    limit = growth(precision) ** 2 * float((whole.size / whole.count * weights).sum())
    for error, ridge in sorted(found):
        a = final.coefficients(ridge)
        if float((final.size(a) * weights).sum()) <= limit:
            return WideChoice(final, a, ridge, before, error)
    return WideChoice(solver, solver.coefficients(float("inf")), None, before, before)
