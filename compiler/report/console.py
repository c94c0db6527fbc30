"""What the command line shows: errors on standard error, results on standard output."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from prunec.compiler.errors import PrunecError
from prunec.compiler.report.figures import (
    checked,
    did,
    duration,
    evaluated,
    figures,
    foretold,
    kept_classes,
    left_alone,
    reasons_by_pass,
    removed,
    round_lines,
    unevaluated,
    unmeasured,
    with_rounds,
)
from prunec.compiler.report.report import Record, Report
from prunec.compiler.report.targets import RIGHT, target_columns, target_lines, target_rows, tells
from prunec.compiler.user_code import told

if TYPE_CHECKING:
    from prunec.compiler.targets.exporting import TargetReport

PLAIN_WIDTH: Final = 100_000
"""Columns of a table where nobody watches: a row is one line, whatever stands in it, so that it can be searched."""

ROUNDS: Final = 8
"""How many rounds of one pass are shown; the page has them all."""

REASONS: Final = 5
"""How many reasons of one pass are shown; the page has them all."""

_LINE_STYLES: Final = (
    (re.compile(r"hint: "), "cyan"),
    (re.compile(r" *\^+$"), "bold red"),
    (re.compile(r"    "), "default"),
    (re.compile(r""), "bold"),
)
"""The first that matches a line of an error colours it."""


def console(*, stderr: bool = False) -> Console:
    """A console on the stream as it is now; text is shown as it stands, without markup or guessed highlights."""
    plain = partial(Console, stderr=stderr, markup=False, highlight=False, emoji=False)
    made = plain()
    return made if made.is_terminal else plain(width=PLAIN_WIDTH)


def show(shown: RenderableType) -> None:
    """Print what a terminal wraps at its width; elsewhere rows are whole, and end where their text ends."""
    out = console()
    if out.is_terminal:
        out.print(shown)
        return
    with out.capture() as caught:
        out.print(shown)
    out.file.write("".join(f"{line.rstrip()}\n" for line in caught.get().splitlines()))


def say(text: str | Text) -> None:
    """Print a line of a result, however long it is."""
    console().print(text, soft_wrap=True)


def show_error(error: PrunecError) -> None:
    """Print the error as it words itself; on a terminal, in colours."""
    lines = str(error).splitlines()
    styled = [Text(line, next(style for pattern, style in _LINE_STYLES if pattern.match(line))) for line in lines]
    console(stderr=True).print(Text("\n").join(styled), soft_wrap=True)
    if error.exit_code != 1:
        console(stderr=True).print("this is a bug in prunec or in a pass; nothing was written", soft_wrap=True)


def show_bug(error: BaseException, debug: bool) -> None:
    """Say that the compiler is at fault; the traceback goes to a file, or is shown when debugging."""
    trace = "".join(traceback.format_exception(error))
    out = console(stderr=True)
    if debug:
        out.print(trace, soft_wrap=True, end="")
    out.print(f"this is a bug in prunec: {told(error).splitlines()[0]}", soft_wrap=True)
    if not debug:
        with tempfile.NamedTemporaryFile("w", prefix="prunec-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(trace)
        out.print(f"hint: report it with the plan and this traceback: {file.name}", soft_wrap=True)


Rows = Sequence[Sequence[str | Text]]


def table(title: str, columns: Sequence[str], rows: Rows, right: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are numbers."""
    show(made_table(title, columns, rows, right))


def made_table(title: str, columns: Sequence[str], rows: Rows, right: Sequence[str] = ()) -> Table:
    """The table, to be printed or saved."""
    made = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2)
    )
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold", header_style="dim")
    for row in rows:
        made.add_row(*row)
    return made


def few(names: Sequence[str], limit: int) -> str:
    """The first names, and how many there are besides; all of them where nobody watches, so that each can be found."""
    shown = names[:limit] if console().is_terminal else names
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more}"


# -- the report of a compile ---------------------------------------------------------------------------------------


