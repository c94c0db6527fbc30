"""What is left of a layer's error once some of its inputs are gone and the others are refit, for every number of them.

    W [p, o]      the layer's weights, of which each unit has some rows         A [p, p]    its inputs' second moments

    V = (A + r I)^-1
    d_u = sum over outputs of  W_u' (V_uu)^-1 W_u                           what it costs when unit u goes next
    W -= V_:u (V_uu)^-1 W_u       V -= V_:u (V_uu)^-1 V_u:                  the others, refit without it

This is the optimal brain surgeon (Hassibi and Stork 1993) on a layer's own least squares, for units of several rows.
The cheapest unit goes, and so on: the running sum is the error that remains, which a refit of what is left reaches. A
unit that several layers read costs what it costs in all of them.

Where a layer reads more than there are samples U [n, p] of it, V is never formed: with K = U_left U_left' + r I,

    V = (I - U' K^-1 U) / r

On the samples that are fitted the error is less than on others, the more so the more is fitted to the fewer of them: a
classifier of a thousand inputs is fitted to a hundred samples without any error. So it is measured on samples that are
held out, which also say which r is best.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray

_TOGETHER: Final = 128
"""So many rows' changes wait until they are put into a matrix that doesn't fit into a cache."""
_WIDTHS: Final = 32
"""At about so many widths is measured what remains on what is held out."""


@dataclass(frozen=True)
class Places:
    """Which rows of a layer's inputs belong to each unit; units may have different numbers of them, or none."""

    rows: Tensor
    """[units, k]"""
    own: Tensor
    """[units, k]: which of these count."""

    @staticmethod
    def of(rows: Sequence[IntArray], device: torch.device) -> Places:
        """From the rows of each unit."""
        most = max((each.size for each in rows), default=0)
        index, own = np.zeros((len(rows), most), dtype=np.int64), np.zeros((len(rows), most), dtype=bool)
        for unit, each in enumerate(rows):
            index[unit, : each.size], own[unit, : each.size] = each, True
        return Places(torch.from_numpy(index).to(device), torch.from_numpy(own).to(device))


class Reader(ABC):
    """One least squares that reads a group: of a layer, or of one group of a grouped convolution."""

    def __init__(self, weight: Tensor, places: Places, blocks: Tensor, held: Tensor | None) -> None:
        self.weight, self.places = weight.clone(), places
        """W, [p, o], each output times the root of what its error counts."""
        self.blocks = blocks
        """V_uu, [units, k, k]; what isn't a unit's own may be anything."""
        self.held = held
        """Moments [p, p] or samples [n, p] that are held out; None where there are none."""
        self.first = weight
        """The weights as they were."""

    @abstractmethod
    def columns(self, rows: Tensor) -> Tensor:
        """[p, rows]: V_:u."""

    @abstractmethod
    def forget(self, rows: Tensor, columns: Tensor, change: Tensor) -> None:
        """Bring V to where these rows are gone: V -= columns @ change; `columns` are V's there."""

    @abstractmethod
    def left_on_held(self) -> float:
        """The error that remains on what is held out."""

    @property
    def change(self) -> Tensor:
        """[p, o]: what the refit without the units that are gone has made of the weights, less what they were."""
        return self.weight - self.first

    def costs(self, units: Tensor) -> Tensor:
        """[units]: by how much the error grows when each of these goes next."""
        rows, own = self.places.rows[units], self.places.own[units]
        mine = self.weight[rows].masked_fill_(~own.unsqueeze(2), 0.0)
        inner = self.blocks[units].masked_fill_(~(own.unsqueeze(2) & own.unsqueeze(1)), 0.0)
        inner.diagonal(dim1=1, dim2=2).masked_fill_(~own, 1.0)
        if rows.shape[1] == 1:
            return mine.square().sum((1, 2)) / inner[:, 0, 0].clamp(min=1e-300)
        return _solved(inner, mine @ mine.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, unit: int) -> None:
        """Take a unit out, and refit the others."""
        rows = self.places.rows[unit][self.places.own[unit]]
        if not len(rows):
            return
        columns = self.columns(rows)
        inner = columns[rows]
        self.weight.addmm_(columns, _solved(inner[None], self.weight[rows][None])[0], alpha=-1)
        self.weight[rows] = 0.0
        change = _solved(inner[None], columns.T[None])[0]
        self.blocks -= columns[self.places.rows] @ change.T[self.places.rows].transpose(1, 2)
        self.forget(rows, columns, change)


