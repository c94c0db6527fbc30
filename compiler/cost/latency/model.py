"""Latency as a resource: what a selection would take in a runtime on this machine, read off measured tables.

    conv1    4.1 ms    its table at the widths that are left, times what a network makes of it
    fc       0.3 ms    ...
    add      0.1 ms    in proportion to the elements that are left
    fixed    0.2 ms    going from node to node, and laying inputs out

The whole network is measured once, and its time is shared out (`cost/latency/attribution.py`): so the prediction for
the whole program equals its measured latency. For narrower ones, every layer is read off its own table
(`cost/latency/grid.py`).

A table has steps: 48 channels may take as long as 64, and 63 longer. A plan does well to say `multiple_of: 16`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_matrix

from prunec.compiler.cost.latency.attribution import Part, share_out
from prunec.compiler.cost.latency.grid import Surface
from prunec.compiler.cost.latency.layers import Layer, layer_at
from prunec.compiler.cost.latency.table import Measured, Table, Wanted
from prunec.compiler.cost.model import CostModel, cost_model
from prunec.compiler.cost.resource import LATENCY, RUNTIME, Resource, latency_in
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Axis, BoolArray, FloatArray, IntArray, Program
from prunec.compiler.pass_base import Context, Progress, silent
from prunec.compiler.targets.child import workers
from prunec.compiler.targets.timing import meter_of, timed

NOTHING = Surface(np.ones((2, 1)), np.ones((2, 1)), np.ones((1, 1)))
"""The table of a part that has none: 1 at any width."""


@dataclass(frozen=True)
class Charge:
    """A part of the network's time, and how it follows the widths."""

    node: str
    seconds: float
    """What the part takes in the whole program."""
    factors: tuple[int, ...]
    """Numbers of widths: inner and outer (0 where there is no table), then those that it is proportional to."""
    layer: Layer | None = None
    surface: Surface = NOTHING
    fresh: bool = False
    """Whether its table was measured in this run, rather than read from disk."""
    multiplies: bool = False
    """Whether it is a layer or contraction (a term of `macs`), rather than any other value."""


@dataclass(frozen=True)
class LatencyTerms:
    """A term for each charge: `coefficient * table(inner, outer) * width * ...`, in seconds."""

    coefficient: FloatArray
    factors: IntArray
    """[terms, k]: inner width, outer width, and those that the term is proportional to."""
    surface: IntArray
    """[terms]: the number of the term's table."""
    tables: tuple[Surface, ...]

    @staticmethod
    def of(charges: Sequence[Charge], now: FloatArray) -> LatencyTerms:
        """The terms of charges: at the widths `now`, each gives the charge's seconds."""
        longest = max((len(charge.factors) for charge in charges), default=2)
        rows = [[*charge.factors, *[0] * (longest - len(charge.factors))] for charge in charges]
        numbers = {id(charge.surface): charge.surface for charge in charges}
        places = {key: place for place, key in enumerate(numbers)}
        surface = np.array([places[id(charge.surface)] for charge in charges], dtype=np.int64)
        factors = np.array(rows, dtype=np.int64).reshape(len(charges), longest)
        raw = LatencyTerms(np.ones(len(charges)), factors, surface, tuple(numbers.values()))
        return replace(raw, coefficient=np.array([charge.seconds for charge in charges]) / raw.each(now))

    def each(self, widths: FloatArray, which: IntArray | None = None) -> FloatArray:
        """[terms]: seconds, of all terms or of those numbered `which`; where `widths` has columns, [terms, columns]."""
        numbers = np.arange(self.surface.size) if which is None else which
        here = widths[self.factors[numbers]]
        inner, outer = (np.rint(here[:, side]).astype(np.int64) for side in (0, 1))
        beside = (-1,) + (1,) * (inner.ndim - 1)
        (left, left_starts), (right, right_starts), values = self._stacked
        tables = self.surface[numbers]
        lines = left[left_starts[tables].reshape(beside) + inner]
        rows = right[right_starts[tables].reshape(beside) + outer]
        read = np.einsum("t...k,tkl,t...l->t...", lines, values[tables], rows)
        return np.asarray(self.coefficient[numbers].reshape(beside) * read * here[:, 2:].prod(axis=1))

    @cached_property
    def _stacked(self) -> tuple[tuple[FloatArray, IntArray], tuple[FloatArray, IntArray], FloatArray]:
        """All tables as one: the lines under each other with where each starts, and [tables, k, k] values."""
        size = max((side for table in self.tables for side in table.values.shape), default=1)
        values = np.zeros((len(self.tables), size, size))
        for place, table in zip(values, self.tables, strict=True):
            place[: table.values.shape[0], : table.values.shape[1]] = table.values
        return _under([t.inner for t in self.tables], size), _under([t.outer for t in self.tables], size), values


