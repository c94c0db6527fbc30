"""The results of `prunec sensitivity` and `prunec rank` as tables: on the console, and on a page with the picture."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunec.compiler.report.console import console, made_table, say
from prunec.compiler.report.figures import percent
from prunec.passes.selection.curves import Curve, held
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
    accuracy: float
    """NaN where there is none."""
    loss: float
    by: Mapping[str, Any]

    @property
    def title(self) -> str:
        """A title of one line."""
        accuracy = "" if math.isnan(self.accuracy) else f"accuracy {percent(self.accuracy)}, "
        how = f"{self.by['samples']:,} samples of {self.by['split']}; units go by {self.by['criterion']}"
        return f"{self.name}: {accuracy}loss {self.loss:.4g} on {how}"


# -- sensitivity ---------------------------------------------------------------------------------------------------


def show_curves(whole: Whole, curves: Sequence[Curve]) -> None:
    """Print what the most and the least sensitive groups lose."""
    ordered = most_sensitive_first(curves)
    say(whole.title)
    if len(ordered) <= 2 * EXTREMES:
        console().print(_curves_table("the most sensitive first", ordered))
        return
    console().print(_curves_table("the most sensitive", ordered[:EXTREMES]))
    console().print(_curves_table("the least sensitive", ordered[-EXTREMES:]))


def write_curves_page(path: Path, whole: Whole, curves: Sequence[Curve]) -> None:
    """Write a page with the picture beside it and the table of all groups."""
    _write_page(path, whole.title, _curves_table("the most sensitive first", most_sensitive_first(curves)))


def _curves_table(title: str, curves: Sequence[Curve]) -> Table:
    first = curves[0].points
    accurate = not math.isnan(first[0].accuracy)
    places = _spread(len(first) - 1)
    floor = "-1pt" if accurate else "-2%"
    words = f"within {floor[1:]}" if accurate else f"loss within {floor[1:]}"
    ratios = [f"at {first[place].ratio:.0%}" for place in places]
    columns = ("group", "units", "lost on average" if accurate else "loss risen by", *ratios, words)
    rows = []
    for curve in curves:
        values = [_value(curve.points[place].value, accurate) for place in places]
        mean = f"{100 * curve.mean_drop:.2f} pt" if accurate else f"{curve.mean_drop:.3g}"
        last = held(curve, floor)
        rows.append(
            [curve.group, str(curve.units), mean, *values, f"up to {last.ratio:.0%}" if last.removed else "never"]
        )
    return made_table(f"\n{title}", columns, rows, right=columns[1:])


def _spread(count: int) -> list[int]:
    """At most `SHOWN` of the numbers 1 to `count`, evenly spaced."""
    if count <= SHOWN:
        return list(range(1, count + 1))
    return [round(1 + step * (count - 1) / (SHOWN - 1)) for step in range(SHOWN)]


def _value(value: float, accurate: bool) -> str:
    return f"{value:.1%}" if accurate else f"{value:.3g}"


# -- rank ----------------------------------------------------------------------------------------------------------


def show_ranks(title: str, rows: Sequence[Row]) -> None:
    """Print the table of criteria."""
    say(title)
    console().print(_ranks_table(rows))


def write_ranks_page(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Write a page with the picture beside it and the table of criteria."""
    _write_page(path, title, _ranks_table(rows))


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


def _ranks_table(rows: Sequence[Row]) -> Table:
    columns = ("", "within groups", "all, raw", "all, l2", "Kendall within", "Kendall raw", "Kendall l2")
    kendall = summary(rows, "kendall")
    spelled: list[list[str | Text]] = [
        [name, *(_correlation(value) for value in (*values, *kendall[name]))]
        for name, values in summary(rows, "spearman").items()
    ]
    return made_table("", columns, spelled, right=columns[1:])


def _correlation(value: float) -> Text:
    style = "dim" if math.isnan(value) else "green" if value >= 0.5 else "red" if value < 0 else ""
    return Text("none" if math.isnan(value) else f"{value:.2f}", style)


# -- the page ------------------------------------------------------------------------------------------------------

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
body {{ margin: 2rem auto; max-width: 1100px; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #1c2430; }}
h1 {{ font-size: 1.2rem; }}
img {{ max-width: 100%; }}
pre {{ overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; }}
</style>
</head>
<body>
<h1>TITLE</h1>
<img src="PICTURE" alt="the picture of the table below">
<pre>{code}</pre>
</body>
</html>
"""


def _write_page(path: Path, title: str, table: Table) -> None:
    page = _PAGE.replace("TITLE", html.escape(title).replace("{", "{{").replace("}", "}}"))
    page = page.replace("PICTURE", path.with_suffix(".png").name)
    paper = Console(record=True, file=io.StringIO(), width=160, markup=False, highlight=False, emoji=False)
    paper.print(table)
    path.write_text(paper.export_html(code_format=page, inline_styles=True), encoding="utf-8")