class Formed(Reader):
    """With V formed, [p, p]. Several units' changes are put into it at once."""

    def __init__(
        self, moments: Tensor, weight: Tensor, places: Places, ridge: float, held: Tensor | None = None
    ) -> None:
        shifted = moments + ridge * torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            self.inverse = torch.cholesky_inverse(factor)
        else:  # rounding has made an eigenvalue negative
            values, vectors = torch.linalg.eigh(moments)
            self.inverse = (vectors / (values.clamp(min=0) + ridge)) @ vectors.T
        most = _TOGETHER + places.rows.shape[1]
        self.left, self.right = shifted.new_empty(len(shifted), most), shifted.new_empty(most, len(shifted))
        self.waiting = 0
        rows = places.rows
        super().__init__(weight, places, self.inverse[rows.unsqueeze(2), rows.unsqueeze(1)], held)

    def left_on_held(self) -> float:
        assert self.held is not None, "the caller knows"
        apart = self.change
        return float((apart * (self.held @ apart)).sum())

    def columns(self, rows: Tensor) -> Tensor:
        wait = self.waiting
        return torch.addmm(self.inverse[:, rows], self.left[:, :wait], self.right[:wait, rows], alpha=-1)

    def forget(self, rows: Tensor, columns: Tensor, change: Tensor) -> None:
        end = self.waiting + len(rows)
        self.left[:, self.waiting : end], self.right[self.waiting : end] = columns, change
        self.waiting = end
        if end >= _TOGETHER:
            self.inverse.addmm_(self.left[:, :end], self.right[:end], alpha=-1)
            self.waiting = 0


class Sampled(Reader):
    """With V by the samples, U [n, p], divided by the root of their number."""

    def __init__(
        self, samples: Tensor, weight: Tensor, places: Places, ridge: float, held: Tensor | None = None
    ) -> None:
        self.samples, self.ridge = samples, ridge
        self.gone = torch.zeros(samples.shape[1], dtype=torch.bool, device=samples.device)
        kernel = samples @ samples.T + ridge * torch.eye(len(samples), dtype=samples.dtype, device=samples.device)
        self.kernel = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
        """K^-1, [n, n]."""
        inner = self.kernel @ samples
        blocks = torch.stack([-samples[:, rows].T @ inner[:, rows] for rows in places.rows])
        blocks.diagonal(dim1=1, dim2=2).add_(1.0)
        super().__init__(weight, places, blocks / ridge, held)

    def left_on_held(self) -> float:
        assert self.held is not None, "the caller knows"
        return float((self.held @ self.change).square().sum())

    def columns(self, rows: Tensor) -> Tensor:
        found = -self.samples.T @ (self.kernel @ self.samples[:, rows])
        found[rows, torch.arange(len(rows), device=rows.device)] += 1.0
        found[self.gone] = 0.0
        return found / self.ridge

    def forget(self, rows: Tensor, columns: Tensor, change: Tensor) -> None:
        half = self.kernel @ self.samples[:, rows]
        self.gone[rows] = True
        self.kernel += half @ _solved(columns[rows][None], half.T[None])[0] / self.ridge


def best_ridge(
    fitted: Tensor, held: Tensor, weight: Tensor, gone: BoolArray, ridges: Sequence[float], *, sampled: bool
) -> float:
    """Of `ridges`, rising, the one with which a refit without the rows that are `gone` [p] has the least error on
    `held`; both are moments [p, p], or with `sampled` samples [n, p]."""
    out = torch.from_numpy(gone).to(weight.device)
    here = fitted[:, ~out]
    lost = fitted[:, out] @ weight[out]
    square = here @ here.T if sampled else here[~out]
    best = (float("inf"), ridges[-1])
    for ridge in ridges:
        shifted = square + ridge * torch.eye(len(square), dtype=square.dtype, device=square.device)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info):
            continue  # rounding has made an eigenvalue negative
        apart = -weight
        apart[~out] = (
            here.T @ torch.cholesky_solve(lost, factor) if sampled else torch.cholesky_solve(lost[~out], factor)
        )
        seen = held @ apart
        best = min(best, (float((seen if sampled else apart).mul(seen).sum()), ridge))
    return best[1]


