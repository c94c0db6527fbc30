"""Which models go through, and how much of them can be pruned: one row a model, everything that torchvision has.

    python benchmarks/coverage.py                       all families; rows that are in the table already are kept
    python benchmarks/coverage.py vit_b_16 swin_t       some models, measured anew
    python benchmarks/coverage.py --family video --csv FILE --timeout SECONDS --no-onnx

Every model has a process of its own, and goes from the model to its slim form at half of its MACs. The row says how far
it came: the share of channels that can be removed, what is pinned and why, the MACs that are left, the largest relative
difference between the slim program and the masked original in float64 (at every node; for the half that L1 chose, for
random selections of a tenth and of half of the units, and for the fewest that can stay), the difference between
onnxruntime and the module, the seconds of each stage, and the peak of memory from trace to shrink, next to what the
process held before the model was made.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from zoo import CASES, FAMILIES, Case

from prunec.compiler import trace
from prunec.compiler.cost.model import cost
from prunec.compiler.driver.regions import find_regions
from prunec.compiler.groups.analysis import Analysis, Group, analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import is_large
from prunec.compiler.pass_base import Context
from prunec.compiler.targets.onnx_export import export_onnx
from prunec.compiler.verify.verify import verify
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink

COLUMNS = (
    "model family status nodes channels free pinned macs half random_10 random_50 minimum onnx "
    "trace labels score select shrink verify export compile weights_mb base_mb peak_mb"
).split()
HERE = Path(__file__).parent
TABLE = HERE / "results" / "coverage.csv"
PAGE = HERE / "COVERAGE.md"
LARGEST_ONNX = 1_900_000_000
"""Bytes; a protobuf file can't be larger than two gigabytes."""
NEVER = ("reaches the model's output", "is the only one of its group")
"""Pins that aren't a lack: what a network gives, and what can't be less."""


# -- in the model's own process --------------------------------------------------------------------------------------


def examine(case: Case, *, onnx: bool = True, say: Callable[[dict[str, Any]], None] = lambda found: None) -> None:
    """Take one model through all stages, and tell what each found as soon as it is known."""

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        say({"status": stage})
        start = time.perf_counter()
        result = work()
        say({stage: round(time.perf_counter() - start, 3)})
        return result

    torch.set_num_threads(1)
    say({"base_mb": _peak()})
    model, example = case.build(), case.example()
    start = time.perf_counter()
    regions = find_regions(model, case.regions, example) if case.regions else None
    program: Program = timed("trace", lambda: regions.trace()[0] if regions else trace(model, example))
    say({"nodes": len(program.graph.nodes), "weights_mb": round(_megabytes(program))})
    analysis: Analysis = timed("labels", lambda: analyse(program))
    say(prunable(analysis))
    context = Context(traced=program)
    scored = timed("score", lambda: Score(criterion="l1", normalize="mean").run(program, context).program)
    chosen = timed("select", lambda: Select(budget={"macs": 0.5}).run(scored, context).program)
    slim = timed("shrink", lambda: Shrink().run(chosen, context).program)
    say({"compile": round(time.perf_counter() - start, 3), "peak_mb": _peak()})
    say({"macs": round(cost(slim).macs / cost(program).macs, 4)})
    timed("verify", lambda: say({"half": _difference(chosen, slim)}))
    if regions:
        say({"status": "splice"})
        regions.check(slim)
    for name, share in (("random_10", 0.1), ("random_50", 0.5), ("minimum", 1.0)):
        say({"status": name, name: _random_difference(program, share)})
    if onnx and _megabytes(slim) * 1e6 < LARGEST_ONNX:
        timed("export", lambda: say({"onnx": _onnx_difference(slim)}))
    say({"status": "ok"})


def _peak() -> int:
    """The most memory that the process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _megabytes(program: Program) -> float:
    return sum(t.numel() * t.element_size() for t in program.tensors.values()) / 1e6


def prunable(analysis: Analysis) -> dict[str, Any]:
    """How many channels there are (heads and the like count as one), how many may go, and why the others may not
    (reason -> how many)."""
    groups = [group for group in analysis.groups.values() if not are_positions(analysis, group)]
    reasons = Counter(reason for group in groups for reason in group.pinned if reason)
    return {
        "channels": sum(group.size for group in groups),
        "free": sum(int(group.free.sum()) for group in groups),
        "pinned": dict(reasons.most_common()),
    }


def are_positions(analysis: Analysis, group: Group) -> bool:
    """Whether a pinned group isn't one of channels but of places: a kernel's, a token's in a table of embeddings."""
    state = analysis.program.state
    tables = all(isinstance(state.get(member.axis.tensor), torch.Tensor) for member in group.writers)
    return tables and not group.free.any()


def _difference(chosen: Program, slim: Program) -> float:
    """Float64, at every node."""
    batches = (1, 2) if is_large(chosen) else (2,)  # of large images two are checked smaller
    return verify(slim, Shrink().reference(chosen, slim), pass_name="shrink", batches=batches, exact=True).difference


def _random_difference(program: Program, share: float) -> float:
    """The same for units chosen at random; a share of 1 leaves the fewest that `select` can."""
    context = Context(seed=1)
    scored = Score(criterion="random").run(program, context).program
    chosen = Select(ratio=share).run(scored, context).program
    return _difference(chosen, Shrink().run(chosen, context).program)


