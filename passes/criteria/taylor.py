"""First order, and gates' second: how much the loss would change if a unit's values were zero.

    z_n,u     what is read of unit u in sample n, after batch norm and activation; M elements
    t_n,u     sum over elements of z * dC_n/dz, which is the gradient of a gate on the unit

    taylor           mean_n | t / M |        absolute value of each sample (Molchanov et al. 2017)
    taylor_signed    | mean_n t / M |        samples cancel each other
    gate             | mean_n t |            the gradient of the gate itself
    fisher_gate      1/2 mean_n t^2          the gate's empirical Fisher information (Theis et al. 2018)

Where figures are added up or held against costs, M is 1: these are the changes of the loss.

C_n is the loss of sample n alone: a mean over the batch would make figures depend on its size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from prunec.passes.criteria.base import Found, LossCriterion, Setting
from prunec.passes.criteria.gates import Gates, Source, product


class Gated(LossCriterion):
    """A mean over samples of a function of the gates' gradients."""

    single: ClassVar[bool] = True

    joint: bool = Field(
        default=True, description="one gate on all of a unit's reads; else each read is evidence of its own"
    )

    @abstractmethod
    def each(self, terms: Tensor, elements: Tensor) -> Tensor:
        """What a sample adds to the mean, [samples, units], from gates' gradients t [samples, units] and M [units]."""

    def whole(self, mean: Tensor) -> Tensor:
        """The figures, [units], from the mean over samples."""
        return mean

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence about the units of every read, from one pass over the data."""
        gates = Gates.of(setting, self.joint)
        sums = GateSums.of(self, gates)
        for seen in gates.run(product, partial(self.loss, setting)):
            sums.add(seen.terms, seen.piece.count)
        yield from sums.evidence()


@dataclass
class GateSums:
    """What samples have added up to so far, as scores and as losses."""

    criterion: Gated
    gates: Gates
    totals: list[Tensor]
    """For each source, [2, units]."""
    count: int = 0
    """How many samples."""

    @staticmethod
    def of(criterion: Gated, gates: Gates) -> GateSums:
        """Nothing yet."""
        return GateSums(criterion, gates, [_nothing(source) for source in gates.sources])

    def add(self, terms: Sequence[Tensor], count: int) -> None:
        """Take in each source's gates' gradients, [samples, units]."""
        self.count += count
        for total, each, source in zip(self.totals, terms, self.gates.sources, strict=True):
            sizes = (source.elements, torch.ones(source.units.size))
            total += torch.stack([self.criterion.each(each, elements).sum(0) for elements in sizes])

    def evidence(self) -> Iterator[Found]:
        """Evidence about the units of every read."""
        for source, total in zip(self.gates.sources, self.totals, strict=True):
            figures = (self.criterion.whole(each / max(self.count, 1)) for each in total)
            yield from source.evidence(self.gates.setting, *figures)


def _nothing(source: Source) -> Tensor:
    return torch.zeros(2, source.units.size, dtype=torch.float64)


class Taylor(Gated):
    """The loss's first-order change when the unit goes: absolute value of each sample, then the mean.

    For ranking. Its means over a unit's elements and over groups make it no loss; what is added up (by the knapsack)
    are the changes themselves, mean_n |t|.
    """

    name: ClassVar[str] = "taylor"

    def each(self, terms: Tensor, elements: Tensor) -> Tensor:
        """|t / M|."""
        return (terms / elements).abs()


class TaylorSigned(Gated):
    """The loss's first-order change when the unit goes: the mean over samples, then its absolute value."""

    name: ClassVar[str] = "taylor_signed"
    single: ClassVar[bool] = False

    def each(self, terms: Tensor, elements: Tensor) -> Tensor:
        """t / M."""
        return terms / elements

    def whole(self, mean: Tensor) -> Tensor:
        """Its absolute value."""
        return mean.abs()


class Gate(Gated):
    """The magnitude of the mean loss's gradient by a gate on the unit.

    It adds up over units of all groups; near a minimum of the loss, samples cancel.
    """

    name: ClassVar[str] = "gate"
    single: ClassVar[bool] = False
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    def each(self, terms: Tensor, elements: Tensor) -> Tensor:
        """t."""
        return terms

    def whole(self, mean: Tensor) -> Tensor:
        """Its absolute value."""
        return mean.abs()


class FisherGate(Gated):
    """Half the empirical Fisher information of a gate on the unit: the loss's second-order change when it goes.

    It adds up over units of all groups: for the knapsack. By ranking, which knows no cost, `normalize: mean` serves it.
    """

    name: ClassVar[str] = "fisher_gate"
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    def each(self, terms: Tensor, elements: Tensor) -> Tensor:
        """t^2 / 2."""
        return terms.square() / 2
