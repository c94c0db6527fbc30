"""The results of `prunec sensitivity` and `prunec rank` as tables: on the console, and on a page with the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from prunec.compiler.report.console import made_table, say, show
from prunec.compiler.report.figures import metric_text
from prunec.compiler.report.html import Rows, table_page
from prunec.passes.selection.curves import Curve, Judged, held
from prunec.passes.studies.rank import ALL, Row, within_groups
from prunec.passes.studies.sensitivity import most_sensitive_first

EXTREMES: Final = 6
"""How many of the most and of the least sensitive groups the console shows; the page shows all."""

SHOWN: Final = 4
"""For how many ratios a table has a column; the file has them all."""


@dataclass(frozen=True)
class Whole:
    """The whole model's figures, and how they were measured: `by` holds criterion, samples and split."""

    name: str
    metric: float
    """NaN where there is none."""
    judged: Judged
    loss: float
    by: Mapping[str, Any]

    @property
    def title(self) -> str:
        """A title of one line."""
        metric = (
            "" if math.isnan(self.metric) else f"{self.judged.name} {metric_text(self.metric, self.judged.share)}, "
        )
        how = f"{self.by['samples']:,} samples of {self.by['split']}; units go by {self.by['criterion']}"
        return f"{self.name}: {metric}loss {self.loss:.4g} on {how}"


# -- sensitivity ---------------------------------------------------------------------------------------------------


def show_curves(whole: Whole, curves: Sequence[Curve]) -> None:
    """Print what the most and the least sensitive groups lose."""
    ordered = most_sensitive_first(curves)
    say(whole.title)
    if len(ordered) <= 2 * EXTREMES:
        show(_curves_table("the most sensitive first", ordered))
        return
    show(_curves_table("the most sensitive", ordered[:EXTREMES]))
    show(_curves_table("the least sensitive", ordered[-EXTREMES:]))


def write_curves_page(path: Path, whole: Whole, curves: Sequence[Curve]) -> None:
    """Write a page with the picture, which lies beside it, and the table of all groups."""
    table = _curve_rows("The most sensitive first", most_sensitive_first(curves))
    picture = path.with_suffix(".png").read_bytes()
    lead = whole.title.removeprefix(f"{whole.name}: ")
    page = table_page(f"{whole.name}: sensitivity", f"{lead[0].upper()}{lead[1:]}.", picture, [table])
    path.write_text(page, encoding="utf-8")


def _curves_table(title: str, curves: Sequence[Curve]) -> Table:
    found = _curve_rows(title, curves)
    return made_table(f"\n{title}", found.columns, found.rows, right=found.numbers)


def _curve_rows(title: str, curves: Sequence[Curve]) -> Rows:
    first = curves[0].points
    judged = curves[0].judged
    places = _spread(len(first) - 1)
    floor = "-1pt" if judged.share else "-2%"
    words = f"within {floor[1:]}" if judged.share else f"{judged.name} within {floor[1:]}"
    ratios = [f"at {first[place].ratio:.0%}" for place in places]
    columns = (
        "group",
        "units",
        "lost on average" if judged.higher_is_better else f"{judged.name} risen by",
        *ratios,
        words,
    )
    rows = []
    for curve in curves:
        values = [_value(curve.points[place].value, judged.share) for place in places]
        mean = f"{100 * curve.mean_drop:.2f} pt" if judged.share else f"{curve.mean_drop:.3g}"
        last = held(curve, floor)
        rows.append(
            [curve.group, str(curve.units), mean, *values, f"up to {last.ratio:.0%}" if last.removed else "never"]
        )
    return Rows(title, columns, rows, columns[1:])


def _spread(count: int) -> list[int]:
    """At most `SHOWN` of the numbers 1 to `count`, evenly spaced."""
    if count <= SHOWN:
        return list(range(1, count + 1))
    return [round(1 + step * (count - 1) / (SHOWN - 1)) for step in range(SHOWN)]


def _value(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.3g}"


# -- rank ----------------------------------------------------------------------------------------------------------


def show_ranks(title: str, rows: Sequence[Row]) -> None:
    """Print the table of criteria."""
    say(title)
    show(_ranks_table(rows))


def write_ranks_page(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Write a page with the picture, which lies beside it, and the table of criteria."""
    name, _, lead = title.partition(": ")
    table = Rows("The best within groups first", RANKED, _rank_rows(rows), RANKED[1:])
    page = table_page(
        f"{name}: criteria", f"{lead[0].upper()}{lead[1:]}.", path.with_suffix(".png").read_bytes(), [table]
    )
    path.write_text(page, encoding="utf-8")


def summary(rows: Sequence[Row], kind: str) -> dict[str, tuple[float, float, float]]:
    """Criterion -> mean correlation (`kind`: spearman or kendall) within groups, over all groups, and over all
    normalised; the best within groups first."""
    found = {}
    for name in dict.fromkeys(row.criterion for row in rows):
        mine = [row for row in rows if row.criterion == name]
        raw, normal = (
            getattr(row, kind) for how in ("none", "l2") for row in mine if (row.group, row.normalize) == (ALL, how)
        )
        found[name] = (within_groups(mine, kind), raw, normal)
    return dict(sorted(found.items(), key=lambda entry: -math.inf if math.isnan(entry[1][0]) else -entry[1][0]))


RANKED: Final = ("criterion", "within groups", "all, raw", "all, l2", "Kendall within", "Kendall raw", "Kendall l2")


def _ranks_table(rows: Sequence[Row]) -> Table:
    spelled: list[list[str | Text]] = [
        [name, *(Text(text, _style(text)) for text in texts)] for name, *texts in _rank_rows(rows)
    ]
    return made_table("", ("", *RANKED[1:]), spelled, right=RANKED[1:])


def _rank_rows(rows: Sequence[Row]) -> list[list[str]]:
    """A row of texts for each criterion, the best within groups first."""
    kendall = summary(rows, "kendall")
    return [
        [name, *(_correlation(value) for value in (*values, *kendall[name]))]
        for name, values in summary(rows, "spearman").items()
    ]


def _correlation(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"


def _style(text: str) -> str:
    return "dim" if text == "none" else "green" if float(text) >= 0.5 else "red" if text.startswith("-") else ""
