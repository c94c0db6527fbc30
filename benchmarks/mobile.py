"""Every runtime, on the networks of phones: is a slim model right there, and as much faster as it is smaller?

    python benchmarks/mobile.py                                          all networks and targets: hours
    python benchmarks/mobile.py mobilenet_v2 resnet18 --targets ncnn mnn --int8
    python benchmarks/mobile.py --csv benchmarks/results/mobile.csv      rows that are there aren't measured again

The plan is `score`, `select: {budget: {macs: 50%}}`, `shrink`, `fold_bn`, and exports to this target alone, so that
widths are multiples of what its runtime prefers; weights are random, the batch is an image of 224x224. Original and
slim model are converted, run in the target's own runtime and compared with the module on several inputs. They are
timed in turns, with one thread, in CPU seconds of the process, and the fastest run counts: what other programs take of
the caches makes a run slower, and a small model's more. A ratio is that of the latencies over that of the MACs: at
1.0, half the MACs are half the time. int8 is calibrated on random images, so its difference from the module tells of
rounding and of nothing else.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
from rich.console import Console

from prunec.compiler import trace
from prunec.compiler.cost.model import cost
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.targets import exporting
from prunec.compiler.targets.base import TARGETS, Array
from prunec.compiler.targets.exporting import Calibration, ExportContext, TargetReport, Timed, export
from prunec.compiler.targets.interleaved import BLOCK, Run
from prunec.compiler.targets.processor import processor
from prunec.passes.fold_bn import FoldBN
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink

NETWORKS = ("mobilenet_v2", "mobilenet_v3_small", "resnet18", "efficientnet_b0", "shufflenet_v2_x1_0", "vit_b_16")
SIZE = 224
COLUMNS = (
    *("network", "target", "runtime", "multiple", "macs", "difference", "dense_ms", "slim_ms", "ratio"),
    *("dense_mb", "slim_mb", "int8_mb", "int8_ms", "int8_difference", "note", "processor"),
)


def dense(name: str) -> Program:
    """A classifier with random weights and running statistics of its own activations, so that no value dies out; some
    heads are made with weights of zero."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.05)
    with torch.no_grad():
        model(torch.randn(8, 3, SIZE, SIZE))
    return trace(model.eval(), (torch.randn(1, 3, SIZE, SIZE),))


@dataclass(frozen=True)
class Slim:
    """A network at half of its MACs."""

    program: Program
    multiple: int
    """Of what its widths are multiples: what the runtime prefers, or less, where that would cost too much."""


def slim(program: Program, runtime: str) -> Slim:
    """By the default plan for a runtime; batch norm is folded, as in the original when it is converted."""
    context, multiple = Context(traced=program, runtime=runtime), 1
    for each in (Score(), Select.model_validate({"budget": {"macs": "50%"}}), Shrink(), FoldBN()):
        result = each.run(program, context)
        program, multiple = result.program, result.details.get("multiple_of", {}).get("channels", multiple)
    return Slim(program, multiple)


class Slims:
    """The slim networks of one original, by what a runtime prefers: many prefer the same."""

    def __init__(self, original: Program) -> None:
        self.original = original
        self._made: dict[int, Slim] = {}

    def of(self, target: str) -> Slim:
        """The one of a plan that exports to this target."""
        runtime = TARGETS.named(target).runtime or target
        preferred = TARGETS.named(runtime).multiple
        if preferred not in self._made:
            self._made[preferred] = slim(self.original, runtime)
        return self._made[preferred]


def calibration(program: Program) -> Calibration:
    """Random images, and the relative difference from the module on one of them."""
    x = program.inputs[0]
    with torch.no_grad():
        exact = program.module(x)

    def judge(model: Any) -> tuple[str, float]:
        return "difference", float((model(x) - exact).abs().max() / exact.abs().max())

    def samples(count: int, batch: int | None) -> Sequence[Sequence[Array]]:
        generator = torch.Generator().manual_seed(1)
        return [[torch.randn(batch or 1, *x.shape[1:], generator=generator).numpy()] for _ in range(count)]

    return Calibration(samples, judge)


