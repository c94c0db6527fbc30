"""Tables of measured times: layers alone over a grid of widths, and a whole network node by node, kept on disk.

    Table       asked for layers and networks; reads what is on disk, and lets `Times` measure the rest
    Measured    the `Times` of a runtime, by its meter (`targets.base.Meter`)

A layer alone would pay for what a network pays once: its input is put into the runtime's own layout, and its output is
taken out of it. So not the run is timed but the layer's own nodes, by the runtime's profiler. Converters take seconds
whatever they convert: so a layer stands at many widths in one model. But not at all of them where they are small: each
would find its input in memory, where a network's layer has just written it to the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from prunec.compiler.cost.latency.cache import Cache, cache_folder
from prunec.compiler.cost.latency.grid import Grid, Point, Surface
from prunec.compiler.cost.latency.layers import PART, Layer, parts_of
from prunec.compiler.errors import TargetError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.targets.base import Meter, NodeTime
from prunec.compiler.targets.metering import seconds_of
from prunec.compiler.targets.sources import deployed
from prunec.compiler.text.printer import to_text

FORMAT: Final = 3
"""The version of entries on disk: raised when what is measured, or how, changes."""
HELD: Final = 64e6
"""The most elements of weights that are in memory at once while a layer is measured."""
CACHED: Final = 2e6
"""Elements that a model may read and write until caches don't hold them."""
FEWEST: Final = 8
"""A layer of which caches don't hold so many at its widest stands at all widths in one model: it finds nothing there
in a network either."""
SWEEPS: Final = 2
"""How often every layer is measured, with time in between; the fastest counts."""
NETWORK_SWEEPS: Final = 4
"""How often the network is measured; the fastest counts, node by node."""
SHORTEST: Final = 1e-7
"""Seconds: a shorter time is beyond the profiler's resolution."""
LAYER_SECONDS: Final = 0.5
"""For about so long a layer is run at all its widths, in each sweep."""
NETWORK_SECONDS: Final = 0.5


@dataclass(frozen=True)
class NetworkTime:
    """A whole network: the nodes as the runtime runs them, and the seconds of one run seen from outside."""

    nodes: tuple[NodeTime, ...]
    seconds: float


class Times(Protocol):
    """What gives the times of layers and networks."""

    name: str
    """What the times hold for: the runtime with its version, the processor and the threads."""

    def layer(self, layer: Layer, points: Sequence[Point]) -> Sequence[float]:
        """Seconds of a layer at each of these pairs of widths."""

    def network(self, program: Program) -> NetworkTime:
        """A whole program on its example inputs."""


class Measured:
    """Times that a runtime's meter takes: of a layer at many widths side by side, and of a whole network."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.name = meter.name

    def layer(self, layer: Layer, points: Sequence[Point]) -> Sequence[float]:
        """Seconds of the layer's own nodes; as many points at a time as memory holds."""
        runs = list(_held(layer, points))
        seconds = LAYER_SECONDS / len(runs)
        return [took for some in runs for took in self._alone(layer, some, seconds)]

    def _alone(self, layer: Layer, points: Sequence[Point], seconds: float) -> list[float]:
        """Seconds of the layer at these points, without nodes that change the layout."""
        found: dict[int, float] = {}
        for node in self.meter.profile(parts_of(layer, points), seconds):
            part = PART.search(node.name)
            if part is not None and node.op not in self.meter.layout:
                found[int(part[1])] = found.get(int(part[1]), 0.0) + node.seconds
        if len(found) < len(points):
            raise TargetError(f"{self.name} tells no time of the layer {layer.describe()}")
        return [found[number] for number in range(len(points))]

    def network(self, program: Program) -> NetworkTime:
        """The program, with the sizes of its example inputs, and run on them."""
        program = deployed(program)
        run = self.meter.loaded(program)
        sweeps = []
        for _ in range(NETWORK_SWEEPS):
            nodes = self.meter.profile(program, NETWORK_SECONDS)
            sweeps.append(NetworkTime(nodes, *seconds_of([run])))
        return _fastest(sweeps)


