"""The exports of a compile as a table: for each target its file, how near it is to the module, and its latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from prunec.compiler.report.figures import duration, metric_text, size

if TYPE_CHECKING:
    from prunec.compiler.report.report import Report
    from prunec.compiler.targets.exporting import Int8Report, TargetReport, Timed

COLUMNS: Final = ("target", "file", "size", "difference", "1 thread", "2 threads", "runtime")
BATCH: Final = "batch"
"""The column behind `file`, which is there where a file takes another batch than the plan names."""
RIGHT: Final = (BATCH, "size", "difference", "1 thread", "2 threads")
"""The columns of numbers."""


def tells(report: Report) -> bool:
    """Whether there is more to tell of the exports than the figures of the one ONNX file do."""
    return bool(report.targets) and (
        len(report.targets) > 1 or report.onnx is None or any(row.failed or row.int8 for row in report.targets)
    )


def target_columns(reports: Sequence[TargetReport]) -> tuple[str, ...]:
    """What the columns of these exports' table are called."""
    return (*COLUMNS[:2], BATCH, *COLUMNS[2:]) if any(report.other_batch for report in reports) else COLUMNS


def target_rows(reports: Sequence[TargetReport]) -> list[tuple[str, ...]]:
    """A row for each target, and one for its files in int8."""
    found = _rows(reports)
    if BATCH not in target_columns(reports):
        return [row for _, row in found]
    return [(*row[:2], "" if batch is None else str(batch), *row[2:]) for batch, row in found]


def _rows(reports: Sequence[TargetReport]) -> list[tuple[int | None, tuple[str, ...]]]:
    """The rows, each with the batch that its file takes, where that is another than the plan's."""
    rows: list[tuple[int | None, tuple[str, ...]]] = []
    for report in reports:
        if report.error:
            rows.append((None, (report.target, "failed", "", "", "", "", report.runtime)))
            continue
        sizes = _sides(report.dense_bytes, report.bytes, size)
        difference = "not executed" if report.difference is None else f"{report.difference:.1e}"
        row = (report.target, report.files[0], sizes, difference, *_times(report.latency), report.runtime)
        rows.append((report.other_batch, row))
        if report.int8 is not None:
            rows.append((None, _int8(report.int8, executed=not report.unrunnable)))
    return rows


def _int8(int8: Int8Report, executed: bool) -> tuple[str, ...]:
    if int8.error:
        return ("  int8", "failed", "", "", "", "", "")
    judged = ""
    if int8.before is not None and int8.after is not None:
        judged = f"{int8.metric} {metric_text(int8.before, int8.share)} -> {metric_text(int8.after, int8.share)}"
    return (
        "  int8",
        int8.files[0],
        size(int8.bytes),
        "" if executed else "not executed",
        *_times(int8.latency),
        judged,
    )


def target_lines(reports: Sequence[TargetReport]) -> list[str]:
    """What the table has no room for: why something isn't there, and what is to be known."""
    lines = []
    for report in reports:
        if report.error:
            lines.append(f"{report.target}: {report.error}")
            lines += [f"hint: {report.hint}"] if report.hint else []
        notes = (report.unrunnable and f"not executed: {report.unrunnable}", report.note)
        lines += [f"{report.target}: {note}" for note in notes if note]
        if report.int8 is not None and report.int8.error:
            lines.append(f"{report.target}: int8: {report.int8.error}")
    return lines


def _times(latency: Sequence[Timed]) -> tuple[str, str]:
    known = {timed.threads: _sides(timed.dense, timed.slim, duration) for timed in latency}
    return known.get(1, ""), known.get(2, "")


def _sides(before: float | None, after: float, text: Callable[[float], str]) -> str:
    return text(after) if before is None else f"{text(before)} -> {text(after)}"