def row(name: str, target: str, dense: Program, slim: Slim, int8: bool) -> dict[str, str]:
    """Convert, compare and time; int8 where the target has it."""
    made, program = TARGETS.named(target)(), slim.program
    wanted = {"int8": {"samples": 16}} if int8 and made.quantizes() else {}
    with TemporaryDirectory() as folder:
        found = export(
            made,
            program,
            Path(folder),
            made.Options.model_validate(wanted),
            ExportContext(dense, calibration=calibration(program) if wanted else None),
        )
    share = cost(program).macs / cost(dense).macs
    said = {"multiple": str(slim.multiple), "macs": f"{share:.3f}", "processor": processor()}
    return {"network": name, "target": target} | said | _figures(found, share)


def _figures(found: TargetReport, share: float) -> dict[str, str]:
    figures = {"runtime": found.runtime, "note": found.error or found.unrunnable or found.note}
    if found.error:
        return figures
    figures["slim_mb"] = f"{found.bytes / 1e6:.2f}"
    if found.dense_bytes is not None:
        figures["dense_mb"] = f"{found.dense_bytes / 1e6:.2f}"
    if found.difference is not None:
        figures["difference"] = f"{found.difference:.1e}"
    for timed in found.latency:
        figures |= _times(timed, share)
    if found.int8 is not None and not found.int8.error:
        figures["int8_mb"] = f"{found.int8.bytes / 1e6:.2f}"
        figures["int8_difference"] = "" if found.int8.after is None else f"{found.int8.after:.2f}"
        figures["int8_ms"] = next((f"{1e3 * each.slim:.2f}" for each in found.int8.latency), "")
    elif found.int8 is not None:
        figures["note"] = f"int8: {found.int8.error}"
    return figures


def _times(timed: Timed, share: float) -> dict[str, str]:
    figures = {"slim_ms": f"{1e3 * timed.slim:.2f}"}
    if timed.dense is not None:
        figures |= {"dense_ms": f"{1e3 * timed.dense:.2f}", "ratio": f"{timed.slim / timed.dense / share:.2f}"}
    return figures


def time_alone(seconds: float) -> None:
    """Have exports timed with one thread, by the CPU seconds of the process."""
    exporting.THREADS = (1,)  # type: ignore[misc,assignment]
    exporting.SECONDS = seconds  # type: ignore[misc]
    exporting.run_seconds = fastest  # type: ignore[assignment]


def fastest(runs: Sequence[Run], seconds: float, *, alone: bool) -> list[float]:
    """The CPU seconds of the fastest run of each; they take turns, each for `seconds` of runs in blocks of `BLOCK`."""
    times = [_block(run) for run in runs]
    while sum(times[0]) < seconds:
        times = [before + _block(run) for before, run in zip(times, runs, strict=True)]
    return [min(each) for each in times]


def _block(run: Run) -> tuple[float, ...]:
    times: list[float] = []
    while not times or sum(times) < BLOCK:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return tuple(times)


def main() -> None:
    """Measure what is asked for, and print each row as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--targets", nargs="*", default=[n for n in TARGETS.names() if TARGETS.named(n).suffixes])
    parser.add_argument("--int8", action="store_true", help="make and time int8 files as well")
    parser.add_argument("--seconds", type=float, default=2.0, help="for about so long each model is timed")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    time_alone(options.seconds)
    rows = list(csv.DictReader(options.csv.open(encoding="utf-8"))) if options.csv and options.csv.exists() else []
    known = {(each["network"], each["target"]) for each in rows}
    out = Console(soft_wrap=True)
    for name in options.networks:
        wanted = [target for target in options.targets if (name, target) not in known]
        if not wanted:
            continue
        slims = Slims(dense(name))
        for target in wanted:
            found = row(name, target, slims.original, slims.of(target), options.int8)
            out.print("  ".join(f"{key} {found[key]}" for key in COLUMNS[:-1] if found.get(key)))
            rows.append(found)
            if options.csv:
                with options.csv.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, restval="")
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main()
