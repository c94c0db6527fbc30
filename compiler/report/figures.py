"""The figures of a report as a person reads them: `465 k`, `-50.2%`, `1.3 ms`. The console and the page share them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from prunec.compiler.report.report import (
    Change,
    GroupWidths,
    KeptFindings,
    Measured,
    Record,
    Report,
    RoundFigures,
    Rounds,
)

if TYPE_CHECKING:  # it comes with torch, which the command line's help doesn't wait for
    from prunec.compiler.cost.model import Cost
    from prunec.compiler.ir.program import Note

Reason = tuple[str, list[str]]
"""Why something was left alone, and all that was left alone for it."""


@dataclass(frozen=True)
class Figure:
    """One line of the summary, in words; `share` is after / before, and `better` says whether the change is a gain."""

    name: str
    before: str
    after: str
    change: str
    share: float
    better: bool | None


def scaled(value: float, steps: Sequence[tuple[float, str]]) -> str:
    """The value in the largest unit that it reaches, with three digits; counted ones and zero without decimals."""
    size, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    number = value / size
    whole = abs(number) >= 100 or value == 0 or (size == 1 and value == int(value))
    digits = 0 if whole else 1 if abs(number) >= 10 else 2
    return f"{number:.{digits}f} {unit}".rstrip()


def count(value: float) -> str:
    """`125 M` of 125,485,696."""
    return scaled(value, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")))


def size(value: float) -> str:
    """`118 kB` of 117,912 bytes."""
    return scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def duration(value: float) -> str:
    """`1.30 ms` of 0.0013 seconds."""
    return scaled(value, ((1, "s"), (1e-3, "ms"), (1e-6, "µs")))


def moment(value: str) -> str:
    """`2026-11-27 03:11 UTC` of 2026-11-27T03:11:25+00:00."""
    return f"{value[:10]} {value[11:16]} UTC"


def percent(value: float) -> str:
    """`97.22%` of 0.9722."""
    return f"{value:.2%}"


def relative(change: Change[float]) -> str:
    """`-50.2%` from 1000 to 498."""
    return f"{change.after / change.before - 1:+.1%}" if change.before else "new"


def points(change: Change[float]) -> str:
    """`-1.39 points` from 0.9972 to 0.9833."""
    return f"{100 * (change.after - change.before):+.2f} points"


def metric_text(value: float, share: bool) -> str:
    """A metric's value: `97.22%` of a share, and else four digits."""
    return "NaN" if math.isnan(value) else percent(value) if share else f"{value:.4g}"


def _metric_change(change: Change[float], share: bool) -> str:
    """How a metric has changed: in points, or by how much of what it was."""
    if math.isnan(change.after - change.before):
        return "NaN"
    if share or not change.before:
        return points(change) if share else f"{change.after - change.before:+.3g}"
    return f"{(change.after - change.before) / abs(change.before):+.1%}"


def _measured_latency(report: Report) -> Change[float] | None:
    """What was measured beside a prediction; in onnxruntime, where there is an ONNX file, that is shown as its own."""
    found = report.latency
    return None if found is None or (report.onnx and found.runtime == "onnxruntime") else found.measured


_Read = Callable[[Report], Change[float] | None]
_Text = Callable[[float], str]
_Row = tuple[_Read, _Text, Callable[[Change[float]], str], int]

_ROWS: Final[Mapping[str, _Row]] = {
    "balanced accuracy": (lambda report: report.classes.balanced if report.classes else None, percent, points, 1),
    "MACs": (lambda report: report.cost.each(lambda cost: cost.macs), count, relative, -1),
    "parameters": (lambda report: report.cost.each(lambda cost: cost.params), count, relative, -1),
    "activations at once": (lambda report: report.cost.each(lambda cost: cost.memory), count, relative, -1),
    "weights file": (lambda report: report.weights, size, relative, -1),
    "ONNX file": (lambda report: report.onnx.bytes if report.onnx else None, size, relative, -1),
    "latency in onnxruntime": (lambda report: report.onnx.latency if report.onnx else None, duration, relative, -1),
    "measured latency": (_measured_latency, duration, relative, -1),
    "predicted latency": (lambda report: report.latency.predicted if report.latency else None, duration, relative, -1),
}
"""Name -> where it stands in the report, how a value and a change read, and whether more (1) or less (-1) is a gain."""