def _solved(inner: Tensor, right: Tensor) -> Tensor:
    """`inner^-1 right` for positive definite matrices, [n, k, k] and [n, k, o]."""
    factor, info = torch.linalg.cholesky_ex(inner)
    if bool((info == 0).all()):
        return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(inner)  # rounding has made an eigenvalue negative
    least = values.amax(-1, keepdim=True).clamp(min=1e-300) * 1e-12
    found: Tensor = vectors @ ((vectors.transpose(1, 2) @ right) / torch.maximum(values, least).unsqueeze(2))
    return found


@dataclass(frozen=True)
class Changed:
    """What has become of the readers' weights."""

    gone: int
    """So many units are gone."""
    weights: Sequence[Tensor]
    """For each reader, [p, o]: what is added to its weights."""


@dataclass(frozen=True)
class Curve:
    """In which order the units of a group go, and the error that remains after each."""

    order: IntArray
    error: FloatArray
    """[units + 1], from 0 on, rising: without the first 0, 1, 2, ... units of `order`."""
    changed: Changed | None = None
    """How the readers are changed at one place."""

    @property
    def at_change(self) -> float:
        """The error there."""
        return 0.0 if self.changed is None else float(self.error[self.changed.gone])

    def times(self, factor: float) -> Curve:
        """The curve with its errors multiplied."""
        return replace(self, error=self.error * factor)

    def scores(self, size: int) -> FloatArray:
        """[size]: what each unit costs, rising in the order in which they go; NaN for units that don't.

        Where the curve isn't convex, these are the slopes of its lower convex hull, as budgets want them.
        """
        slopes = hull_slopes(self.error)
        found = np.full(size, np.nan)
        # Equal ones are told apart, so that they go in this order.
        found[self.order] = slopes + np.arange(slopes.size) * 1e-12 * float(self.error[-1])
        return found


def hull_slopes(error: FloatArray) -> FloatArray:
    """For each step of a curve at 0, 1, 2, ..., the slope of its lower convex hull there."""
    corners: list[int] = []
    for at in range(error.size):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (error[b] - error[a]) * (at - b) < (error[at] - error[b]) * (b - a):
                break
            corners.pop()
        corners.append(at)
    runs = np.diff(corners)
    return np.repeat(np.diff(error[corners]) / runs, runs)


def curve(readers: Sequence[Reader], free: BoolArray, told: float | None = None) -> Curve:
    """The order in which the `free` [units] go, the cheapest first, and the error that remains: on what is held out,
    where the readers have that. Changes of weights are told for where it first is as large as `told`, or else for all
    units. `readers` are spent."""
    left = np.flatnonzero(free)
    judged, every = all(reader.held is not None for reader in readers), -(-left.size // _WIDTHS)
    seen = {0: 0.0}
    order: list[int] = []
    error, change = [0.0], None
    while left.size:
        units = torch.from_numpy(left)
        costs = np.sum([reader.costs(units).cpu().numpy() for reader in readers], axis=0)
        cheapest = int(np.argmin(costs))
        order.append(int(left[cheapest]))
        for reader in readers:
            reader.remove(order[-1])
        error.append(error[-1] + max(float(costs[cheapest]), 0.0))
        left = np.delete(left, cheapest)
        reached = error[-1]
        if judged and (len(order) % every == 0 or not left.size):
            reached = seen[len(order)] = sum(reader.left_on_held() for reader in readers)
        if told is not None and change is None and (reached >= told or not left.size):
            change = Changed(len(order), [reader.change for reader in readers])
            if judged:
                seen[len(order)] = sum(reader.left_on_held() for reader in readers)
    if judged:
        rising = np.maximum.accumulate(list(seen.values()))
        error = list(np.interp(np.arange(len(error)), list(seen), rising))
    return Curve(np.array(order, dtype=np.int64), np.array(error), change)
