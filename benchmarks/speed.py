"""How long it takes from a model to its slim form, stage by stage, beside torch-pruning on the same model.

    python benchmarks/speed.py                              everything
    python benchmarks/speed.py resnet18 dense_128           some
    python benchmarks/speed.py --classifiers                every classifier of torchvision
    python benchmarks/speed.py --csv FILE --repeat N --timeout SECONDS
    python benchmarks/speed.py --verification resnet50 vgg16 vit_b_16      prunec alone: what checking costs

Both tools remove half of every group's channels by the L1 norm of their weights. Each model has a process of its own,
in which the two take turns, with one thread, on models built anew. CPU seconds; of N repeats the fastest counts.

    prunec   trace + labels + cost + score + select + shrink (with the `fx.GraphModule` made)
    peer     dependency graph + pruner + step

Two columns stand apart, since the peer has nothing like them: `budget` is a selection that leaves half of the
multiply-accumulates, in place of the ratio; `verify` compares the slim program with the masked original. Two others
say what a trace could cost: `fx` is `fx.symbolic_trace`, which finds no shapes, `meta` a run of the model on the meta
device, which finds shapes and no graph.

`--verification` sets `verify` beside the compile (trace, labels, score, select, shrink) and beside `forward`, one
sample of the example's size through the original and the slim module, as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
import torch_pruning
import torchvision
from rich.console import Console
from rich.table import Table
from torch import fx, nn
from torchvision.models import list_models

from prunec.compiler import trace
from prunec.compiler.cost.model import cost_model
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.verify.verify import verify
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink

CLASSIFIERS = (
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "googlenet",
    "inception_v3",
    "efficientnet_b0",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "squeezenet1_0",
    "mnasnet0_5",
)
"""The classifiers that are measured unless others are asked for."""

GROWING = {"chain": (218, 902, 3602), "dense": (32, 64, 128)}
MODELS = (*CLASSIFIERS, "densenet201", *(f"{kind}_{size}" for kind, sizes in GROWING.items() for size in sizes))

STAGES = ("trace", "labels", "cost", "score", "select", "shrink")
"""The stages that add up to `total`."""

COMPILE = ("trace", "labels", "score", "select", "shrink")
"""The stages that verification is measured against."""

RATIO = 0.5


@dataclass
class Measured:
    """What one model's process has reported."""

    model: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Stage, or the name of another column -> a figure for each repeat."""
    peer_fault: str = ""

    def best(self, name: str) -> float | None:
        """The fastest repeat."""
        return min(self.seconds[name]) if self.seconds.get(name) else None

    @property
    def totals(self) -> list[float]:
        """All stages together, for each repeat."""
        return [sum(each) for each in zip(*(self.seconds.get(stage, []) for stage in STAGES), strict=True)]

    @property
    def total(self) -> float | None:
        """The fastest repeat of all stages together."""
        return min(self.totals, default=None)

    @property
    def spread(self) -> float:
        """By what share the slowest repeat, of us or of the peer, is slower than the fastest."""
        return max(max(each) / min(each) - 1 for each in (self.totals, self.seconds.get("peer", [])) if each)

    @property
    def ratio(self) -> float | None:
        """How many times as long the peer takes."""
        peer, total = self.best("peer"), self.total
        return peer / total if peer and total else None


# -- in the model's own process --------------------------------------------------------------------------------------


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model, with random weights and in eval mode, and an example input."""
    torch.manual_seed(0)
    kind, _, size = name.partition("_")
    if kind in GROWING:
        factory = {"chain": networks.residual_chain, "dense": networks.dense_block}[kind]
        return factory(int(size)).eval(), torch.zeros(networks.IMAGE)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    edge = 299 if name == "inception_v3" else 224
    return torchvision.models.get_model(name, weights=None, **options).eval(), torch.zeros(1, 3, edge, edge)