def show_report(report: Report, folder: Path, reasons: int | None = REASONS, called: Path | None = None) -> None:
    """The summary, a line for each pass, what was left alone, warnings, and where the artifacts are.

    Of each pass so many reasons are shown, all of them where that is None. `called` is how the folder was asked for.
    """
    sides = ("before", "after", "change")
    rows: list[list[str | Text]] = [
        [f.name, f.before, f.after, Text(f.change, _COLOURS[f.better])] for f in figures(report)
    ]
    table(report.model, ("", *sides), rows, right=sides)
    for sentence in filter(None, (kept_classes(report), foretold(report), evaluated(report), unmeasured(report))):
        say(f"\n{sentence}")
    if hint := unevaluated(report):
        say(Text(hint, "cyan"))
    say("")
    _show_passes(report)
    _show_reasons(report, reasons)
    if tells(report):
        say("")
        show_targets(report.targets)
    for note in report.notes:
        say(f"note: {note}")
    for warning in report.warnings:
        say(Text(f"warning: {warning}", "yellow"))
    say(f"\n{str(called or folder).rstrip('/')}/: {', '.join(_visible(folder))}")
    for alarm in report.alarms:
        say(Text(f"\nWARNING: {alarm}", "bold red"))


def show_targets(reports: Sequence[TargetReport]) -> None:
    """The table of exports, what failed with its way out, and what converters printed then."""
    table("", target_columns(reports), target_rows(reports), right=RIGHT)
    for line in target_lines(reports):
        say(Text(line, "cyan" if line.startswith("hint: ") else "default"))
    for report in reports:
        if report.log:
            say(Text(f"what {report.target}'s tools printed:\n{report.log}", "dim"))


def _visible(folder: Path) -> list[str]:
    """The names of what a command wrote into its folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))


def show_exported(reports: Sequence[TargetReport], folder: Path, called: Path) -> None:
    """The table of `prunec export`, and where the files are, if any are."""
    show_targets(reports)
    if folder.is_dir() and not all(report.error for report in reports):
        say(f"\n{str(called).rstrip('/')}/: {', '.join(_visible(folder))}")


_COLOURS: Final[Mapping[bool | None, str]] = {True: "green", False: "red", None: "default"}


def _show_passes(report: Report) -> None:
    rows: list[Sequence[str]] = []
    for record, inside in with_rounds(report.passes):
        rows.append(
            (record.name, duration(record.seconds + record.verify_seconds), did(record, inside), checked(record))
        )
        rows += _rounds(record, inside, report.cost.before.macs)
    table("", ("pass", "time", "did", "check"), rows, right=("time",))
    gone = [group for group in report.groups if removed(group)]
    if gone:
        total = sum(removed(group) for group in gone)
        say(f"\n{total} channels are gone, from {len(gone)} of {len(report.groups)} groups")


def _rounds(record: Record, inside: Sequence[Record], whole: int) -> Iterator[Sequence[str]]:
    """A line for each round; of many, for the first and the last ones."""
    lines = round_lines(record, inside)
    left_out = len(lines) - ROUNDS if len(lines) > ROUNDS + 1 else 0
    for line in lines:
        number = line.number - ROUNDS // 2
        if 0 < number <= left_out:
            if number == 1:
                yield (f"  {left_out} more", "", "they stand in report.html", "")
            continue
        assert record.rounds is not None, "it has lines"
        metric = f"{record.rounds.metric} {line.metric}" if line.metric else ""
        given_up = "" if line.kept else "given up"
        words = (line.did, f"MACs {line.cost.macs / whole:.1%}" if whole else "", metric, given_up)
        yield (f"  round {line.number}", duration(line.seconds), ", ".join(filter(None, words)), line.check)


def _show_reasons(report: Report, limit: int | None) -> None:
    whole = [("left alone", left_alone(report)), *reasons_by_pass(report)]
    for source, reasons in whole:
        for reason, subjects in reasons[:limit]:
            say(Text(f"{source}: {few(subjects, 3 if limit else len(subjects))}: {reason}", "dim"))
        if limit is not None and len(reasons) > limit:
            say(Text(f"{source}: {len(reasons) - limit} more reasons stand in report.html", "dim"))