def foretold(report: Report) -> str:
    """How good the prediction of the latency was, in a sentence; empty where nothing was predicted and measured.

    Shares of the original's latency are compared: the machine may be slower now than when its layers were measured.
    """
    if report.latency is None or report.latency.measured is None:
        return ""
    predicted, measured = (side.after / side.before for side in (report.latency.predicted, report.latency.measured))
    error = predicted / measured - 1
    where = f"latency in {report.latency.runtime}"
    return f"{where}: predicted {predicted:.1%} of the original, measured {measured:.1%} ({error:+.1%})"


def kept_classes(report: Report) -> str:
    """Which classes a class-adaptive compile has kept, in a sentence; empty for any other."""
    found = report.classes
    if found is None:
        return ""
    told = ", ".join(_titles(found))
    shares = "; probabilities are those among the kept classes" if found.renormalised else ""
    measured = f"; {report.metric.name} is that among them, before too" if report.metric else ""
    return f"classes: {len(found.kept)} of {found.of}: {told}{shares}{measured}"


def _titles(found: KeptFindings) -> list[str]:
    names = found.names or ("",) * len(found.kept)
    return [f"{name} ({old})" if name else str(old) for name, old in zip(names, found.kept, strict=True)]


def class_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Of each class that is kept, and at last of all of them in the mean: how many samples, which share of them is put
    right before and after, and the change. Empty where that isn't known."""
    found = report.classes
    if found is None or found.balanced is None:
        return []
    samples = [str(score.samples) for score in found.scores]
    rows = zip(
        [*_titles(found), "mean"], [*samples, ""], [*(s.accuracy for s in found.scores), found.balanced], strict=True
    )
    return [(name, many, percent(x.before), percent(x.after), points(x)) for name, many, x in rows]


def evaluated(report: Report) -> str:
    """What the metric is of, or why there is none, in a sentence; empty where it is that of the test split."""
    found = report.evaluation
    if found is None:
        return ""
    if found.left_out:
        return f"accuracy: not measured: {found.left_out}"
    name = report.metric.name if report.metric else "accuracy"
    return f"{name}: of {found.samples:,} samples of the split {found.split}" if found.split != "test" else ""


def unevaluated(report: Report) -> str:
    """What a plan may say to have a metric where there is none; empty where there is one, or nothing helps."""
    return f"hint: {report.evaluation.hint}" if report.evaluation and report.evaluation.hint else ""


def unmeasured(report: Report) -> str:
    """What a quick compile left out, in a sentence; empty where nothing was."""
    return f"not measured: --quick: {' and '.join(report.unmeasured)}" if report.unmeasured else ""


def figures(report: Report) -> list[Figure]:
    """The summary of a report; what wasn't measured has no line."""
    found = ((name, row[0](report), row) for name, row in _ROWS.items())
    rows = [_figure(name, change, *row[1:]) for name, change, row in found if change is not None]
    return [_metric_figure(report.metric), *rows] if report.metric else rows


def _metric_figure(metric: Measured) -> Figure:
    text, words = partial(metric_text, share=metric.share), partial(_metric_change, share=metric.share)
    name = metric.name if metric.higher_is_better else f"{metric.name} (less is better)"
    return _figure(name, metric.value, text, words, 1 if metric.higher_is_better else -1)


def _figure(name: str, change: Change[float], text: _Text, words: Callable[[Change[float]], str], gain: int) -> Figure:
    before, after = change.before, change.after
    gained = gain * (after - before)
    share = after / before if before else 1.0
    share = max(share, 0.0) if math.isfinite(share) else 0.0
    return Figure(name, text(before), text(after), words(change), share, gained > 0 if gained else None)


def with_rounds(records: Iterable[Record]) -> Iterator[tuple[Record, list[Record]]]:
    """The records of a plan's passes, each with those of what it did in rounds."""
    found: list[tuple[Record, list[Record]]] = []
    for record in records:
        if record.round is None:
            found.append((record, []))
        elif found:
            found[-1][1].append(record)
    yield from found