def _under(lines: Sequence[FloatArray], size: int) -> tuple[FloatArray, IntArray]:
    """Lines of all tables under each other, padded to `size` columns, and the row where each starts."""
    padded = [np.pad(line, ((0, 0), (0, size - line.shape[1]))) for line in lines]
    starts = np.cumsum([0, *(len(line) for line in lines)])[: len(lines)]
    return np.concatenate([np.zeros((0, size)), *padded]), starts.astype(np.int64)


@dataclass(frozen=True)
class LatencyModel:
    """The latency of a program, and of every selection of its units."""

    program: Program
    charges: tuple[Charge, ...]
    fixed: float
    terms: LatencyTerms

    @cached_property
    def seconds(self) -> float:
        """What the whole program takes: the sum of all charges, and `fixed`."""
        return math.fsum(charge.seconds for charge in self.charges) + self.fixed

    def resource(self, name: str = LATENCY) -> Resource:
        """The latency as a resource in seconds; a plan writes `5ms`."""
        rows = csr_matrix(np.ones((1, len(self.charges))))
        model = cost_model(self.program)
        return Resource(name, model, self.terms, rows, self.fixed, {"s": 1.0}, per=1e-3, whole=False, diminishing=False)


def latency_resource(program: Program, context: Context, runtime: str = RUNTIME) -> Resource:
    """Latency in a target's runtime as a resource; what no earlier run has measured is measured, in seconds for every
    new layer.

    Raises `TargetError` or `ModelError` where the program has no form there or the runtime can't be run here, and
    `OutputError` where times can't be kept on disk.
    """
    table = new_table(runtime, context.progress)
    return latency_model(program, table, timed(runtime, program)).resource(latency_in(runtime))


def new_table(runtime: str = RUNTIME, progress: Progress = silent, *, refresh: bool = False) -> Table:
    """A table of times in a target's runtime on this machine; with `refresh`, what is on disk is measured again."""
    return Table(Measured(meter_of(runtime)), progress=progress, refresh=refresh)


def latency_model(program: Program, table: Table, seen: Program | None = None) -> LatencyModel:
    """Look up or measure every layer and the whole network, and share the network's time out. `seen` is the program as
    the runtime sees it, where that has another batch."""
    model = cost_model(program)
    seen = program if seen is None else seen
    now = model.widths(model.everything)
    layers = _layers(model, seen)
    with workers():
        surfaces = table.surfaces([wanted for wanted, _ in layers.values()])
        whole = table.network(seen)
    products = list(_products(model, layers, surfaces, table.measured))
    values = [charge for charge in _values(model) if charge.seconds]
    sizes = _elements(seen)
    parts = [Part(sizes[charge.node], charge.seconds) for charge in products]
    arriving = {sizes[node.name] for node in seen.graph.nodes if node.op == "placeholder"}
    shares = share_out(whole, parts, [sizes[charge.node] for charge in values], arriving)
    charges = tuple(
        replace(charge, seconds=seconds)
        for charge, seconds in zip((*products, *values), (*shares.parts, *shares.values), strict=True)
    )
    return LatencyModel(program, charges, shares.fixed, LatencyTerms.of(charges, now))


# -- parts of the program ------------------------------------------------------------------------------------------

