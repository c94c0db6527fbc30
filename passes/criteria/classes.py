"""Which classes a unit drives: evidence for each unit and class, and the importance of units for the classes that stay.

    class_maps       G[i, y] = mean_n sum over the unit's map of | dP_y / dz_n |        (over images n of class y)
    class_weights    G[i, y] = mean_n sum over the unit's weights of | dP_y / dw |

P_y is the probability, or the logit, of the image's own class. A class with large gradients would own most units, so a
column is divided by its mean over the group's units before classes are compared. (Qin et al. 2018 find filters' classes
by such gradients; the absolute value is taken of each image's.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prunec.compiler.data import Batch
from prunec.compiler.errors import DataError, PassError
from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.compiler.task.outputs import first_output
from prunec.passes.criteria.activations import class_labels
from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Criterion, Found, Setting, numbers
from prunec.passes.criteria.gates import Gates
from prunec.passes.criteria.weights import Weights


@dataclass
class _Columns:
    """Sums by class: figures of samples are added to the column of the sample's class."""

    sums: Tensor
    """[units, classes]"""

    def add(self, figures: Tensor, labels: IntArray) -> None:
        """Figures [samples, units]."""
        self.sums.index_add_(1, torch.from_numpy(labels), figures.double().T.to(self.sums.device))


class ClassEvidence(Criterion):
    """The largest evidence that a unit has for any of the classes that stay."""

    data: ClassVar[bool] = True

    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="the classes that stay; all where none is named", examples=[[0, 3, 7]]
    )
    of: Literal["probability", "logit"] = Field(default="probability", description="what is differentiated")
    balance: bool = Field(default=True, description="divide each class's evidence by its mean over the group's units")

    def fits(self, setting: Setting, piece: Batch, outputs: Any) -> None:
        """Raise `DataError` where the samples have no classes that the model knows, `PassError` where it doesn't know
        those that stay."""
        self.target(outputs, piece)
        known = first_output(outputs, piece).shape[1]
        for index, each in enumerate(self.classes or ()):
            if each >= known:
                message = f"there is no class {each}: the model knows {known}, from 0"
                raise PassError(message, keys=("criterion", self.name, "classes", index))

    @abstractmethod
    def gathered(self, setting: Setting) -> Iterator[tuple[str, str, IntArray, FloatArray]]:
        """(group, source, units, mean evidence [units, classes]), NaN where the data have no sample of the class."""

    def tables(self, setting: Setting) -> dict[str, FloatArray]:
        """Each group's evidence, [units, classes], before any balancing; NaN where nothing is known."""
        found: dict[str, list[tuple[str, IntArray, FloatArray]]] = {}
        for group, source, units, table in self.gathered(setting):
            found.setdefault(group, []).append((source, units, table))
        sizes = {group.name: group.size for group in setting.groups}
        return {name: _joined(setting, sizes[name], parts) for name, parts in found.items()}

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """One piece of evidence for each group. Raises `DataError` where the data lack a class that stays."""
        for name, table in self.tables(setting).items():
            wanted = self._wanted(table)
            columns = table[:, wanted]
            if self.balance:
                means = np.nanmean(columns, axis=0)
                columns = columns / np.where(means > 0, means, 1.0)
            known = np.flatnonzero(~np.isnan(columns).any(1))
            yield name, Evidence("classes", known, columns[known].max(1))

    def _wanted(self, table: FloatArray) -> list[int]:
        seen = np.asarray(np.isfinite(table).any(axis=0))
        if self.classes is None:
            return [int(c) for c in np.flatnonzero(seen)]
        for each in self.classes:
            if each >= seen.size:
                raise DataError(f"there is no class {each}: the model knows {seen.size}, from 0")
            if not seen[each]:
                raise DataError(f"the data that were looked at hold no sample of class {each}")
        return list(self.classes)

    def target(self, outputs: Any, piece: Batch) -> Tensor:
        """The summed probabilities (or logits) of the samples' own classes."""
        scores = first_output(outputs, piece)
        labels = torch.from_numpy(class_labels(piece)).to(scores.device)
        if scores.ndim != 2 or int(labels.max()) >= scores.shape[1]:
            raise piece.place.fault(f"class evidence needs outputs [samples, classes], got {list(scores.shape)}")
        chosen = scores.softmax(1) if self.of == "probability" else scores
        return chosen.gather(1, labels[:, None]).sum()


def _joined(setting: Setting, size: int, parts: list[tuple[str, IntArray, FloatArray]]) -> FloatArray:
    columns = [
        setting.join(size, [Evidence(source, units, table[:, y]) for source, units, table in parts])
        for y in range(parts[0][2].shape[1])
    ]
    return np.stack(columns, 1)


def _means(columns: Tensor, counts: IntArray) -> FloatArray:
    return numbers(columns) / np.where(counts > 0, counts, np.nan)


class ClassMaps(ClassEvidence):
    """Evidence for classes from the gradients of what is read of a unit."""

    name: ClassVar[str] = "class_maps"

    def gathered(self, setting: Setting) -> Iterator[tuple[str, str, IntArray, FloatArray]]:
        """From one pass over the data; each read is a source of its own."""
        gates = Gates.of(setting, joint=False)
        columns: list[_Columns] = []
        labels: list[IntArray] = []
        for seen in gates.run(lambda read, value, gradient: read.sums(gradient.abs()), self.target):
            labels.append(class_labels(seen.piece))
            if not columns:
                classes = first_output(seen.outputs, seen.piece).shape[1]
                columns = [_Columns(torch.zeros(s.units.size, classes, dtype=torch.float64)) for s in gates.sources]
            for column, terms in zip(columns, seen.terms, strict=True):
                column.add(terms, labels[-1])
        for column, source in zip(columns, gates.sources, strict=True):
            counts = np.bincount(np.concatenate(labels), minlength=column.sums.shape[1])
            table = np.full((setting.analysis.size, counts.size), np.nan)
            table[source.units] = _means(column.sums, counts)
            for group in setting.groups:
                mine = np.flatnonzero(np.isin(source.units, np.arange(group.start, group.start + group.size)))
                if mine.size:
                    units = source.units[mine] - group.start
                    yield group.name, source.name, units, table[source.units[mine]]


class ClassWeights(ClassEvidence):
    """Evidence for classes from the gradients of a unit's weights: one run a sample."""

    name: ClassVar[str] = "class_weights"

    def gathered(self, setting: Setting) -> Iterator[tuple[str, str, IntArray, FloatArray]]:
        """One backward pass a sample; each axis of weights is a source of its own."""
        weights = Weights.of(setting)
        columns: list[_Columns] = []
        labels: list[IntArray] = []
        for piece in weights.pieces(at_once=1):
            labels.append(class_labels(piece))
            outputs = piece.through(weights.module)
            found = weights.gradients(self.target(outputs, piece))
            rows = [weighed.rows(setting.program, found).abs().sum(1) for weighed in weights.asked]
            if not columns:
                classes = first_output(outputs, piece).shape[1]
                columns = [_Columns(torch.zeros(len(row), classes, dtype=torch.float64)) for row in rows]
            for column, row in zip(columns, rows, strict=True):
                column.add(row[None], labels[-1])
        for column, weighed in zip(columns, weights.asked, strict=True):
            counts = np.bincount(np.concatenate(labels), minlength=column.sums.shape[1])
            name, evidence = weighed.evidence(torch.zeros(len(column.sums)))
            positions = weighed.member.positions
            yield name, evidence.source, weighed.member.units, _means(column.sums, counts)[positions]