def did(record: Record, inside: Sequence[Record] = ()) -> str:
    """What a pass changed, in words; `inside` are the records of its rounds."""
    kept = {row.number for row in record.rounds.rows if row.kept} if record.rounds else set[int]()
    units = sum(
        sum(each.details.get("removed_units", {}).values())
        for each in (record, *(each for each in inside if each.round in kept))
    )
    words = [f"{units} units removed"] if units else _trained(record) or _changes(record)
    if record.rounds is not None:
        count = len(record.rounds.rows) - 1
        words = [f"{count} rounds" if count != 1 else "1 round", *words]
    return ", ".join(words)


def _trained(record: Record) -> list[str]:
    """What a training came to: how long it was, and the last line of its table."""
    if not record.history:
        return []
    last, metric = record.history[-1], record.details.get("metric", {})
    words = [_counted(int(last["epoch"]), "epoch"), f"loss {last['loss']:.3g}"]
    if metric.get("column") in last:
        best = record.details.get("best", {})
        value = best.get("value", last[metric["column"]])
        of = f" of epoch {best['epoch']}" if best else ""
        words.append(f"{metric['title']} {metric_text(value, metric['share'])} on val{of}")
    return words


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _changes(record: Record) -> list[str]:
    before, after = record.before, record.after
    changes = ((after.macs - before.macs, "MACs"), (after.params - before.params, "parameters"))
    return [f"{change:+,} {name}" for change, name in changes if change]


@dataclass(frozen=True)
class RoundLine:
    """A round in words."""

    number: int
    seconds: float
    did: str
    cost: Cost
    metric: str
    """Empty where it wasn't measured."""
    check: str
    """The worst of its checks."""
    kept: bool


def round_lines(record: Record, inside: Sequence[Record]) -> list[RoundLine]:
    """The rounds of a pass, from what it tells of them and from the records of what it did in them."""
    if record.rounds is None:
        return []
    of: dict[int | None, list[Record]] = {}
    for each in inside:
        of.setdefault(each.round, []).append(each)
    return [_round_line(row, record.rounds, of.get(row.number, [])) for row in record.rounds.rows[1:]]


def _round_line(row: RoundFigures, rounds: Rounds, records: Sequence[Record]) -> RoundLine:
    units = sum(sum(each.details.get("removed_units", {}).values()) for each in records)
    verified = [each for each in records if each.verification is not None]
    worst = max(verified, key=lambda each: each.verification.difference if each.verification else 0, default=None)
    return RoundLine(
        row.number,
        sum(each.seconds + each.verify_seconds for each in records),
        f"{units} units removed" if units else "",
        row.cost,
        "" if row.metric is None else metric_text(row.metric, rounds.share),
        "" if worst is None else checked(worst),
        row.kept,
    )


def checked(record: Record) -> str:
    """How the check of a pass came out; empty where it rewrote nothing."""
    found = record.verification
    if found is None:
        return ""
    sizes = " and ".join(str(batch) for batch in found.batches)
    return f"differs by {found.difference:.1e} at most ({found.dtype}, batches of {sizes})"


def gathered(notes: Iterable[Note]) -> list[Reason]:
    """Each reason with all that was left alone for it, the most frequent first."""
    return list(_by_reason([(note.subject, note.reason) for note in notes]))


def reasons_by_pass(report: Report) -> list[tuple[str, list[Reason]]]:
    """What each pass left alone, and why; of what a pass did in rounds, all rounds together."""
    found: list[tuple[str, list[Reason]]] = []
    for record, inside in with_rounds(report.passes):
        found.append((record.name, gathered(record.notes)))
        notes: dict[str, dict[Note, None]] = {}
        for each in inside:
            notes.setdefault(each.name, {}).update(dict.fromkeys(each.notes))
        found += [(name, gathered(of)) for name, of in notes.items()]
    return [(name, reasons) for name, reasons in found if reasons]


def left_alone(report: Report) -> list[Reason]:
    """Each reason with the groups in which nothing may be removed for it, the most frequent first."""
    return list(_by_reason([(group.name, next(iter(group.pinned))) for group in report.groups if group.is_pinned]))


def _by_reason(found: Sequence[tuple[str, str]]) -> Iterator[Reason]:
    for reason, _ in Counter(reason for _, reason in found).most_common():
        yield reason, [subject for subject, why in found if why == reason]


def removed(group: GroupWidths) -> int:
    """How many channels of a group are gone."""
    return group.channels.before - group.channels.after
