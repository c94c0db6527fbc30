"""What a user waits for: whole commands in processes of their own, CPU seconds by stage, two versions side by side.

    python benchmarks/waits.py --old 1a383b6                 a revision, which is checked out into a temporary folder
    python benchmarks/waits.py --old ../before --new .       two checkouts
    python benchmarks/waits.py --new . resnet50 --repeat 5   one alone, and some of the cases

CPU seconds are those of the child (user and system, `resource.getrusage`), of one thread. The versions take turns; of
the repeats the median counts, and the table has the lowest and the highest beside it. A stage's seconds are its own:
what it imports, verifies or exports is counted there. `rest` is what is in no stage: Python's start, making the model,
the report. Both versions run with the packages of this Python.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import (
    _bootstrap,  # type: ignore[attr-defined]
    import_module,
)
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]

STAGES = ("imports", "trace", "passes", "verification", "accuracy", "export", "latency", "writing", "rest")

FUNCTIONS = {
    "prunec.compiler.tracing.both_modes": {"trace_modes": "trace"},
    "prunec.compiler.driver.pass_manager": {"run_passes": "passes"},
    "prunec.compiler.verify.verify": {"verify": "verification"},
    "prunec.compiler.driver.evaluation": {"evaluate": "accuracy"},
    "prunec.compiler.targets.onnx_export": {"export_onnx": "export", "onnx_bytes": "export"},
    "prunec.compiler.targets.ort_session": {"ort_latency": "latency"},
    "prunec.compiler.targets.interleaved": {"run_seconds": "latency"},
    "prunec.compiler.emit.output_folder": {"write_atomically": "writing"},
}
"""Module -> its functions that begin a stage."""

RESNET50 = """\
plan: 1
model: torchvision.models:resnet50
inputs: [[1, 3, 224, 224]]
passes: [{score: l1}, {select: {budget: {macs: 50%}}}, shrink, fold_bn]
export: [onnx]
"""


@dataclass(frozen=True)
class Case:
    """A command, run in a folder that holds `resnet50.yaml`; `{checkout}` stands for the version's own files."""

    command: str
    limit: float
    """CPU seconds that it may take."""
    new: str = ""
    """Options that only the new version has."""


CASES = {
    "resnet50": Case("compile resnet50.yaml -q -o out", 20),
    "digits": Case("compile {checkout}/plans/digits.yaml -q -o out", 7),
    "explain resnet56": Case("explain prunec.models.resnet:resnet56 --inputs 1,3,32,32", 4),
    "resnet50 --quick": Case("compile resnet50.yaml -q -o out", 10, new="--quick"),
}


# -- in the child --------------------------------------------------------------------------------------------------


class Watch:
    """Counts the CPU seconds of stages; what a stage calls of another stage is the other's alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open = ["rest"]
        self._since = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block's seconds are of this stage."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a stage."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return run

    def watch_imports(self) -> None:
        """Count imports, and watch the functions of a module as soon as it is there, before others take them over."""
        find = _bootstrap._find_and_load

        def imported(name: str, import_: Any) -> Any:
            with self.stage("imports"):
                module = find(name, import_)
            for function, stage in FUNCTIONS.get(name, {}).items():
                if hasattr(module, function):
                    setattr(module, function, self.watched(stage, getattr(module, function)))
            return module

        _bootstrap._find_and_load = imported


def child(checkout: str, figures: str, arguments: Sequence[str]) -> int:
    """Run a command of the version in this folder; its stages' seconds are written to a file."""
    watch = Watch()
    watch.watch_imports()
    main = import_module("prunec.compiler.cli.main")
    found = Path(main.__file__ or "").resolve()
    assert found.is_relative_to(Path(checkout).resolve()), f"{found} is not of {checkout}"
    code = int(main.run(arguments))
    with watch.stage("rest"):
        pass
    Path(figures).write_text(json.dumps(watch.seconds), encoding="utf-8")
    return code


# -- the parent ----------------------------------------------------------------------------------------------------


