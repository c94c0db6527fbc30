"""Is a slim model as much faster as it is smaller? Latency ratio over MACs ratio: at 1.0, half take half as long.

    python benchmarks/latency_per_mac.py                                    all networks, at 50 and 30% of the MACs
    python benchmarks/latency_per_mac.py resnet18 --share 50% --multiple 1 8 16 --torch
    python benchmarks/latency_per_mac.py mobilenet_v2 --against-latency --method knapsack
    python benchmarks/latency_per_mac.py regnet_y_400mf --grouped whole

The plan is `score`, `select: {budget: {macs: ...}}`, `shrink`, with an ONNX export; weights are random, the batch is an
image of 224x224, the runtime has one thread. The original and all slim models take turns, a run each; of every
model's seconds (the thread's own) the lower quintile counts, and the spread is that of the ratio over four parts of the
turns. Where the ratio is above 1.15, the layers that cost it are named.

`--torch` times eager PyTorch as well. `--against-latency` selects by latency and by MACs, with the default widths and
`--method`, so that the time is the one that the default plan took, and tells which share of the scores each keeps.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from rich.console import Console

from prunec.compiler import trace
from prunec.compiler.cost.model import cost
from prunec.compiler.driver.slow_layers import SLOW, slow_layers
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.report.report import Change
from prunec.compiler.targets.onnx_export import onnx_bytes
from prunec.compiler.targets.ort_session import feed, session
from prunec.passes.axes import Axes
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink

NETWORKS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0"),
    *("regnet_y_400mf", "regnet_y_800mf", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16"),
)
TRIES, CLOSE = 5, 0.015
"""So often a budget is set anew until its time is this near to the one that it is to have."""
PARTS = 4
"""Into so many parts the turns are divided for the spread."""

Timed = tuple[list[float], list[list[float]]]
"""The seconds of every model, and those of each part of the turns."""


def scored(name: str, grouped: str | None) -> Program:
    """A classifier with random weights, traced and scored."""
    torch.manual_seed(0)
    program = trace(torchvision.models.get_model(name, weights=None).eval(), (torch.randn(1, 3, 224, 224),))
    context = Context(traced=program)
    divided = Axes(grouped=grouped).run(program, context).program if grouped else program
    return Score().run(divided, context).program


def slimmed(program: Program, options: dict[str, Any]) -> tuple[Program, float, Any]:
    """The slim program, the share of scores that it keeps, and the multiple that it has by default."""
    context = Context(traced=program, runtime="onnxruntime")
    found = Select.model_validate(options).run(program, context)
    kept = found.details["kept_score"] / found.details["whole_score"]
    multiple = found.details.get("multiple_of", {}).get("channels")
    return Shrink().run(found.program, context).program, kept, multiple


def in_turns(runs: Sequence[Callable[[], object]], seconds: float) -> Timed:
    """Time all runs in turns, for about so many seconds."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[0]) < 5 * PARTS:
        for run, mine in zip(runs, times, strict=True):
            before = time.thread_time()
            run()
            mine.append(time.thread_time() - before)
    parts = [[float(np.quantile(part, 0.2)) for part in np.array_split(mine, PARTS)] for mine in times]
    return [float(np.quantile(mine, 0.2)) for mine in times], parts


def onnx_runs(files: Sequence[bytes], program: Program) -> list[Callable[[], object]]:
    """A run of each file in onnxruntime."""
    sessions = [session(file) for file in files]
    feeds = [feed(opened, program.inputs) for opened in sessions]
    return [lambda opened=opened, fed=fed: opened.run(None, fed) for opened, fed in zip(sessions, feeds, strict=True)]


def torch_runs(programs: Sequence[Program]) -> list[Callable[[], object]]:
    """A run of each program in eager PyTorch."""

    def run(module: torch.nn.Module, x: torch.Tensor) -> object:
        with torch.inference_mode():
            return module(x)

    return [lambda p=program: run(p.module, programs[0].inputs[0]) for program in programs]