def prunec_seconds(name: str, check: bool) -> dict[str, float]:
    """One run of every stage; `verify` only where asked for."""
    model, example = build(name)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        seconds[stage] = time.process_time() - start
        return result

    def shrink() -> Program:
        slim = Shrink().run(chosen, context).program
        assert slim.module is not None
        return slim

    gc.collect()
    program = timed("trace", lambda: trace(model, (example,)))
    timed("labels", lambda: analyse(program))
    timed("cost", lambda: counted(program))
    context = Context(traced=program)
    scored = timed("score", lambda: Score(criterion="l1").run(program, context).program)
    timed("budget", lambda: Select(budget={"macs": RATIO}).run(scored, context))
    chosen = timed("select", lambda: Select(ratio=RATIO).run(scored, context).program)
    slim = timed("shrink", shrink)
    if check:
        timed("verify", lambda: verify(slim, Shrink().reference(chosen, slim), pass_name="shrink"))
        timed("forward", lambda: forward(model, slim, torch.randn_like(example)))
    return seconds


def forward(model: nn.Module, slim: Program, image: torch.Tensor) -> None:
    """One sample through both networks."""
    with torch.no_grad():
        model(image)
        slim.module(image)


def counted(program: Program) -> tuple[int, int]:
    """Multiply-accumulates and parameters. What is alive at once is found when it is asked for."""
    model = cost_model(program)
    return model.macs(model.everything), model.params(model.everything)


def peer_seconds(name: str) -> dict[str, float]:
    """One run of the peer, with the classifier's last layer left out as its users must."""
    model, example = build(name)
    classes = int(model(example).shape[-1])
    last = [m for m in model.modules() if classes in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    gc.collect()
    start = time.process_time()
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=RATIO, ignored_layers=last
    )
    pruner.step()
    return {"peer": time.process_time() - start}


def floor_seconds(name: str) -> dict[str, float]:
    """What torch takes for each half of a trace: `fx` for a graph, where it can, `meta` for shapes."""
    model, example = build(name)
    seconds: dict[str, float] = {}
    gc.collect()
    start = time.process_time()
    with contextlib.suppress(Exception):
        fx.symbolic_trace(model)
        seconds["fx"] = time.process_time() - start
    model, example = model.to("meta"), example.to("meta")
    start = time.process_time()
    with torch.no_grad():
        model(example)
    return seconds | {"meta": time.process_time() - start}


def run_child(name: str, repeat: int, alone: bool) -> None:
    """Measure one model, the tools taking turns, and print a JSON object a line as soon as it is known. `alone` leaves
    the peer out, and verifies every time."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    prunec_seconds("chain_6", check=True)
    peer_seconds("chain_6")
    peer: Callable[[], dict[str, float]] | None = None if alone else partial(peer_seconds, name)
    for index in range(repeat):
        _say(prunec_seconds(name, check=alone or index == 0))
        if not alone:
            _say(floor_seconds(name))
        if peer is None:
            continue
        try:
            _say(peer())
        except Exception as error:
            _say({"fault": f"{type(error).__name__}: {error}".splitlines()[0][:80]})
            peer = None


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


# -- in the main process ---------------------------------------------------------------------------------------------


def measure(name: str, repeat: int, timeout: float, *, alone: bool = False) -> Measured:
    """Run a model's process; it is ended when it says nothing for `timeout` seconds."""
    found = Measured(name)
    command = [sys.executable, __file__, name, "--child", "--repeat", str(repeat)]
    command += ["--verification"] if alone else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        timer = _timer(child, timeout)
        for line in child.stdout:
            timer.cancel()
            timer = _timer(child, timeout)
            _take(found, line)
        timer.cancel()
        complaint = child.stderr.read()
    if child.returncode < 0:
        found.peer_fault = f"no answer in {timeout:g} s"
    elif child.returncode:
        raise SystemExit(f"{name}:\n{complaint}")
    return found


def _timer(child: subprocess.Popen[str], timeout: float) -> threading.Timer:
    timer = threading.Timer(timeout, child.kill)
    timer.start()
    return timer


def _take(found: Measured, line: str) -> None:
    if not line.startswith("{"):
        return  # the peer prints
    values: dict[str, Any] = json.loads(line)
    found.peer_fault = values.pop("fault", found.peer_fault)
    for key, value in values.items():
        found.seconds.setdefault(key, []).append(value)


