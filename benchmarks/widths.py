"""Which widths each runtime likes: a layer's latency against the channels that it writes, and those that it reads.

    python benchmarks/widths.py                                     all runtimes: half an hour on a busy machine
    python benchmarks/widths.py ncnn mnn --csv benchmarks/results/widths.csv       rows that are there stay
    python benchmarks/widths.py --csv benchmarks/results/widths.csv --picture benchmarks/results/widths.png

A 3x3, a 1x1 and a depthwise layer on images of 28x28 and 7x7, one thread, measured as the tables of a latency budget
are: the layer's own nodes, without changes of layout around it; all widths in turns, the lowest times count. The layer
has 64 channels on the side that doesn't change.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

import matplotlib.pyplot as plt
import torch
from rich.console import Console

from prunec.compiler.cost.latency.layers import Layer
from prunec.compiler.cost.latency.table import Measured
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.child import workers
from prunec.compiler.targets.processor import processor

RUNTIMES: Final = ("onnxruntime", "openvino", "ncnn", "mnn", "executorch", "litert", "torch")
SIZES: Final = (28, 7)
OTHER: Final = 64
"""Channels of the side that doesn't change."""
WIDTHS: Final = sorted(
    {*range(8, 137, 4), *(w + d for w in range(16, 137, 16) for d in (-2, -1, 1, 2) if w + d <= 136)}
)
LAYERS: Final = ("3x3", "1x1", "depthwise")
SIDES: Final = {"out": "written", "in": "read"}
BLOCKS: Final = (2, 4, 8, 16)
DEAR: Final = 0.04
"""From this share of its time on, a width costs something; measured times differ by less without a reason."""
NARROWEST, WIDEST = 4, 16
"""Channels in the narrowest and in the widest vector register: of NEON and of AVX-512. What takes two at a time, as
XNNPACK does with AVX-512, isn't followed: it does so nowhere else."""
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
    for name, size in itertools.product(LAYERS, SIZES):
        for row in measured(times, name, size, sweeps):
            yield {"target": target, **row, "runtime": times.name.split(",")[0], "processor": processor()}


def main() -> None:
    """Measure what isn't there yet, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(RUNTIMES))
    parser.add_argument("--sweeps", type=int, default=3, help="so often each is measured; converters take their time")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--picture", type=Path, help="draw what is in the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Console(soft_wrap=True)
    rows: list[Mapping[str, Any]] = []
    if options.csv and options.csv.exists():
        rows += csv.DictReader(options.csv.open(encoding="utf-8"))
    known = {row["target"] for row in rows}
    meters = {target: Measured(TARGETS.named(target)().meter()) for target in options.targets if target not in known}
    for target, times in meters.items():
        with workers():
            rows += rows_of(target, times, options.sweeps)
        out.print(f"{target} is measured")
        if options.csv:
            write(options.csv, rows)
    for target in dict.fromkeys(row["target"] for row in rows):
        told = ", ".join(f"{block}: {cost:+.1%}" for block, cost in costs(rows, target).items())
        out.print(f"{target}: odd multiples of {told}; so multiples of {multiple(rows, target)}")
    if options.picture:
        draw(options.picture, rows)


def costs(rows: Sequence[Mapping[str, Any]], target: str) -> dict[int, float]:
    """Block -> how much longer a runtime takes for widths that are odd multiples of it than the line between their
    neighbours, which are even ones: nothing where steps are no wider than the block. Of a layer's widths the median,
    of all layers the mean."""
    lines: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row["target"] == target:
            lines[row["layer"], row["size"], row["side"]][int(row["width"])] = float(row["us"])
    found = {block: [each for line in lines.values() for each in _excess(line, block)] for block in BLOCKS}
    return {block: fmean(each) for block, each in found.items() if each}


def _excess(line: Mapping[int, float], block: int) -> list[float]:
    """The median of how much longer the odd multiples of a block take than their neighbours; none without widths."""
    odd = [
        width for width in range(3 * block, max(WIDTHS), 2 * block) if {width - block, width, width + block} <= {*line}
    ]
    over = [2 * line[width] / (line[width - block] + line[width + block]) - 1 for width in odd]
    return [median(over)] if over else []


def multiple(rows: Sequence[Mapping[str, Any]], target: str) -> int:
    """The multiple that these figures ask for: twice the widest block whose odd multiples cost something, but for the
    narrowest and the widest register that there is."""
    dear = [block for block, cost in costs(rows, target).items() if cost >= DEAR]
    return min(max(2 * max(dear, default=0), NARROWEST), WIDEST)


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A picture of latency against width: a row for each runtime, a column for each layer of the larger image."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    figure, axes = plt.subplots(len(targets), len(LAYERS), figsize=(12, 2.3 * len(targets)), squeeze=False)
    for (line, target), (column, layer) in itertools.product(enumerate(targets), enumerate(LAYERS)):
        axis = axes[line][column]
        for side in SIDES:
            mine = [r for r in rows if (r["target"], r["layer"], r["side"]) == (target, layer, side)]
            points = sorted((int(r["width"]), float(r["us"])) for r in mine if int(r["size"]) == max(SIZES))
            if points:
                axis.plot(*zip(*points, strict=True), ".-", markersize=3, linewidth=0.8, label=SIDES[side])
        axis.set_title(f"{target}, {layer}", fontsize=9)
        axis.set_xticks(range(0, max(WIDTHS) + 1, 16))
        axis.tick_params(labelsize=7)
        axis.grid(visible=True, linewidth=0.3)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("µs", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.suptitle(
        f"Latency of a layer against its channels, {max(SIZES)}x{max(SIZES)}; {rows[0]['processor']}", fontsize=10
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=80)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows, as a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
