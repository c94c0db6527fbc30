"""The command line. Exit code 0 is success, 1 means that the plan or the model is at fault, 2 a bug in the compiler.

    prunec compile PLAN [-o DIR] [--set KEY=VALUE ...] [--quick]     130 when it was interrupted
    prunec check PLAN
    prunec explain MODEL|PLAN [--group NAME] [--graph FILE]
    prunec ir MODEL|PLAN [--after PASS]
    prunec latency MODEL|PLAN [--in RUNTIME] [--refresh]
    prunec export MODEL|OUTPUT|PLAN [--to NAMES] [-o DIR] [--int8]
    prunec schema
    prunec passes [NAME]

and the commands that installed packages add (`cli/plugins.py`), such as `prunec sensitivity` and `prunec rank`.

MODEL is `package.module:callable` or `file.py:name` with `--inputs`, or a folder that `prunec compile` wrote. Commands
import what they need when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer

from prunec.compiler.cli.plugins import CommandGroup
from prunec.compiler.errors import ALONE, PrunecError
from prunec.compiler.user_code import is_out_of_memory, told
from prunec.compiler.version import __version__

app = typer.Typer(
    cls=CommandGroup,
    help="A declarative graph-rewriting compiler that makes trained neural networks smaller.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Settings:
    """Options that stand before the command's name."""

    debug: bool = False


PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="the plan's YAML file, or a lock")]
Target = Annotated[str, typer.Argument(metavar="MODEL|PLAN", help="package.module:callable, file.py:name, or a plan")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="lay a value over the plan's: seed=1, passes.0.score.criterion=l2"),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--inputs", metavar="SHAPE", help="an example input's shape: 1,3,224,224; once for each input"),
]

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="no progress: the result and errors alone")]
Quick = Annotated[
    bool, typer.Option("--quick", help="for loops of experiments: measure no latency, and don't convert the original")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="each step of the work, and every reason")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error is told on standard error, none escapes. Gives the exit code."""
    from prunec.compiler.report import console  # noqa: PLC0415  (rich takes time that --version doesn't need)

    settings = Settings()
    _tolerate(sys.stdout, sys.stderr)
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), prog_name="prunec", obj=settings)
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
        return 1 if code == _USAGE else code
    except PrunecError as error:
        if error.exit_code != 1 and is_out_of_memory(error):
            return _out_of_memory(error)
        console.show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BaseException as error:  # the last frontier: whatever comes here is our fault, and has its traceback told
        if is_out_of_memory(error):
            return _out_of_memory(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            console.show_error(PrunecError(f"the output can't be written: {error.strerror}"))
            return 1
        console.show_bug(error, settings.debug)
        return 2
    return 0


def _out_of_memory(error: BaseException) -> int:
    """Say that the machine is too small, which is nobody's bug."""
    from prunec.compiler.report import console  # noqa: PLC0415  (rich takes time that --version doesn't need)

    text = told(error).splitlines()[0]
    console.show_error(PrunecError(f"the memory isn't enough: {text}", hint="smaller inputs, or batches of data, help"))
    return 1


def _tolerate(*streams: TextIO) -> None:
    """Write what a stream's encoding can't hold as escapes: a micro sign is no reason to lose a result."""
    for stream in streams:
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


_USAGE: Final = 2
"""The exit code of typer for a wrong command line; here that is 1, like any fault of the caller's."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunec {__version__}")
        raise typer.Exit


@app.callback()
def _settings(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of a bug")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    context.obj.debug = debug


@contextmanager
def _heard(rank: int) -> Iterator[None]:
    """A context of one of several processes that train together: what all say is heard of the first one alone."""
    try:
        yield
    except PrunecError as error:
        if rank and ALONE not in getattr(error, "__notes__", ()):
            raise typer.Exit(error.exit_code) from error
        raise


@app.command("compile")
def compile_(
    plan: PlanFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder of the artifacts")] = Path("out"),
    overrides: Sets = None,
    quick: Quick = False,
    trained: Annotated[
        bool, typer.Option("--trained", help="of a lock: take the weights beside it, and don't train again")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile a plan: write the slim model, its exports, the lock and the report, or nothing at all. Where an export
    fails, the rest is written, and the exit code is 1."""
    from prunec.compiler.cli.target import plan_file  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.compile import compile, ready_to_write  # noqa: PLC0415
    from prunec.compiler.driver.journal import checkpoint_folder  # noqa: PLC0415
    from prunec.compiler.report.console import REASONS, show_report  # noqa: PLC0415
    from prunec.compiler.report.progress import Detail, watched  # noqa: PLC0415
    from prunec.compiler.train_spec import TrainSpec  # noqa: PLC0415

    loaded = plan_file(plan, overrides)
    rank = TrainSpec.rank(loaded.train)
    detail = Detail.of(quiet or rank > 0, verbose and not rank)
    if not rank:
        ready_to_write(output, loaded)
    folder = output.absolute()  # a factory may change the working directory
    checkpoints = checkpoint_folder(folder)
    try:
        with _heard(rank), watched(detail) as progress:
            made = compile(None, loaded, progress=progress, quick=quick, checkpoints=checkpoints, trained=trained)
            report = made.write(folder)
    except KeyboardInterrupt:
        if checkpoints.exists():
            typer.echo(f"interrupted: the same command goes on from {checkpoints}", err=True)
        raise
    if not rank:
        show_report(report, folder, None if verbose else REASONS, output)
        if report.failed:
            raise typer.Exit(1)


