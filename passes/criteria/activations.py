"""Criteria from activations alone: statistics of the values that are read of a unit, without loss and gradients.

    activation_mean       mean over samples and elements
    activation_std        standard deviation over samples and elements
    apoz                  the share of elements that are *not* zero, so that more is more important; its complement is
                          the average percentage of zeros (Hu et al. 2016)
    mutual_information    of the mean activation, in quantiles, with the label

Each read is a source of evidence of its own: a stream that many layers read is looked at in each of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prunec.compiler.data import Batch, told
from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.passes.criteria.base import Criterion, Found, Setting
from prunec.passes.criteria.gates import Gates
from prunec.passes.criteria.reads import Read


class Statistic(Criterion):
    """A function of means, over samples and elements, of powers of the values that are read."""

    data: ClassVar[bool] = True

    @abstractmethod
    def each(self, values: Tensor) -> tuple[Tensor, ...]:
        """What is averaged: tensors of the shape of `values`."""

    @abstractmethod
    def whole(self, *means: Tensor) -> Tensor:
        """The figures, [units], from the means, [units] each."""

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence from every read, from one pass over the data."""
        gates, count = Gates.of(setting, joint=False), 0
        kinds = len(self.each(torch.zeros(1)))
        totals = [torch.zeros(source.units.size, kinds, dtype=torch.float64) for source in gates.sources]
        for seen in gates.run(self._term, figures=(kinds,)):
            count += seen.piece.count
            for total, terms in zip(totals, seen.terms, strict=True):
                total += terms.sum(0)
        for source, total in zip(gates.sources, totals, strict=True):
            means = total / (count * source.elements[:, None])
            yield from source.evidence(setting, self.whole(*means.unbind(1)))

    def _term(self, read: Read, values: Tensor, gradient: Tensor) -> Tensor:
        return torch.stack([read.sums(part) for part in self.each(values)], 2)


class ActivationMean(Statistic):
    """The mean activation."""

    name: ClassVar[str] = "activation_mean"

    def each(self, values: Tensor) -> tuple[Tensor, ...]:
        """The values."""
        return (values,)

    def whole(self, *means: Tensor) -> Tensor:
        """Their mean."""
        return means[0]


class ActivationStd(Statistic):
    """The standard deviation of the activation."""

    name: ClassVar[str] = "activation_std"

    def each(self, values: Tensor) -> tuple[Tensor, ...]:
        """The values and their squares, in double precision: the two nearly cancel where the mean is large."""
        exact = values.double()
        return exact, exact.square()

    def whole(self, *means: Tensor) -> Tensor:
        """Root of the mean square less the squared mean."""
        return (means[1] - means[0].square()).clamp_min(0).sqrt()


class Apoz(Statistic):
    """The share of activations that aren't zero."""

    name: ClassVar[str] = "apoz"
    normalize: ClassVar[str] = "none"

    def each(self, values: Tensor) -> tuple[Tensor, ...]:
        """1 where the value isn't zero."""
        return ((values != 0).to(values.dtype),)

    def whole(self, *means: Tensor) -> Tensor:
        """The share."""
        return means[0]


class MutualInformation(Criterion):
    """The mutual information of a sample's mean activation and its label, `H(x) + H(y) - H(x, y)`, in nats."""

    name: ClassVar[str] = "mutual_information"
    data: ClassVar[bool] = True
    normalize: ClassVar[str] = "none"

    bins: Annotated[int, Field(ge=2)] = Field(default=10, description="quantiles that the activation is put into")

    def fits(self, setting: Setting, piece: Batch, outputs: Any) -> None:
        """Raise `DataError` where labels aren't one whole number a sample."""
        class_labels(piece)

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence from every read, from one pass over the data, of which [samples, units] are kept.

        Raises `DataError` where labels aren't one whole number a sample.
        """
        gates = Gates.of(setting, joint=False)
        kept: list[list[FloatArray]] = [[] for _ in gates.sources]
        labels: list[IntArray] = []
        for seen in gates.run(lambda read, values, gradient: read.sums(values)):
            labels.append(class_labels(seen.piece))
            for rows, terms, source in zip(kept, seen.terms, gates.sources, strict=True):
                rows.append((terms / source.elements).numpy(force=True))
        for source, rows in zip(gates.sources, kept, strict=True):
            found = mutual_information(np.concatenate(rows), np.concatenate(labels), self.bins)
            yield from source.evidence(setting, torch.from_numpy(found))


def class_labels(piece: Batch) -> IntArray:
    """The class of every sample, [samples]. Raises `DataError` where the labels are something else."""
    classes = piece.classes
    if classes is None or len(classes) != piece.count:
        raise piece.place.fault(f"one class a sample is needed as label; {told(piece.labels)}")
    return np.asarray(classes.cpu().numpy(force=True), dtype=np.int64)


def mutual_information(values: FloatArray, labels: IntArray, bins: int) -> FloatArray:
    """The mutual information of each column of [samples, units], in quantiles, with the labels: [units], in nats.

    Equal values fall into one bin: a unit that gives every sample the same value has none.
    """
    edges = np.quantile(values, np.arange(1, bins) / bins, axis=0)
    binned = (values[None] > edges[:, None]).sum(0)  # [samples, units]
    classes, of_sample = np.unique(labels, return_inverse=True)
    cells = (np.arange(values.shape[1]) * bins + binned) * classes.size + of_sample[:, None]
    counts = np.bincount(cells.ravel(), minlength=values.shape[1] * bins * classes.size)
    joint = counts.reshape(values.shape[1], bins, classes.size) / len(values)
    shared = _entropy(joint.sum(2)) + _entropy(joint.sum(1)) - _entropy(joint.reshape(len(joint), -1))
    return np.maximum(shared, 0.0)  # of independent ones the last bits may be negative


def _entropy(shares: FloatArray) -> FloatArray:
    """The entropy of each row of shares, in nats."""
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return np.asarray(-(shares * logs).sum(1))
