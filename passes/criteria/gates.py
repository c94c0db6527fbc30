"""One pass over the data with a gate on every unit: what each sample says of each unit, over all the unit's reads.

    gate g_u = 1 on every read of unit u      dC/dg_u = sum over reads and elements of  z * dC/dz

With `joint`, the reads of a unit are one gate, and what they say is added with its sign: that is the first-order change
of the loss when the unit goes. Without, each read is a source of evidence of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.data import Batch
from prunec.compiler.groups.analysis import Analysis
from prunec.compiler.ir.program import FloatArray, IntArray
from prunec.passes.calibration.calibration import bytes_of_a_sample
from prunec.passes.criteria.base import Found, Setting, numbers
from prunec.passes.criteria.reads import Read, find_reads
from prunec.passes.criteria.watching import Target, look_once, watched

Term = Callable[[Read, Tensor, Tensor], Tensor]
"""What is computed at a read: from the read, its value and its gradient to [samples, units of the read], or, where
several figures are asked for, [samples, units, figures]."""


def product(read: Read, value: Tensor, gradient: Tensor) -> Tensor:
    """The gate's gradient: the sum of `z * dC/dz`."""
    return read.sums(value * gradient)


@dataclass(frozen=True)
class Source:
    """A source of evidence: all reads at once, or one of them."""

    name: str
    units: IntArray
    elements: Tensor
    """[units]: how many elements of a sample a unit has there. Where several reads are one source, it is the most that
    any unit of the group has: a stream's channels that also live in larger maps must not count for less."""

    def evidence(self, setting: Setting, figures: Tensor, losses: Tensor | None = None) -> Iterator[Found]:
        """Figures, [units] of the source, and the losses that they come of, as evidence about groups."""
        beside = None if losses is None else self._everywhere(setting, losses)
        yield from setting.split(self.name, self._everywhere(setting, figures), beside)

    def _everywhere(self, setting: Setting, figures: Tensor) -> FloatArray:
        """[units of the program]: NaN for those that aren't the source's."""
        everything = np.full(setting.analysis.size, np.nan)
        everything[self.units] = numbers(figures)
        return everything


@dataclass(frozen=True)
class Seen:
    """What one piece of the data gave: each source's terms, [samples, units, ...], in double precision."""

    piece: Batch
    outputs: Any
    terms: tuple[Tensor, ...]


@dataclass(frozen=True)
class Gates:
    """The reads of a program as sources of evidence."""

    setting: Setting
    reads: tuple[Read, ...]
    sources: tuple[Source, ...]
    joint: bool

    @staticmethod
    def of(setting: Setting, joint: bool) -> Gates:
        """All reads as one source, or each as its own; and the units that nobody reads, of which all terms are zero."""
        reads = find_reads(setting.analysis)
        sources = (_together(reads, setting.analysis),) if joint and reads else tuple(map(_alone, reads))
        unread = _unread(setting, sources)
        return Gates(setting, reads, (*sources, unread) if unread.units.size else sources, joint)

    def run(self, term: Term, target: Target | None = None, figures: tuple[int, ...] = ()) -> Iterator[Seen]:
        """Run every piece of the data once, with `term` computed at every read; `figures` is the shape of what it gives
        for one sample and unit. Gives nothing where there are no reads."""
        if not self.reads:
            return
        program, calibration = self.setting.program, self.setting.calibration
        table = Table(self)
        module = watched(program, self.reads, lambda read, z, g: table.add(read, term(read, z.detach(), g.detach())))
        for piece in calibration.pieces(program, self.setting.context, bytes_of_a_sample(program)):
            table.clear(piece, figures)
            outputs = look_once(module, piece, target)
            yield Seen(piece, outputs, tuple(table.terms))


def _together(reads: Sequence[Read], analysis: Analysis) -> Source:
    most = np.zeros(analysis.size)
    for read in reads:
        most[read.units] = np.maximum(most[read.units], read.elements)
    units = np.flatnonzero(most)
    for group in analysis.groups.values():
        most[group.where] = most[group.where].max()
    return Source("gates", units, torch.from_numpy(most[units]))


def _unread(setting: Setting, sources: Sequence[Source]) -> Source:
    """A source with zeros for units that nothing reads, in groups whose other units are read."""
    read, unread = np.zeros((2, setting.analysis.size), dtype=bool)
    for source in sources:
        read[source.units] = True
    for group in setting.groups:
        unread[group.where] = group.free & ~read[group.where] & read[group.where].any()
    units = np.flatnonzero(unread)
    return Source("nobody", units, torch.ones(units.size, dtype=torch.float64))


def _alone(read: Read) -> Source:
    return Source(read.name, read.units, torch.full((read.units.size,), read.elements, dtype=torch.float64))


class Table:
    """Collects the terms of one piece of the data, [samples, units of the source] for each source."""

    def __init__(self, gates: Gates) -> None:
        self.widths = [source.units.size for source in gates.sources]
        places: list[FloatArray | IntArray] = [
            np.searchsorted(gates.sources[0].units, read.units) if gates.joint else np.arange(read.units.size)
            for read in gates.reads
        ]
        self.place = {
            read.name: (0 if gates.joint else number, torch.from_numpy(place))
            for number, (read, place) in enumerate(zip(gates.reads, places, strict=True))
        }
        self.terms: list[Tensor] = []
        self.piece = Batch(())

    def clear(self, piece: Batch, figures: tuple[int, ...] = ()) -> None:
        """Begin with a piece."""
        self.piece = piece
        self.terms = [torch.zeros(piece.count, width, *figures, dtype=torch.float64) for width in self.widths]

    def add(self, read: Read, sums: Tensor) -> None:
        """Take in what a read says."""
        number, place = self.place[read.name]
        if len(sums) != len(self.terms[number]):
            raise self.piece.place.fault(f"{read.name} has {len(sums)} rows for {len(self.terms[number])} samples")
        self.terms[number].index_add_(1, place, sums.double().cpu())
