"""Which widths each runtime likes: a layer's latency against the channels that it writes, and those that it reads.

    python benchmarks/widths.py                                     all runtimes: half an hour on a busy machine
    python benchmarks/widths.py ncnn mnn --csv benchmarks/results/widths.csv       rows that are there stay
    python benchmarks/widths.py --csv benchmarks/results/widths.csv --picture docs/widths.png

A 3x3, a 1x1 and a depthwise layer on images of 28x28 and 7x7, one thread, measured as the tables of a latency budget
are: the layer's own nodes, without changes of layout around it; all widths in turns, the lowest times count. The layer
has 64 channels on the side that doesn't change.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from prunec.compiler.cost.latency.layers import Layer
from prunec.compiler.cost.latency.table import Measured
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.processor import processor

RUNTIMES: Final = ("onnxruntime", "openvino", "ncnn", "mnn", "executorch", "litert", "torch")
SIZES: Final = (28, 7)
OTHER: Final = 64
"""Channels of the side that doesn't change."""
WIDTHS: Final = sorted(
    {*range(8, 137, 4), *(w + d for w in range(16, 137, 16) for d in (-2, -1, 1, 2) if w + d <= 136)}
)
COLUMNS: Final = ("target", "layer", "size", "side", "width", "us", "runtime", "processor")


def layer_of(name: str, size: int) -> Layer:
    """The layer at its widest."""
    most, grouped = max(WIDTHS), name == "depthwise"
    kernel = (1, 1) if name == "1x1" else (3, 3)
    pads = tuple((each // 2, each // 2) for each in kernel)
    groups = most if grouped else 1
    return Layer("conv", most, most, 1, (size, size), groups, grouped, kernel, (1, 1), pads, (1, 1))


def measured(times: Measured, name: str, size: int, sweeps: int) -> Iterator[dict[str, Any]]:
    """A row for each width of each side; a depthwise layer has one side."""
    layer = layer_of(name, size)
    points = {("out", width): (OTHER, width) for width in WIDTHS}
    if name != "depthwise":
        points |= {("in", width): (width, OTHER) for width in WIDTHS}
    found = [times.layer(layer, list(points.values())) for _ in range(sweeps)]
    for (side, width), seconds in zip(points, zip(*found, strict=True), strict=True):
        yield {"layer": name, "size": size, "side": side, "width": width, "us": f"{1e6 * min(seconds):.2f}"}


def rows_of(target: str, times: Measured, sweeps: int) -> Iterator[dict[str, Any]]:
    """All rows of a runtime."""
    for name, size in itertools.product(("3x3", "1x1", "depthwise"), SIZES):
        for row in measured(times, name, size, sweeps):
            yield {"target": target, **row, "runtime": times.name.split(",")[0], "processor": processor()}


def main() -> None:
    """Measure what isn't there yet, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(RUNTIMES))
    parser.add_argument("--sweeps", type=int, default=3, help="so often each is measured; converters take their time")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Console(soft_wrap=True)
    rows: list[Mapping[str, Any]] = []
    if options.csv and options.csv.exists():
        rows += csv.DictReader(options.csv.open(encoding="utf-8"))
    known = {row["target"] for row in rows}
    meters = {target: Measured(TARGETS.named(target)().meter()) for target in options.targets if target not in known}
    for target, times in meters.items():
        rows += rows_of(target, times, options.sweeps)
        out.print(f"{target} is measured")
        if options.csv:
            write(options.csv, rows)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows, as a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