_Found = Mapping[int, tuple[Wanted, tuple[int, ...]]]
"""Number of a term of `macs` -> the layer that it is, and the factors of its `Charge`."""


def _layers(model: CostModel, seen: Program) -> _Found:
    """The terms of `macs` that are layers with a table of their own."""
    analysis, terms = model.analysis, model.macs_terms
    nodes = {node.name: node for node in seen.graph.nodes}
    mutable = model.counts @ analysis.free.astype(np.float64) > 0
    now, found = model.widths(model.everything), {}
    for number, (name, factors) in enumerate(zip(terms.names, terms.factors.tolist(), strict=True)):
        node = nodes[name]
        whole = any(Axis(f"{node.target}.weight", dim) in analysis.flow.by_group for dim in (0, 1))
        layer = layer_at(seen, node, whole)
        if layer is None:
            continue
        inner, outer, *rest = (0, *factors, 0) if layer.whole else (factors[1], factors[0], *factors[2:])
        if now[outer] == layer.outer and (layer.whole or now[inner] == layer.inner):
            open_ = bool(mutable[inner]), bool(mutable[outer])
            found[number] = (layer, open_), (inner, outer, *rest)
    return found


def _products(
    model: CostModel, layers: _Found, surfaces: Mapping[Wanted, Surface], measured: set[Wanted]
) -> Iterator[Charge]:
    """A charge for each term of `macs`, with the seconds that it takes alone: by its table, or, where it has none, at
    the mean speed of those that have."""
    terms, now = model.macs_terms, model.widths(model.everything)
    macs = terms.each(now)
    alone = {number: _alone(surfaces[wanted], now, factors) for number, (wanted, factors) in layers.items()}
    pace = sum(alone.values()) / sum(float(macs[number]) for number in alone) if alone else 1.0
    for number, (name, factors) in enumerate(zip(terms.names, terms.factors.tolist(), strict=True)):
        if number in layers:
            wanted, mine = layers[number]
            yield Charge(name, alone[number], mine, wanted[0], surfaces[wanted], wanted in measured, True)
        else:
            yield Charge(name, pace * float(macs[number]), (0, 0, *factors), multiplies=True)


def _alone(surface: Surface, now: FloatArray, factors: Sequence[int]) -> float:
    return surface.at(int(now[factors[0]]), int(now[factors[1]]))


def _values(model: CostModel) -> Iterator[Charge]:
    """A charge for each computed value; so far, its number of elements stands in place of seconds."""
    terms, now = model.memory_terms, model.widths(model.everything)
    computed = {node.name for node in model.analysis.program.graph.nodes if node.op != "placeholder"}
    rows = zip(terms.names, terms.each(now).tolist(), terms.factors.tolist(), strict=True)
    for name, elements, factors in rows:
        if name in computed:
            yield Charge(name, elements, (0, 0, *factors))


def _elements(program: Program) -> Mapping[str, int]:
    """Node -> how many elements it writes."""
    return {node.name: _numbers(node.meta.get("val")) for node in program.graph.nodes}


def _numbers(value: object) -> int:
    if isinstance(value, tuple | list):
        return sum(_numbers(part) for part in value)
    return value.numel() if isinstance(value, torch.Tensor) else 0


# -- of a compile --------------------------------------------------------------------------------------------------


def predicted_latency(latency: Resource, after: Program) -> tuple[float, float]:
    """Predicted seconds of the program that `latency` is of, and of `after`, what a compile made of it."""
    return latency.now, latency.of(kept_units(latency.model.analysis.program, after))


def kept_units(before: Program, after: Program) -> BoolArray:
    """[units of `before`]: whether a later program still has the unit, by what is left of its writers' positions."""
    analysis = analyse(before)
    keep = np.ones(analysis.size, dtype=bool)
    for group in analysis.groups.values():
        for member in group.writers:
            left = after.left_of(before, member.axis)
            if left is not None:
                keep[group.start + member.units] &= np.isin(member.positions, left)
    return keep
