"""Sensitivity curves: as values, as a CSV file, and as a way to choose how far each group is cut.

    group,units,ratio,removed,accuracy,loss       the columns that are read; others are for people
    conv1,32,0,0,0.9833,0.0712                    the whole model
    conv1,32,0.1,4,0.9817,0.0760
    conv1,32,0.2,7,0.9722,0.1008
    floor -1pt                                    keeps conv1 at 28 of 32 units: 0.2 loses more than a point

`accuracy` is empty where the model has none. Where another metric is measured, the column is called `metric`, and two
more say its `name` and whether `higher` or `lower` is `better`.

`passes/studies/sensitivity.py` measures the curves; `kept_within` is what `select: {from: sensitivity.csv, floor:
-1pt}` reads out of them: for each group the largest measured ratio up to which accuracy is no more than a point below
the model's. Nothing is read between two points: a curve may fall off a cliff.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BeforeValidator

from prunec.compiler.errors import PassError, PlanError, Span, nearest
from prunec.compiler.groups.analysis import Group
from prunec.compiler.plan.options import wrong
from prunec.compiler.plan.source import read_text

COLUMNS: Final = ("group", "units", "ratio", "removed", "accuracy", "loss")
"""The columns that are read."""

JUDGED: Final = ("group", "units", "ratio", "removed", "metric", "loss", "name", "better")
"""Those of a file with another metric than accuracy."""


@dataclass(frozen=True)
class Judged:
    """The metric of a curve."""

    name: str = "accuracy"
    higher_is_better: bool = True
    share: bool = True
    """Whether it is read in per cent, and changes in points."""


@dataclass(frozen=True)
class Point:
    """What was measured with `removed` units of a group masked, for a share of `ratio`."""

    ratio: float
    removed: int
    metric: float
    """NaN where the model has none."""
    loss: float

    @property
    def value(self) -> float:
        """The metric; the loss where there is none."""
        return self.loss if math.isnan(self.metric) else self.metric


@dataclass(frozen=True)
class Curve:
    """A group's points, by rising ratio; the first is the whole model's."""

    group: str
    units: int
    points: tuple[Point, ...]
    by: Judged = Judged()
    """The metric."""

    @property
    def judged(self) -> Judged:
        """What the values are of: the metric; the loss where there is none."""
        return Judged("loss", False, False) if math.isnan(self.points[0].metric) else self.by

    @cached_property
    def drops(self) -> tuple[float, ...]:
        """How much worse each point is than the whole model."""
        whole = self.points[0].value
        sign = -1 if self.judged.higher_is_better else 1
        return tuple(sign * (point.value - whole) for point in self.points)

    @property
    def mean_drop(self) -> float:
        """The mean drop, without the first point; infinite where a loss was."""
        return _mean(self.drops[1:])

    @property
    def mean_loss(self) -> float:
        """The mean loss, without the first point; infinite where a loss was."""
        return _mean([point.loss for point in self.points[1:]])


def _mean(values: Sequence[float]) -> float:
    return float(np.nan_to_num(np.array(values or (0.0,)), nan=math.inf).mean())


def write_curves(path: Path, curves: Sequence[Curve], more: Mapping[str, Any]) -> None:
    """Write the curves as CSV; `more` holds further columns, which are the same in every row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        plain = all(curve.by == Judged() for curve in curves)
        writer.writerow([*(COLUMNS if plain else JUDGED), *more])
        for curve in curves:
            by = () if plain else (curve.by.name, "higher" if curve.by.higher_is_better else "lower")
            for p in curve.points:
                metric = "" if math.isnan(p.metric) else repr(p.metric)
                figures = (f"{p.ratio:g}", p.removed, metric, repr(p.loss))
                writer.writerow([curve.group, curve.units, *figures, *by, *more.values()])


def read_curves(path: Path, groups: Mapping[str, Group] | None = None) -> list[Curve]:
    """The curves in a file; with `groups`, each must be one of these.

    Raises `PassError` with its place in the file for what can't be read, and for curves of other groups.
    """
    rows = list(_rows(path))
    if not rows:
        raise PassError(
            f"{path} holds the names of columns, and no curve", hint="`prunec sensitivity PLAN` measures them"
        )
    found: dict[str, tuple[_Row, dict[float, Point]]] = {}
    for row in rows:
        first, points = found.setdefault(row.text("group"), (row, {}))
        point = row.point()
        if point.ratio in points:
            raise row.error("ratio", f"'{row.text('group')}' has the ratio {point.ratio:g} twice")
        if row.count("units") != first.count("units"):
            raise row.error("units", f"'{row.text('group')}' had {first.count('units')} units above")
        points[point.ratio] = point
    return [_curve(name, *of, groups) for name, of in found.items()]


