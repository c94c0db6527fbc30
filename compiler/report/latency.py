"""The table of `prunec latency`: every distinct layer with its time alone and in the network, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import fsum

from rich.text import Text

from prunec.compiler.cost.latency.layers import Layer
from prunec.compiler.cost.latency.model import Charge, LatencyModel
from prunec.compiler.report.console import few, say, table
from prunec.compiler.report.figures import duration, percent

Row = list[str | Text]
COLUMNS = ("layer", "operation", "widths", "alone", "in the network", "share", "table")
NUMBERS = ("widths", "alone", "in the network", "share")


def show_latency(model: LatencyModel, runtime: str) -> None:
    """Print the table; `runtime` is what the times hold for."""
    total = model.seconds
    rows = [*_layers(model, total), *_rest(model, total)]
    table(f"{model.program.name}: {duration(total)} in {runtime}", COLUMNS, rows, right=NUMBERS)
    fresh = len({charge.layer for charge in model.charges if charge.fresh})
    known = len({charge.layer for charge in model.charges if charge.layer}) - fresh
    say(f"\n{fresh} layers were measured now, {known} were known")


def _layers(model: LatencyModel, total: float) -> Iterator[Row]:
    """A row for each distinct layer, the longest first."""
    found: dict[tuple[Layer, bool], list[Charge]] = {}
    for charge in model.charges:
        if charge.layer is not None:
            found.setdefault((charge.layer, charge.fresh), []).append(charge)
    for (layer, fresh), charges in sorted(found.items(), key=lambda item: -_sum(item[1])):
        alone = charges[0].surface.at(layer.inner, layer.outer)
        yield [
            few([charge.node for charge in charges], 1),
            layer.describe(),
            f"{layer.inner} to {layer.outer}",
            duration(alone * len(charges)),
            duration(_sum(charges)),
            percent(_sum(charges) / total),
            "measured" if fresh else "known",
        ]


def _rest(model: LatencyModel, total: float) -> Iterator[Row]:
    """What multiplies without a table, what doesn't multiply, and what no width changes."""
    tableless = [charge for charge in model.charges if charge.layer is None]
    parts = (
        ("other products", fsum(charge.seconds for charge in tableless if charge.multiplies)),
        ("everything else", fsum(charge.seconds for charge in tableless if not charge.multiplies)),
        ("from node to node", model.fixed),
    )
    for name, time in parts:
        if time:
            yield [name, "", "", "", duration(time), percent(time / total), ""]


def _sum(charges: Sequence[Charge]) -> float:
    return fsum(charge.seconds for charge in charges)