def _onnx_difference(slim: Program) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(slim, Path(folder) / "model.onnx").max_difference


# -- in the main process ---------------------------------------------------------------------------------------------


def run(name: str, *, onnx: bool, timeout: float) -> dict[str, Any]:
    """The row of one model; where its process ends early, `status` says in which stage and why."""
    command = [sys.executable, __file__, name, "--child", *([] if onnx else ["--no-onnx"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    row: dict[str, Any] = {"model": name, "family": CASES[name].family}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            said, _ = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            said, _ = child.communicate()
            said += json.dumps({"fault": f"no answer in {timeout:g} s"}) + "\n"
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
    for line in said.splitlines():
        if line.startswith("{"):
            row |= json.loads(line)
    fault = row.pop("fault", "") or (last or f"exit code {child.returncode}" if child.returncode else "")
    if fault:
        row["status"] = f"{row.get('status', 'build')}: {fault}"[:300]
    return row


def texts(row: dict[str, Any]) -> dict[str, str]:
    """A row for the CSV."""
    found = {}
    for column in COLUMNS:
        value = row.get(column, "")
        if column == "pinned" and isinstance(value, dict):
            value = "; ".join(f"{count} {reason}" for reason, count in value.items())
        found[column] = f"{value:.1e}" if column in _DIFFERENCES and value != "" else str(value)
    return found


_DIFFERENCES = ("half", "random_10", "random_50", "minimum", "onnx")


def read(path: Path) -> dict[str, dict[str, str]]:
    """The rows that there are."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def write(rows: Iterable[dict[str, str]], path: Path) -> None:
    """The table, in the order of `CASES`. Written after every model, so that a run can be taken up again."""
    order = {name: index for index, name in enumerate(CASES)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: order.get(row["model"], len(order))))


HEAD = """# Which models go through

Written by `python benchmarks/coverage.py` from [results/coverage.csv](results/coverage.csv): {green} of {count} models
went through every stage. `free` is the share of channels that may be removed; the pins that are told leave out the
network's own outputs. `slim` is the largest relative difference, in float64 and at every node, between a slim program
and the masked original, over four selections (half of the MACs by L1; a tenth, a half and all but the last of every
group at random); `onnx` that between onnxruntime and the module in float32, empty where it wasn't run. Seconds are from
trace to shrink, with other programs running; memory is the process's peak by then, and the part of it that was
there before the model was made.
"""


def page(rows: Sequence[dict[str, str]]) -> str:
    """The table as a page for people."""
    green = sum(row["status"] == "ok" for row in rows)
    lines = [HEAD.format(green=green, count=len(rows)), ""]
    for family in FAMILIES:
        mine = [row for row in rows if row["family"] == family]
        if mine:
            lines += [
                f"## {family}",
                "",
                "| model | | free | pinned besides | MACs | slim | onnx | seconds | MB |",
            ]
            lines += ["|---|---|---|---|---|---|---|---|---|", *map(_line, mine), ""]
    return "\n".join(lines)


def _line(row: dict[str, str]) -> str:
    pins = "; ".join(p for p in row["pinned"].split("; ") if p and not p.endswith(NEVER))
    slim = max((float(row[key]) for key in _DIFFERENCES[:-1] if row[key]), default=None)
    share = f"{int(row['free']) / int(row['channels']):.0%}" if row["channels"] else ""
    macs = f"{float(row['macs']):.1%}" if row["macs"] else ""
    status = "ok" if row["status"] == "ok" else f"**{row['status']}**"
    cells = (
        row["model"],
        status,
        share,
        pins,
        macs,
        "" if slim is None else f"{slim:.0e}",
        row["onnx"],
        row["compile"],
    )
    memory = f"{row['peak_mb']} ({row['base_mb']})"
    return "| " + " | ".join((*cells, memory)) + " |"


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def main() -> int:
    """Read the command line, fill the table, and tell whether every row is green."""
    options = _options()
    if options.child:
        warnings.simplefilter("ignore")
        examine(CASES[options.models[0]], onnx=not options.no_onnx, say=_say)
        return 0
    rows = read(options.csv)
    families = (options.family,) if options.family else FAMILIES
    left = [name for name, case in CASES.items() if case.family in families and not _green(rows.get(name))]
    for name in _shown(options.models or left):
        rows[name] = texts(run(name, onnx=not options.no_onnx, timeout=options.timeout))
        write(rows.values(), options.csv)
    ordered = list(read(options.csv).values())
    if options.csv == TABLE:
        PAGE.write_text(page(ordered), encoding="utf-8")
    return int(not all(map(_green, ordered)))


def _green(row: dict[str, str] | None) -> bool:
    return row is not None and row["status"] == "ok"


def _shown(names: Sequence[str]) -> Iterator[str]:
    """The names one by one, with a bar that tells how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            yield name
            progress.advance(task)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a name of torchvision's, measured anew")
    parser.add_argument("--family", choices=FAMILIES, help="only these")
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one model")
    parser.add_argument("--no-onnx", action="store_true", help="leave out the export")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(CASES))
    if unknown:
        parser.error(f"no model is called {unknown[0]}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
