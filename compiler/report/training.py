"""The trainings of a compile: a table of each, curves for the page, and files of comma-separated values.

    finetune.csv      epoch,update,lr,loss,accuracy        one line an epoch
    finetune_2.csv    round,epoch,update,...               a training inside rounds: the lines of all of them

Updates are counted on through the rounds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prunec.compiler.report import figures
from prunec.compiler.report.curves import Curve, curve
from prunec.compiler.report.report import Record, Report

Row = Mapping[str, float | int]

_COUNTS = ("round", "epoch", "update")


@dataclass(frozen=True)
class Run:
    """A training, or all rounds of one."""

    title: str
    file: str
    """The name of its file."""
    rows: tuple[Row, ...]
    metric: str = ""
    """The column of the metric; empty where none was measured."""
    metric_title: str = ""
    """Its name for people."""
    share: bool = False
    """Whether the metric reads in per cent."""

    @property
    def columns(self) -> list[str]:
        """The names of all columns, counts first."""
        found = list(dict.fromkeys(key for row in self.rows for key in row))
        return sorted(found, key=lambda name: _COUNTS.index(name) if name in _COUNTS else len(_COUNTS))

    def told(self, column: str, value: float) -> str:
        """A value of a column, in words."""
        if column in _COUNTS:
            return f"{value:,.0f}"
        return figures.metric_text(value, self.share and column == self.metric)

    def title_of(self, column: str) -> str:
        """A column's name for people."""
        return self.metric_title if column == self.metric else column.replace("_", " ")

    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def curves(self) -> list[Curve]:
        """A curve for each figure, against the updates: the metric and the loss first."""
        order = [self.metric, "loss", *(name for name in self.columns if name not in ("loss", self.metric, "lr")), "lr"]
        steps = [int(row["update"]) for row in self.rows]
        drawn = (self._curve(name, steps) for name in order if name and name not in _COUNTS)
        return [each for each in drawn if each is not None]

    def _curve(self, name: str, steps: Sequence[int]) -> Curve | None:
        values = [row.get(name) for row in self.rows]
        return curve(self.title_of(name), steps, values, partial(self.told, name), step="update")


def trainings(report: Report) -> list[Run]:
    """The trainings of a report, in order."""
    found: list[Run] = []
    for record, inside in figures.with_rounds(report.passes):
        by_name: dict[str, list[Record]] = {}
        for each in inside:
            by_name.setdefault(each.name, []).append(each)
        for records in ([record], *by_name.values()):
            rows = tuple(_rows(records))
            if rows:
                found.append(_run(records, rows, [run.file for run in found]))
    return found


def _run(records: Sequence[Record], rows: tuple[Row, ...], taken: Sequence[str]) -> Run:
    name = records[0].name
    files = (f"{name}.csv" if count == 1 else f"{name}_{count}.csv" for count in range(1, len(taken) + 2))
    file = next(each for each in files if each not in taken)
    metric: Mapping[str, Any] = next((found for each in records if (found := each.details.get("metric"))), {})
    title = f"{name}, all rounds" if records[0].round is not None else name
    return Run(title, file, rows, metric.get("column", ""), metric.get("title", ""), metric.get("share", False))


def _rows(records: Sequence[Record]) -> Iterator[Row]:
    """The lines of one training after the other, with its round."""
    before = 0
    for record in records:
        number = {} if record.round is None else {"round": record.round}
        for row in record.history:
            yield {**number, **row, "update": before + row["update"]}
        before += int(record.history[-1]["update"]) if record.history else 0