@dataclass
class Version:
    """A checkout, and a folder that has it under its import name."""

    name: str
    checkout: Path
    path: Path
    found: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Case -> for each repeat the seconds of its stages, and of all of it (`total`)."""


def version(name: str, checkout: Path, folder: Path) -> Version:
    """The checkout, linked into a folder as the package that it installs."""
    package = folder / name / "prunec"
    package.mkdir(parents=True)
    for part in ("compiler", "passes", "models"):
        (package / part).symlink_to((checkout / part).resolve(), target_is_directory=True)
    return Version(name, checkout.resolve(), package.parent)


@contextmanager
def checked_out(where: str, folder: Path) -> Iterator[Path]:
    """The checkout itself, or a new one of a revision of this repository, for as long as the block runs."""
    if Path(where).is_dir():
        yield Path(where)
        return
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    target = folder / "checkout"
    subprocess.run([*git, "add", "--quiet", "--detach", str(target), where], check=True)
    try:
        yield target
    finally:
        subprocess.run([*git, "remove", "--force", str(target)], check=True)


def measure(of: Version, case: Case, *, is_new: bool) -> dict[str, float]:
    """Run a case once. Raises `RuntimeError` where the command fails."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "resnet50.yaml").write_text(RESNET50, encoding="utf-8")
        command = case.command.format(checkout=of.checkout).split() + (case.new.split() if is_new else [])
        environment = {**os.environ, "PYTHONPATH": str(of.path), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        own = [sys.executable, __file__, "--child", str(of.checkout), str(folder / "figures.json"), *command]
        before = _cpu()
        done = subprocess.run(own, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        total = _cpu() - before
        if done.returncode:
            raise RuntimeError(f"{of.name}: {' '.join(command)} failed:\n{done.stderr}")
        stages = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    stages["rest"] = total - sum(seconds for stage, seconds in stages.items() if stage != "rest")
    return {**stages, "total": total}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(versions: Sequence[Version], case: str) -> None:
    """Print a case: a row for each stage, a column for each version, and the ratio."""
    limit = CASES[case].limit
    table = Table("stage", *(v.name for v in versions), *(["new / old"] if len(versions) == 2 else []), title=case)
    for stage in (*STAGES, "total"):
        times = [[repeat.get(stage, 0.0) for repeat in v.found[case]] for v in versions]
        middle = [statistics.median(each) for each in times]
        ratio = [f"{middle[1] / middle[0]:.2f}" if min(middle) > 0.05 else ""] if len(versions) == 2 else []
        table.add_row(stage, *(f"{statistics.median(t):.2f} ({min(t):.2f} to {max(t):.2f})" for t in times), *ratio)
    Console().print(table)
    total = statistics.median(repeat["total"] for repeat in versions[-1].found[case])
    print(f"{case}: {total:.1f} CPU seconds, at most {limit:.0f}: {'holds' if total <= limit else 'MISSED'}\n")


def main() -> None:
    """Measure the cases that are asked for."""
    if sys.argv[1:2] == ["--child"]:
        checkout, figures, *arguments = sys.argv[2:]
        sys.exit(child(checkout, figures, arguments))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument("--old", help="a checkout, or a revision of this repository")
    parser.add_argument(
        "--new", default=str(REPOSITORY), help="a checkout, or a revision; this one where it isn't said"
    )
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    unknown = set(options.cases) - CASES.keys()
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    wanted = [(name, where) for name, where in (("old", options.old), ("new", options.new)) if where]
    with TemporaryDirectory() as name:
        _compare(wanted, options.cases or list(CASES), options.repeat, Path(name), [])


def _compare(
    wanted: Sequence[tuple[str, str]], cases: Sequence[str], repeat: int, folder: Path, ready: list[Version]
) -> None:
    """Check out what is left of `wanted`, then measure the versions in turns and print what they take."""
    if len(ready) < len(wanted):
        name, where = wanted[len(ready)]
        (folder / f"{name}-tree").mkdir()
        with checked_out(where, folder / f"{name}-tree") as checkout:
            _compare(wanted, cases, repeat, folder, [*ready, version(name, checkout, folder)])
        return
    for case in cases:
        for of in ready:
            measure(of, CASES[case], is_new=of.name == "new")  # its bytecode and files are in memory then
        for _ in range(repeat):
            for of in ready:
                of.found.setdefault(case, []).append(measure(of, CASES[case], is_new=of.name == "new"))
        show(ready, case)


if __name__ == "__main__":
    main()