def table(name: str, shares: Sequence[str], options: argparse.Namespace, out: Console) -> list[dict[str, Any]]:
    """Measure a network; a row for each slim form of it."""
    program = scored(name, options.grouped)
    wanted: list[tuple[str, str, dict[str, Any]]] = []
    for share in shares:
        wanted.append((share, "default", {"budget": {"macs": share}}))
        wanted += [(share, str(m), {"budget": {"macs": share}, "multiple_of": m}) for m in options.multiple]
    slim = [slimmed(program, each) for _, _, each in wanted]
    programs = [program, *(found for found, _, _ in slim)]
    files = [onnx_bytes(each) for each in programs]
    ort = in_turns(onnx_runs(files, program), options.seconds * len(files))
    eager = in_turns(torch_runs(programs), options.seconds * len(files)) if options.torch else None
    whole, rows = cost(program).macs, []
    for number, ((_, label, _), (found, kept, multiple)) in enumerate(zip(wanted, slim, strict=True), start=1):
        macs = cost(found).macs / whole
        row = {"network": name, "macs": f"{macs:.3f}", "multiple_of": label, "used": multiple or label}
        row |= {"kept": f"{kept:.3f}", "original_ms": f"{1e3 * ort[0][0]:.2f}"}
        row |= _ratios("onnxruntime", ort, number, macs)
        row |= _ratios("torch", eager, number, macs) if eager else {}
        rows.append(row)
        out.print("  ".join(f"{key} {value}" for key, value in row.items()))
        if float(row["onnxruntime"]) > SLOW and label == "default":
            pair = Change(files[0], files[number])
            out.print(f"    {slow_layers(Change(program, found), pair, Change(ort[0][0], ort[0][number]), {})}")
        if options.against_latency and label == "default":
            for line in _against(program, files[number], kept, ort[0][number] / ort[0][0], options):
                out.print(f"    {line}")
    return rows


def _ratios(runtime: str, timed: Timed, number: int, macs: float) -> dict[str, str]:
    """The latency ratio over the MACs ratio, and its spread."""
    seconds, parts = timed
    spread = [mine / old / macs for mine, old in zip(parts[number], parts[0], strict=True)]
    ratio = seconds[number] / seconds[0] / macs
    return {runtime: f"{ratio:.2f}", f"{runtime}_spread": f"{min(spread):.2f} to {max(spread):.2f}"}


def _against(
    program: Program, file: bytes, kept: float, time_share: float, options: argparse.Namespace
) -> Iterator[str]:
    """Budgets of latency and of MACs by `--method` that come to the default plan's time: what each keeps of scores."""
    for resource in ("latency", "macs"):
        asked = min(1.0, time_share)
        for _ in range(TRIES):
            found, score, multiple = slimmed(program, {"budget": {resource: asked}, "method": options.method})
            timed, _ = in_turns(onnx_runs([file, onnx_bytes(found)], program), 2 * options.seconds)
            if abs(timed[1] / timed[0] - 1) < CLOSE:
                break
            asked = min(1.0, asked * timed[0] / timed[1])
        macs = cost(found).macs / cost(program).macs
        yield (
            f"by {resource}, {options.method}, multiples of {multiple}, at {timed[1] / timed[0]:.3f} times the time: "
            f"keeps {score:.3f} of scores, {macs:.3f} of MACs; the default {kept:.3f}"
        )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="classifiers of torchvision")
    parser.add_argument("--share", nargs="+", default=["50%", "30%"])
    parser.add_argument("--multiple", nargs="*", type=int, default=[], help="beside the default, these")
    parser.add_argument("--grouped", choices=["same", "equal", "free", "whole"], help="`axes`, before `score`")
    parser.add_argument("--method", default="ranking", choices=["ranking", "greedy", "knapsack"])
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--against-latency", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each model and runtime")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out, rows = Console(highlight=False, soft_wrap=True), []
    for name in options.networks:
        rows += table(name, options.share, options, out)
        if options.csv:
            with options.csv.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
