"""The report as one HTML file: what became smaller, by how much, what was checked, and what was left alone and why.

It needs nothing from elsewhere: styles and pictures stand inside. Whatever the report doesn't have (accuracy, an ONNX
file) has no place in the page either.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import jinja2

from prunec.compiler.pass_base import Attachment
from prunec.compiler.report import figures
from prunec.compiler.report.attachments import pictures, tables
from prunec.compiler.report.curves import PICTURE, Curve, curve
from prunec.compiler.report.report import Change, GroupWidths, Record, Report
from prunec.compiler.report.targets import RIGHT, target_columns, target_lines, target_rows, tells
from prunec.compiler.report.training import trainings

SKYLINE: Final = (960.0, 200.0)
"""Width and height of the picture of all nodes, in its own units."""


LABELS: Final = (75, 24)
"""How many names of nodes fit below that picture, on a wide page and on a narrow one."""


@dataclass(frozen=True)
class Bar:
    """A value before and after, as parts of the picture's width (in percent)."""

    name: str
    before: int
    after: int
    whole: float
    left: float
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A node's place in the skyline, and its two heights."""

    name: str
    before: int
    after: int
    x: float
    width: float
    tall: float
    short: float
    label: str = ""
    """Whether its name is shown: always (empty), on wide pages alone (`wide`) or nowhere (`none`)."""


def report_html(report: Report) -> str:
    """The page of a report, as `compile` makes it or as `Result.write` completes it."""
    columns = skyline(report.macs_by_node)
    return _template().render(
        report=report,
        figures=figures.figures(report),
        foretold=figures.foretold(report),
        kept_classes=figures.kept_classes(report),
        class_rows=figures.class_rows(report),
        evaluated=figures.evaluated(report),
        unevaluated=figures.unevaluated(report),
        unmeasured=figures.unmeasured(report),
        groups=group_bars(report),
        columns=columns,
        picture=SKYLINE,
        flat=_flat(columns),
        tallest=max([column.before for column in columns] + [column.after for column in columns], default=0),
        alone=figures.left_alone(report),
        passes=list(figures.with_rounds(report.passes)),
        reasons_by_pass=figures.reasons_by_pass(report),
        curves=PICTURE,
        trainings=trainings(report),
        pictures=pictures(report),
        tables=tables(report),
        targets=target_rows(report.targets) if tells(report) else (),
        target_columns=target_columns(report.targets),
        target_numbers=RIGHT,
        target_lines=target_lines(report.targets),
    )


def round_curves(record: Record, whole: int) -> list[Curve]:
    """The metric and the MACs, as a share of the original's `whole`, against the rounds of a pass."""
    rounds = record.rounds
    if rounds is None:
        return []
    steps, lost = [row.number for row in rounds.rows], {row.number for row in rounds.rows if not row.kept}
    metrics = [row.metric for row in rounds.rows]
    left = [row.cost.macs / max(whole, 1) for row in rounds.rows]
    told = partial(figures.metric_text, share=rounds.share)
    found = (
        curve(rounds.metric, steps, metrics, told, bound=rounds.floor, lost=lost),
        curve("MACs left", steps, left, figures.percent, least=0.0, lost=lost),
    )
    return [each for each in found if each is not None]


def group_bars(report: Report) -> list[Bar]:
    """A bar for each group: its channels before and after, as parts of the widest that may be cut.

    A wider one that is wholly pinned, such as a thousand classes, would make all others look alike: its bar is full.
    """
    open_groups = [group for group in report.groups if not group.is_pinned]
    widest = max((group.channels.before for group in open_groups or report.groups), default=1)
    return [_bar(group, widest) for group in report.groups]


def _bar(group: GroupWidths, widest: int) -> Bar:
    before, after = group.channels.before, group.channels.after
    note = "; ".join(f"{units} of {group.units} units: {reason}" for reason, units in group.pinned.items())
    whole, left = (min(100.0, 100 * channels / widest) for channels in (before, after))
    return Bar(group.name, before, after, whole, left, note)


def skyline(macs: Change[Mapping[str, int]]) -> list[Column]:
    """A column for each node that multiplied before, in the graph's order; nodes that the passes made come last."""
    before, after = macs.before, macs.after
    names = [*before, *(name for name in after if name not in before)]
    tallest = max([*before.values(), *after.values(), 1])
    step = SKYLINE[0] / max(len(names), 1)
    wide = -(-len(names) // LABELS[0])
    narrow = wide * -(-len(names) // (LABELS[1] * wide))
    scale = SKYLINE[1] / tallest
    return [
        Column(name, old, new, (index + 0.1) * step, step * 0.8, old * scale, new * scale, _label(index, wide, narrow))
        for index, name in enumerate(names)
        for old, new in [(before.get(name, 0), after.get(name, 0))]
    ]


def _flat(columns: Sequence[Column]) -> bool:
    """Whether all names fit beside each other on a wide page."""
    longest = max((len(column.name) for column in columns), default=0)
    return longest * len(columns) <= 130


def _label(index: int, wide: int, narrow: int) -> str:
    """Of every so many columns one is named, on wide pages and on narrow ones."""
    return "none" if index % wide else "wide" if index % narrow else ""


@dataclass(frozen=True)
class Rows:
    """A table of texts for a page; `numbers` are the columns that stand to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()


def table_page(title: str, lead: str, picture: bytes, tables: Sequence[Rows]) -> str:
    """A page that looks like the report: a title, a sentence, a PNG picture that stands inside, and tables."""
    return pictures_page(title, lead, [Attachment("", picture)], tables)


def pictures_page(title: str, lead: str, pictures: Sequence[Attachment], tables: Sequence[Rows]) -> str:
    """A page that looks like the report: a title, a sentence, PNG pictures, each with a title and a caption, if it has
    them, and tables."""
    inside = [(each, base64.b64encode(each.content).decode("ascii")) for each in pictures]
    return _template("tables.html.jinja").render(title=title, lead=lead, pictures=inside, tables=tables)


@cache
def _template(name: str = "report.html.jinja") -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = ("count", "size", "duration", "percent", "moment", "checked", "did", "round_lines")
    environment.filters.update({name: getattr(figures, name) for name in words})
    environment.filters["round_curves"] = round_curves
    environment.filters["grouped"] = lambda value: f"{value:,}"
    return environment.get_template(name)
