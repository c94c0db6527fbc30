"""Predicted beside measured latency, and plans that are driven by latency beside such that are driven by MACs.

    python benchmarks/latency.py                            ResNet-18 and MobileNet-V2, 224x224, half of the latency
    python benchmarks/latency.py --model vgg11_bn --size 96 --budget 60% --multiple-of 8 --repeat 3

For each model: the table is measured (or read from disk), a plan with a latency budget is compiled, and the slim model
is measured beside the original, several times over. Then the MACs budget is searched at which the same method keeps
the same sum of scores, and both slim models and the original are measured in turns. Weights are random: what counts is
time. Speeds are those of one thread; the lowest and highest of all repeats are printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
from rich.console import Console

from prunec.compiler import trace
from prunec.compiler.cost.model import cost
from prunec.compiler.cost.resources import resource
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.report.progress import watched
from prunec.compiler.targets.onnx_export import onnx_bytes
from prunec.compiler.targets.ort_session import ort_latency
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink

CLOSE = 0.002
"""How near two sums of kept scores count as equal, as a share."""


def scored(name: str, size: int, context: Context) -> Program:
    """A classifier with random weights, its channels scored by their norms against the mean of their group."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    program = trace(model, (torch.randn(1, 3, size, size),))
    return Score(criterion="l1", normalize="mean").run(program, context).program


def selected(program: Program, context: Context, options: dict[str, Any]) -> tuple[Program, float]:
    """The program with a selection, and the share of scores that is kept."""
    found = Select.model_validate(options).run(program, context).program
    scores, selection = program.facts["scores"], found.facts["selection"]
    gone = sum(float(scores[name][units].sum()) for name, units in selection.items() if name in scores)
    return found, 1 - gone / sum(float(values.sum()) for values in scores.values())


def equal_by_macs(program: Program, context: Context, options: dict[str, Any], kept: float) -> Program:
    """The selection under a MACs budget that keeps the same share of scores; a larger budget keeps more."""
    low, high = 0.02, 1.0
    for _ in range(12):
        share = (low + high) / 2
        found, score = selected(program, context, {**options, "budget": {"macs": share}})
        if abs(score / kept - 1) < CLOSE:
            break
        low, high = (share, high) if score < kept else (low, share)
    return found


def measured(programs: Sequence[Program], repeat: int) -> list[tuple[float, ...]]:
    """Milliseconds of every program, in turns, `repeat` times."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(programs))]
        for path, program in zip(paths, programs, strict=True):
            path.write_bytes(onnx_bytes(program))
        return [tuple(1e3 * s for s in ort_latency(paths, programs[0].inputs, 2.0)) for _ in range(repeat)]


def spread(values: Sequence[float], form: str) -> str:
    """The middle value, the lowest and the highest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def run(name: str, options: argparse.Namespace, out: Console) -> None:
    """Measure one model, and print what was found."""
    with watched() as progress:
        context = Context(progress=progress)
        program = scored(name, options.size, context)
        context = Context(progress=progress, traced=program)
        start = time.perf_counter()
        latency = resource("latency", program, context)
        seconds = time.perf_counter() - start
        plan: dict[str, Any] = {"multiple_of": options.multiple_of, "method": options.method}
        plan |= {"per_cost": True} if options.method == "greedy" else {}
        ours, kept = selected(program, context, {**plan, "budget": {"latency": options.budget}})
        theirs = equal_by_macs(program, context, plan, kept)
        slim = [Shrink().run(found, context).program for found in (ours, theirs)]
    times = measured([program, *slim], options.repeat)
    before, by_latency, by_macs = zip(*times, strict=True)
    foretold = [_predicted(latency, found) for found in (ours, theirs)]
    errors = [1e3 * foretold[0] / t - 1 for t in by_latency]
    shares = [(foretold[0] / latency.now) / (t / b) - 1 for t, b in zip(by_latency, before, strict=True)]
    out.print(f"{name} {options.size}x{options.size}, table after {seconds:.0f} s")
    out.print(f"  original            predicted {1e3 * latency.now:.2f} ms, measured {spread(before, '.2f')} ms")
    out.print(
        f"  latency {options.budget:11} predicted {1e3 * foretold[0]:.2f} ms, measured {spread(by_latency, '.2f')} ms"
    )
    out.print(f"    error             {spread(errors, '+.1%')}; of the share of the original {spread(shares, '+.1%')}")
    out.print(f"    left              {kept:.1%} of scores, {_macs(slim[0], program):.1%} of MACs")
    out.print(f"  macs, equal scores  predicted {1e3 * foretold[1]:.2f} ms, measured {spread(by_macs, '.2f')} ms")
    out.print(f"    left              {_kept(program, theirs):.1%} of scores, {_macs(slim[1], program):.1%} of MACs")
    gains = [m / ours_ for m, ours_ in zip(by_macs, by_latency, strict=True)]
    out.print(f"    takes             {spread(gains, '.3f')} times as long as the latency-driven one")


def _predicted(latency: Any, found: Program) -> float:
    keep = latency.model.everything.copy()
    for group in latency.model.analysis.groups.values():
        gone = found.facts["selection"].get(group.name)
        if gone is not None:
            keep[group.start + gone] = False
    return float(latency.of(keep))


def _kept(program: Program, found: Program) -> float:
    scores = program.facts["scores"]
    gone = sum(float(scores[n][u].sum()) for n, u in found.facts["selection"].items() if n in scores)
    return 1 - gone / sum(float(values.sum()) for values in scores.values())


def _macs(slim: Program, program: Program) -> float:
    return cost(slim).macs / cost(program).macs


def main() -> None:
    """Measure all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a torchvision classifier; may be given several times")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--method", default="greedy", choices=["ranking", "greedy", "knapsack"])
    parser.add_argument("--multiple-of", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Console(highlight=False)
    for name in options.model or ("resnet18", "mobilenet_v2"):
        run(name, options, out)


if __name__ == "__main__":
    main()
