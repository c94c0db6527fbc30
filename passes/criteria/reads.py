"""Where channels are read: the values at which a removed unit is seen as zero, and sums over them by sample and unit.

    conv1 - bn - relu - pool - conv2        unit u of conv1 is read at (pool -> conv2)
                   \\---- add - conv3        and at (add -> conv3)

That is where a *gate* on a unit belongs, a factor that is 1 in the model and 0 once the unit is removed: behind batch
norm and activation, at every place that the unit reaches, and only once where a product contracts two values that both
carry it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx

from prunec.compiler.groups.analysis import Analysis
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.interchangeable import label_arrays_of
from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Flow
from prunec.compiler.labels.registry import row_for
from prunec.compiler.tracing.batch_dim import batch_places


@dataclass(frozen=True)
class Read:
    """Node `consumer` reads the units `units` (program-wide numbers, rising) from the value of node `source`."""

    consumer: fx.Node
    source: fx.Node
    units: IntArray
    dims: tuple[int, ...]
    """The dimensions along which the value's channels lie."""
    place: IntArray = field(repr=False)
    """[positions along `dims`, row-major]: each position's index in `units`; `units.size` where it has no unit."""
    batch: int = 0
    """The dimension that holds the samples."""
    rows: int = 1
    """How many rows of that dimension one sample has."""

    @property
    def name(self) -> str:
        """Both nodes, for messages."""
        return f"{self.source.name} at {self.consumer.name}"

    @cached_property
    def elements(self) -> float:
        """How many elements of one sample belong to a unit; the mean, should units differ."""
        shape = shape_of_argument(self.source)
        spread = [shape[d] for d in range(len(shape)) if d not in (self.batch, *self.dims)]
        positions = np.count_nonzero(self.place < self.units.size) / self.units.size
        return float(np.prod(spread, dtype=np.float64) * self.rows * positions)

    @cached_property
    def _index(self) -> Tensor | None:
        """`place` as a tensor; None where it is 0, 1, 2, ..."""
        plain = self.place.size == self.units.size and bool((self.place == np.arange(self.units.size)).all())
        return None if plain else torch.from_numpy(self.place)

    def sums(self, values: Tensor) -> Tensor:
        """Sums over each sample's elements of each unit: [shape of the source's value] -> [samples, units]."""
        others = [d for d in range(values.ndim) if d not in (self.batch, *self.dims)]
        kept = values.sum(others, keepdim=True) if others else values
        rows = kept.movedim(self.batch, 0).reshape(kept.shape[self.batch], -1)
        if self.rows > 1:
            rows = rows.reshape(-1, self.rows, rows.shape[1]).sum(1)
        if self._index is None:
            return rows
        index = self._index.to(rows.device)
        return rows.new_zeros(len(rows), self.units.size + 1).index_add_(1, index, rows)[:, :-1]


def find_reads(analysis: Analysis) -> tuple[Read, ...]:
    """Every read of a unit that may be removed, in the order of the graph.

    Left out are values without samples (weights that are values of the graph), and a function that reads channels of
    the very stream that it writes to; a module that does so isn't.
    """
    return tuple(_reads(_Known(analysis)))


@dataclass
class _Known:
    """Remembers what was found out about arrays of labels, most of which several values share."""

    analysis: Analysis
    batches: dict[fx.Node, tuple[int, int]] = field(init=False)
    bound: dict[str, list[IntArray]] = field(init=False)
    _sets: dict[int, tuple[IntArray, frozenset[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batches = batch_places(self.analysis.program)
        self.bound = {}
        for axis, binding in self.analysis.flow.bindings.items():
            if binding.role == "reader":
                self.bound.setdefault(axis.owner, []).append(binding.labels)

    def units(self, labels: IntArray) -> frozenset[int]:
        """The units among an array of labels that may be removed."""
        if id(labels) not in self._sets:
            units = np.unique(self.analysis.units(labels))
            units = units[units != NO_UNIT]
            self._sets[id(labels)] = (labels, frozenset(units[self.analysis.free[units]].tolist()))
        return self._sets[id(labels)][1]

    def passing(self, node: fx.Node) -> frozenset[int]:
        """The units that a node's value still carries, without those that its module reads."""
        carried = [self.units(labels) for labels in label_arrays_of(self.analysis.flow.values.get(node))]
        read = [self.units(labels) for labels in self.bound.get(str(node.target), ()) if node.op == "call_module"]
        return frozenset().union(*carried) - frozenset().union(*read)


def _reads(known: _Known) -> Iterator[Read]:
    flow = known.analysis.flow
    products = {product.node for product in flow.macs}
    for node in known.analysis.program.graph.nodes:
        if node.name not in products and not _reduces(flow, node):
            continue
        seen = known.passing(node)
        for source in node.all_input_nodes:
            for labels in flow.fields_at(source, node) if source in known.batches else ():
                read = known.units(labels) - seen
                batch, rows = known.batches[source]
                if read and labels.shape[batch] == 1:
                    yield _read(known.analysis, node, source, labels, (sorted(read), batch, rows))
                    seen |= read


def _reduces(flow: Flow, node: fx.Node) -> bool:
    """Whether a node adds up what lies along a dimension; merely leaving channels out is no read of them."""
    row = row_for(flow, node) if node.op.startswith("call_") else None
    return row is not None and row.reduces


def _read(
    analysis: Analysis, node: fx.Node, source: fx.Node, labels: IntArray, found: tuple[list[int], int, int]
) -> Read:
    read, batch, rows = found
    units = np.array(read, dtype=np.int64)
    flat = analysis.units(labels).ravel()
    place = np.searchsorted(units, flat)
    place[~np.isin(flat, units)] = units.size
    dims = tuple(d for d, size in enumerate(labels.shape) if size > 1)
    return Read(node, source, units, dims, place, batch, rows)