@app.command()
def check(plan: PlanFile, overrides: Sets = None) -> None:
    """Check a plan against its model, without running the passes."""
    from prunec.compiler.cli.target import plan_file  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.check import check_plan  # noqa: PLC0415
    from prunec.compiler.report.console import say  # noqa: PLC0415
    from prunec.compiler.report.progress import apart  # noqa: PLC0415

    lines = check_plan(plan_file(plan, overrides))
    while True:
        with apart():
            line = next(lines, None)
        if line is None:
            return
        say(line)


@app.command()
def explain(
    target: Target,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="NAME", help="a group, layer, parameter, axis or pattern: its groups"),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="write which axes depend on which: .graphml, .gml or .json"),
    ] = None,
    inputs: Inputs = None,
    overrides: Sets = None,
) -> None:
    """Show the groups of a model or plan: what may be removed, what may not, and why."""
    from prunec.compiler.cli.target import is_python, plan_of, show_definitions  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.compile import load_divided  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.load import module_names  # noqa: PLC0415  (imports torch)
    from prunec.compiler.report.console import show  # noqa: PLC0415
    from prunec.compiler.report.explain import explain as explained  # noqa: PLC0415  (imports torch)
    from prunec.compiler.report.progress import apart  # noqa: PLC0415

    if is_python(target) and group is None and graph is None:
        show_definitions(Path(target))
        return
    plan = plan_of(target, inputs, overrides)
    graph = graph and graph.absolute()  # a factory may change the working directory
    with apart():
        program = load_divided(plan)
        answer = explained(program, group, partial(module_names, plan))
    if graph is not None:
        from prunec.compiler.report.graph_file import write_graph  # noqa: PLC0415  (imports networkx)

        write_graph(program, graph, answer.groups)
    show(answer.shown)


@app.command()
def ir(
    target: Target,
    after: Annotated[str | None, typer.Option("--after", metavar="PASS", help="the program after this pass")] = None,
    inputs: Inputs = None,
    overrides: Sets = None,
) -> None:
    """Print the program of a model or plan as text."""
    from prunec.compiler.cli.target import plan_of  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.compile import program_after  # noqa: PLC0415  (imports torch)
    from prunec.compiler.report.progress import apart  # noqa: PLC0415
    from prunec.compiler.text.printer import to_text  # noqa: PLC0415  (imports torch)

    plan = plan_of(target, inputs, overrides)
    with apart():
        text = to_text(program_after(plan, after))
    sys.stdout.write(text)  # as it is: the console would wrap lines, and the text is made to be read back


@app.command()
def latency(
    target: Target,
    runtime: Annotated[str, typer.Option("--in", metavar="NAME", help="the target whose runtime is measured")] = "",
    refresh: Annotated[bool, typer.Option("--refresh", help="measure every layer again, whatever is known")] = False,
    inputs: Inputs = None,
    overrides: Sets = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure the layers of a model or plan in a runtime, over their widths, and show what each takes."""
    from prunec.compiler.cli.target import plan_of  # noqa: PLC0415  (imports torch)
    from prunec.compiler.cost.latency.model import latency_model, new_table  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.compile import load_divided  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.runtimes import runtime_of_plan  # noqa: PLC0415  (imports torch)
    from prunec.compiler.report.latency import show_latency  # noqa: PLC0415
    from prunec.compiler.report.progress import Detail, watched  # noqa: PLC0415
    from prunec.compiler.targets.timing import timed  # noqa: PLC0415  (imports torch)

    detail = Detail.of(quiet, verbose)
    plan = plan_of(target, inputs, overrides)
    runtime = runtime or runtime_of_plan(plan)
    with watched(detail) as progress:
        progress("trace", 0, 1)
        program = load_divided(plan)
        progress("trace", 1, 1)
        times = new_table(runtime, progress, refresh=refresh)
        model = latency_model(program, times, timed(runtime, program))
    show_latency(model, times.times.name)


@app.command()
def export(
    target: Annotated[
        str, typer.Argument(metavar="MODEL|OUTPUT|PLAN", help="package.module:callable, file.py:name, or out")
    ],
    to: Annotated[str, typer.Option("--to", metavar="NAMES", help="onnx,ort,...; a plan's own without it")] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder of the files")] = Path("exported"),
    int8: Annotated[bool, typer.Option("--int8", help="files in int8 as well, where the target can")] = False,
    inputs: Inputs = None,
    overrides: Sets = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a model, as it is or as it was compiled before, for runtimes; run each file there, compare and time it."""
    from prunec.compiler.cli.target import plan_of  # noqa: PLC0415  (imports torch)
    from prunec.compiler.driver.export_model import export_model, exports_of  # noqa: PLC0415
    from prunec.compiler.report.console import show_exported  # noqa: PLC0415
    from prunec.compiler.report.progress import Detail, watched  # noqa: PLC0415

    folder = output.absolute()  # a factory may change the working directory
    plan = plan_of(target, inputs, overrides)
    exports = exports_of(plan, to, int8=int8)
    with watched(Detail.of(quiet, verbose)) as progress:
        reports = export_model(plan, exports, folder, progress)
    show_exported(reports, folder, output)
    if any(report.failed for report in reports):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON schema of a plan, for editors."""
    from prunec.compiler.plan.plan import schema as plan_schema  # noqa: PLC0415  (imports torch)

    sys.stdout.write(json.dumps(plan_schema(), indent=2) + "\n")


@app.command()
def passes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="show this pass's options")] = None,
) -> None:
    """List the passes, or the options of one."""
    from prunec.compiler.cli.passes import show_pass, show_passes  # noqa: PLC0415  (imports torch)

    if name is None:
        show_passes()
    else:
        show_pass(name)
