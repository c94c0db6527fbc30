"""The figures of a report as a person reads them: `465 k`, `-50.2%`, `1.3 ms`. The console and the page share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Pair = Mapping[str, float]
"""A figure `before` and `after`."""


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


def percent(value: float) -> str:
    """`97.22%` of 0.9722."""
    return f"{value:.2%}"


def relative(pair: Pair) -> str:
    """`-50.2%` from 1000 to 498."""
    return f"{pair['after'] / pair['before'] - 1:+.1%}" if pair["before"] else "new"


def points(pair: Pair) -> str:
    """`-1.39 points` from 0.9972 to 0.9833."""
    return f"{100 * (pair['after'] - pair['before']):+.2f} points"


_Text = Callable[[float], str]
_ROWS: Final[Mapping[str, tuple[tuple[str, ...], _Text, Callable[[Pair], str], int]]] = {
    "accuracy": (("accuracy",), percent, points, 1),
    "MACs": (("cost", "macs"), count, relative, -1),
    "parameters": (("cost", "params"), count, relative, -1),
    "activations at once": (("cost", "memory"), count, relative, -1),
    "weights file": (("weights",), size, relative, -1),
    "ONNX file": (("onnx", "bytes"), size, relative, -1),
    "latency in onnxruntime": (("onnx", "latency"), duration, relative, -1),
    "measured latency": (("latency", "measured"), duration, relative, -1),
    "predicted latency": (("latency", "predicted"), duration, relative, -1),
}
"""Name -> where it stands in the report, how a value and a change read, and whether more (1) or less (-1) is a gain."""


_ELSEWHERE: Final = {"measured latency": "onnx"}
"""A figure that another part of the report, where it is there, has already."""


def foretold(report: Mapping[str, Any]) -> str:
    """How good the prediction of the latency was, in a sentence; empty where nothing was predicted and measured.

    Shares of the original's latency are compared: the machine may be slower now than when its layers were measured.
    """
    known = report.get("latency", {})
    if "measured" not in known:
        return ""
    predicted, measured = (known[how]["after"] / known[how]["before"] for how in ("predicted", "measured"))
    error = predicted / measured - 1
    return f"latency: predicted {predicted:.1%} of the original, measured {measured:.1%} ({error:+.1%})"


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """The summary of a report; what wasn't measured has no line."""
    shown = {name: row for name, row in _ROWS.items() if _ELSEWHERE.get(name) not in report}
    found = ((name, _pair(report, row[0]), row) for name, row in shown.items())
    return [_figure(name, pair, *row[1:]) for name, pair, row in found if pair is not None]


def _pair(report: Mapping[str, Any], keys: tuple[str, ...]) -> Pair | None:
    if keys[0] == "cost":
        return {side: report["cost"][side][keys[1]] for side in ("before", "after")}
    found: Mapping[str, Any] | None = report
    for key in keys:
        found = found.get(key) if found else None
    return found


def _figure(name: str, pair: Pair, text: _Text, change: Callable[[Pair], str], gain: int) -> Figure:
    gained = gain * (pair["after"] - pair["before"])
    share = pair["after"] / pair["before"] if pair["before"] else 1.0
    return Figure(name, text(pair["before"]), text(pair["after"]), change(pair), share, gained > 0 if gained else None)


def checked(record: Mapping[str, Any]) -> str:
    """How the check of a pass came out; empty where it rewrote nothing."""
    found = record["verification"]
    if not found:
        return ""
    sizes = " and ".join(str(batch) for batch in found["batches"])
    return f"differs by {found['difference']:.1e} at most ({found['dtype']}, batches of {sizes})"


def gathered(notes: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Each reason with all that was left alone for it, the most frequent first."""
    for reason, _ in Counter(note["reason"] for note in notes).most_common():
        yield reason, [note["subject"] for note in notes if note["reason"] == reason]


def left_alone(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Notes on the groups in which nothing may be removed."""
    return [
        {"subject": group["name"], "reason": next(iter(group["pinned"]))}
        for group in report["groups"]
        if sum(group["pinned"].values()) == group["units"]
    ]


def removed(group: Mapping[str, Any]) -> int:
    """How many channels of a group are gone."""
    return int(group["channels"]["before"] - group["channels"]["after"])