@dataclass(frozen=True)
class _Row:
    """A line of the file, by column."""

    file: str
    number: int
    line: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        return self.cells[column]

    def number_of(self, column: str) -> float:
        try:
            return float(self.cells[column])
        except ValueError as error:
            raise self.error(column, f"{column} must be a number, got '{self.cells[column]}'") from error

    def count(self, column: str) -> int:
        value = self.number_of(column)
        if value < 0 or not value.is_integer():
            raise self.error(column, f"{column} must be a whole number, got '{self.cells[column]}'")
        return int(value)

    def point(self) -> Point:
        ratio, removed = self.number_of("ratio"), self.count("removed")
        if not 0 <= ratio <= 1:
            raise self.error("ratio", f"ratio must be between 0 and 1, got '{self.cells['ratio']}'")
        if removed > self.count("units"):
            raise self.error("removed", f"removed must be at most the group's {self.count('units')} units")
        column = "accuracy" if "accuracy" in self.cells else "metric"
        metric = self.number_of(column) if self.cells[column].strip() else math.nan
        return Point(ratio, removed, metric, self.number_of("loss"))

    def judged(self) -> Judged:
        """The metric of the line."""
        if "accuracy" in self.cells:
            return Judged()
        if (better := self.text("better")) not in ("higher", "lower"):
            raise self.error("better", f"better must be higher or lower, got '{better}'")
        return Judged(self.text("name"), better == "higher", share=False)

    def error(self, column: str, message: str, hint: str | None = None) -> PassError:
        before = [text for name, text in self.cells.items()][: list(self.cells).index(column)]
        start = sum(len(text) + 1 for text in before) + 1
        at = Span(self.file, self.number, start, max(len(self.cells[column]), 1), self.line)
        return PassError(message, at=at, hint=hint)


def _curve(name: str, row: _Row, points: Mapping[float, Point], groups: Mapping[str, Group] | None) -> Curve:
    units = row.count("units")
    if groups is not None and name not in groups:
        hint = nearest(name, groups) or "the file was measured on another model, or at another place of the plan"
        raise row.error("group", f"the model has no group '{name}'", hint)
    if groups is not None and groups[name].size != units:
        message = f"'{name}' has {units} units in the file, {groups[name].size} in the model"
        raise row.error("units", message, "measure again: `prunec sensitivity PLAN`")
    if 0.0 not in points:
        raise row.error("ratio", f"'{name}' has no row of ratio 0, the whole model")
    return Curve(name, units, tuple(points[ratio] for ratio in sorted(points)), row.judged())


def _rows(path: Path) -> Iterator[_Row]:
    lines = _lines(path)
    cut = [_cells(path, number, line) for number, line in enumerate(lines, 1)]
    names = cut[0] if cut else []
    missing = [name for name in (JUDGED if "metric" in names else COLUMNS) if name not in names]
    if missing:
        at = Span(str(path), 1, 1, max(len(lines[0]), 1) if lines else 1, lines[0] if lines else "")
        hint = f"`prunec sensitivity PLAN` writes a file with the columns {', '.join(COLUMNS)}"
        raise PassError(f"missing column '{missing[0]}'", at=at, hint=hint)
    for number, (line, cells) in enumerate(zip(lines, cut, strict=True), 1):
        if number == 1 or not cells:
            continue
        if len(cells) != len(names):
            at = Span(str(path), number, 1, len(line), line)
            raise PassError(f"expected {len(names)} columns, got {len(cells)}", at=at)
        yield _Row(str(path), number, line, dict(zip(names, cells, strict=True)))


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise PassError(f"not valid CSV: {error}", at=Span(str(path), number, 1, 1, line[:80])) from error


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path, "the file").splitlines()
    except PlanError as error:
        hint = "`prunec sensitivity PLAN` writes it"
        raise PassError(f"from: {error.message}", keys=("from",), at=error.at, hint=hint) from error


_FLOOR: Final = re.compile(r"\s*-\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(pt|%)\s*")


def _floor(value: object) -> object:
    match = _FLOOR.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        hint = "-1pt is one point of accuracy, as from 97% to 96%; -2% is 2% of what it is"
        raise wrong("must be a loss such as -1pt or -2%", hint=hint)
    return f"-{match[1]}{match[2]}"


Floor = Annotated[str, BeforeValidator(_floor)]
"""How much may be lost: `-1pt`, a point of accuracy or of another share, or `-2%` of what the model has. What should be
low, such as a loss, may rise by as many percent."""


def held(curve: Curve, floor: str) -> Point:
    """The last point up to which the curve loses no more than that. Raises `PassError` for `pt` of what is no share."""
    most, last = _allowed(curve, floor), curve.points[0]
    for point, drop in zip(curve.points, curve.drops, strict=True):
        if not drop <= most + 1e-9:
            break
        last = point
    return last


def _allowed(curve: Curve, floor: str) -> float:
    """How much may be lost, in the units of the curve's values."""
    match = _FLOOR.fullmatch(floor)
    assert match is not None, "a floor is checked when the plan is loaded"
    amount, whole, judged = float(match[1]) / 100, curve.points[0].value, curve.judged
    if match[2] == "%":
        return amount * abs(whole)
    if judged.higher_is_better and 0 <= whole <= 1:
        return amount
    what = "losses alone" if judged.name == "loss" else f"{judged.name}, which is no share"
    verb = f"lets the {judged.name} rise" if not judged.higher_is_better else f"lets the {judged.name} fall"
    message = f"floor: {floor} is of accuracy, and the file has {what}"
    raise PassError(message, keys=("floor",), hint=f"-2% {verb} by 2%")


def kept_within(path: Path, floor: str, groups: Mapping[str, Group], only: Iterable[str]) -> dict[str, int]:
    """Group -> how many units it keeps by the curves in a file, for the groups in `only`; one without a curve isn't
    cut.

    Raises `PassError` with its place in the file where that can't be read or is another model's.
    """
    wanted = set(only)
    points = {curve.group: (curve.units, held(curve, floor)) for curve in read_curves(path, groups)}
    return {name: units - point.removed for name, (units, point) in points.items() if name in wanted and point.removed}