def exponent(sizes: Sequence[int], seconds: Sequence[float | None]) -> float | None:
    """The p of `seconds = c * size ** p` that fits best; None with fewer than two figures."""
    known = [(size, value) for size, value in zip(sizes, seconds, strict=True) if value]
    if len(known) < 2:
        return None
    logs = np.log(np.array(known))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def summary(results: Iterable[Measured]) -> Iterable[str]:
    """The median ratio over the classifiers, and how the time grows."""
    by_name = {found.model: found for found in results}
    mine = [found for name, found in by_name.items() if name.partition("_")[0] not in GROWING]
    known = [found.ratio for found in mine if found.ratio]
    if known:
        yield f"median over {len(known)} classifiers: {statistics.median(known):.1f} times as fast as torch-pruning"
        yield f"which has no result for {len(mine) - len(known)} others of {len(mine)}"
        slowest = max(mine, key=lambda found: found.total or 0.0)
        yield f"slowest: {slowest.model}, {slowest.total:.2f} s"
        spread = statistics.median(found.spread for found in mine if found.totals)
        yield f"repeats of one figure differ by {spread:.0%} in the median"
    for kind, sizes in GROWING.items():
        mine = [by_name[f"{kind}_{size}"] for size in sizes if f"{kind}_{size}" in by_name]
        sizes = tuple(int(found.model.partition("_")[2]) for found in mine)
        own = exponent(sizes, [found.total for found in mine])
        peer = exponent(sizes, [found.best("peer") for found in mine])
        if own is not None:
            yield f"{kind}: time grows with size ** {own:.2f}" + (f", the peer's with {peer:.2f}" if peer else "")


def row(found: Measured) -> dict[str, str]:
    """A line of the table: seconds as text, '' where there is no figure."""
    figures = {**{stage: found.best(stage) for stage in STAGES}, "total": found.total}
    figures |= {name: found.best(name) for name in ("budget", "verify", "fx", "meta", "peer")}
    texts = {name: "" if value is None else f"{value:.3f}" for name, value in figures.items()}
    texts["peer"] = found.peer_fault or texts["peer"]
    return {"model": found.model, **texts, "ratio": f"{found.ratio:.1f}" if found.ratio else ""}


def verification_row(found: Measured) -> dict[str, str]:
    """A line of `--verification`: seconds of the fastest repeats, and how many compiles they are."""
    stages = zip(*(found.seconds[stage] for stage in COMPILE), strict=True)
    compiling, checking, running = min(map(sum, stages)), min(found.seconds["verify"]), min(found.seconds["forward"])
    figures = {"compile": f"{compiling:.3f}", "verify": f"{checking:.3f}", "forward": f"{running:.3f}"}
    ratios = {"verify / compile": f"{checking / compiling:.1f}", "forward / compile": f"{running / compiling:.1f}"}
    return {"model": found.model, **figures, **ratios}


def show(rows: Sequence[dict[str, str]], console: Console) -> None:
    """The table for a person."""
    table = Table(title=f"seconds; one thread, half of every group, torch {torch.__version__}")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "model" else "right")
    for texts in rows:
        table.add_row(*texts.values())
    console.print(table)


def write_csv(rows: Sequence[dict[str, str]], path: Path) -> None:
    """The same table for a program. Models that were not measured this time keep their line."""
    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [old for old in csv.DictReader(file) if old["model"] not in {new["model"] for new in rows}]
    order = {name: index for index, name in enumerate(MODELS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(sorted((*kept, *rows), key=lambda texts: order.get(texts["model"], len(order))))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="chain_DEPTH, dense_LAYERS or torchvision's name")
    parser.add_argument("--classifiers", action="store_true", help="every classifier of torchvision")
    parser.add_argument("--verification", action="store_true", help="what checking costs, beside the compile")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=180, help="seconds that a tool has for one run")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.models[0], options.repeat, options.verification)
        return
    console, results = Console(width=max(140, Console().width)), []
    everything = list_models(module=torchvision.models) if options.classifiers else MODELS
    for name in options.models or everything:
        console.print(f"[dim]{name} ...[/dim]")
        results.append(measure(name, options.repeat, options.timeout, alone=options.verification))
    if options.verification:
        show([verification_row(found) for found in results], console)
        return
    rows = [row(found) for found in results]
    show(rows, console)
    for line in summary(results):
        console.print(line)
    if options.csv:
        write_csv(rows, options.csv)


if __name__ == "__main__":
    main()