def _fastest(sweeps: Sequence[NetworkTime]) -> NetworkTime:
    """The fastest time of every node, and of the whole run, over all sweeps."""
    nodes = zip(*(sweep.nodes for sweep in sweeps), strict=True)
    fastest = tuple(min(same, key=lambda node: node.seconds) for same in nodes)
    return NetworkTime(fastest, min(sweep.seconds for sweep in sweeps))


def _held(layer: Layer, points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """The points in runs of as many as memory holds weights of, and caches all that is touched, where it is small."""
    run: list[Point] = []
    weights, touched = 0, 0
    most = CACHED if FEWEST * max(_touched(layer, point) for point in points) <= CACHED else math.inf
    for point in points:
        own, more = layer.weights(*point), _touched(layer, point)
        if run and (weights + own > HELD or touched + more > most):
            yield run
            run, weights, touched = [], 0, 0
        run.append(point)
        weights, touched = weights + own, touched + more
    yield run


def _touched(layer: Layer, point: Point) -> int:
    return layer.weights(*point) + layer.values(*point)


# -- kept on disk --------------------------------------------------------------------------------------------------

Wanted = tuple[Layer, tuple[bool, bool]]
"""A layer, and which of its widths, inner and outer, may change."""


@dataclass
class Table:
    """Times that are measured when they are first asked for, and read from disk afterwards."""

    times: Times
    cache: Cache = field(default_factory=lambda: Cache(cache_folder() / "latency"))
    refresh: bool = False
    """Measure again what is on disk."""
    progress: Progress = silent
    measured: set[Wanted] = field(default_factory=set)
    """What was measured in this run, rather than read."""

    def surfaces(self, wanted: Sequence[Wanted]) -> Mapping[Wanted, Surface]:
        """The times of these layers as functions of their widths, measured where the disk has none."""
        distinct = list(dict.fromkeys(wanted))
        known = {} if self.refresh else {each: self._load(each) for each in distinct}
        times = {each: found for each, found in known.items() if found is not None}
        missing = [each for each in distinct if each not in times]
        times |= self._measure(missing)
        for each in missing:
            self.cache.store(self._layer_key(each), times[each])
        self.measured.update(missing)
        return {each: _surface(each, times[each]) for each in distinct}

    def _measure(self, wanted: Sequence[Wanted]) -> dict[Wanted, list[float]]:
        """Measure all of them in sweeps, and keep the fastest time of each point: what slows the machine down for a
        while spoils one sweep only."""
        found: dict[Wanted, list[float]] = {}
        total = SWEEPS * len(wanted)
        for number in range(total):
            self.progress("measuring layers", number, total)
            each = wanted[number % len(wanted)]
            points = Grid.of(*each).points
            times = [max(float(seconds), SHORTEST) for seconds in self.times.layer(each[0], points)]
            found[each] = [min(pair) for pair in zip(times, found.get(each, times), strict=True)]
        self.progress("measuring layers", total, total)
        return found

    def network(self, program: Program) -> NetworkTime:
        """The times of a whole program; on disk it is known by its text, without facts."""
        key = self._key("network", program=to_text(program.derive(facts={})))
        known = None if self.refresh else self.cache.load(key)
        if known is not None:
            return NetworkTime(tuple(NodeTime(*node) for node in known["nodes"]), known["seconds"])
        self.progress("measuring the network", 0, 1)
        found = self.times.network(program)
        self.progress("measuring the network", 1, 1)
        nodes = [list(asdict(node).values()) for node in found.nodes]
        self.cache.store(key, {"nodes": nodes, "seconds": found.seconds})
        return found

    def _key(self, what: str, **shape: Any) -> dict[str, Any]:
        return {"format": FORMAT, "what": what, "on": self.times.name, **shape}

    def _layer_key(self, wanted: Wanted) -> dict[str, Any]:
        return self._key("layer", layer=wanted[0].to_dict(), points=[list(point) for point in Grid.of(*wanted).points])

    def _load(self, wanted: Wanted) -> list[float] | None:
        times, size = self.cache.load(self._layer_key(wanted)), len(Grid.of(*wanted).points)
        good = isinstance(times, list) and len(times) == size and all(isinstance(t, float) and t > 0 for t in times)
        return times if good else None


def _surface(wanted: Wanted, times: Sequence[float]) -> Surface:
    grid = Grid.of(*wanted)
    return grid.surface(dict(zip(grid.points, times, strict=True)))
