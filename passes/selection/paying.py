"""Widths that pay: the multiple that a selection under a budget keeps to where the plan names none.

A runtime computes channels in blocks and pads the last: a layer of 36 takes as long as one of 48. So a cut group keeps
a multiple of what the runtime of the plan's export prefers.

    runtime prefers 16     group of 96     80, 64, 48, 32 or 16 stay
                           of 24           16: one block
                           of 12           8: too narrow for a block, so half of one, at least 4
                           of 16, 8 or 4   are left alone; narrower groups lose channels one by one

Blocked kernels want at least multiples of 4, depthwise ones too (measured in onnxruntime): nothing that is rounded so
leaves them.

What that costs is held against the same selection without a multiple. A network of a few dozen channels has so few
such widths that it would lose much more than was asked for, and it gains no time. So the multiple is halved, and at
last given up, until it costs at most `multiple / COST` of the score that goes anyway and uses nearly all of the budget.
It also gives way where the budget would be out of reach. Where scores are errors that remain once what is left is refit
(`reconstruction`), what goes anyway is next to nothing, and twice of it as well: there it may also cost as much of
`ERROR`, a share of what would be lost without all units.

A wide network may pay twice as much. There it is the few narrow groups that have no such widths, and what they keep
the wide ones lose: the score says that this is a loss, but training makes up for it (`benchmarks/README.md`), and a
narrower multiple would leave the time that was to be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Analysis, Group
from prunec.compiler.ir.program import Note
from prunec.compiler.targets.base import TARGETS
from prunec.passes.selection.limits import channels_of_a_unit, units_of_a_row
from prunec.passes.selection.per_group import Way

LEAST: Final = 4
"""Blocked kernels want at least multiples of this."""
COST: Final = 64
"""A multiple may cost its share of this of what goes without it: 16 a quarter, 8 an eighth, 4 a sixteenth. Of the whole
score it would be much: where losses say that nearly all of a half-empty network's units are idle, 3% more wreck it."""
ERROR: Final = 0.01
"""A share of all errors, where scores are errors: a multiple of 16 may add a quarter of it."""
WIDE: Final = 8
"""Blocks of the runtime's that the group of a wide network's channel has, in the mean."""
KEPT: Final = 0.5
"""The least that a multiple keeps of the share of the scores that is kept without one: less means that it leaves hardly
a choice."""
USED: Final = 0.95
"""The least share that is used of what the selection without a multiple uses of its budgets."""

Multiples = Mapping[str, float]
"""Group -> what the channels that it keeps are a multiple of."""


def met_by_paying_widths(
    analysis: Analysis, runtime: str, met: Callable[[Multiples | None], Way], *, errors: bool = False
) -> Way:
    """The selection with the largest multiple that pays; `met` makes it for multiples by group, or for none. `errors`
    says that scores are errors which remain behind a refit.

    Raises `PassError` where the budget is out of reach without any.
    """
    plain = met(None)
    if plain.falls_short:  # all goes that may, and the budget isn't met
        return plain
    preferred = TARGETS.named(runtime).multiple
    share = 2 / COST if _mean_width(analysis) >= WIDE * preferred else 1 / COST
    for number in halved(preferred):
        try:
            found = met(multiples(analysis, number, preferred))
        except PassError:  # out of reach with this multiple, not without
            continue
        if _pays(found, plain, number * share, ERROR if errors else 0.0):
            return _told(found, number, runtime, "" if number == preferred else f", {preferred} would cost too much")
    return _told(plain, 1, runtime, f": multiples of {preferred} would cost a network of these widths too much")


def multiples(analysis: Analysis, number: int, preferred: int) -> dict[str, float]:
    """The multiple of every group's channels; smaller for groups that are narrower than that. Where a grouped layer has
    whole blocks in each of its groups it has no fast kernel for less, so there it is what the runtime prefers; where it
    hasn't, it has no fast kernel anyway, and every width pays."""
    found = {name: _multiple(group, number) for name, group in analysis.groups.items()}
    return {**found, **{n: preferred if row >= preferred else LEAST for n, row in units_of_a_row(analysis).items()}}


def _multiple(group: Group, number: int) -> int:
    channels = group.size * channels_of_a_unit(group)
    return next((each for each in halved(number) if each <= channels), 1)


def halved(number: int) -> Iterator[int]:
    """The number, its half and so on, as long as blocked kernels want it."""
    while number >= LEAST:
        yield number
        number //= 2


def _mean_width(analysis: Analysis) -> float:
    """How many channels the group of a channel has, in the mean over all channels that may go."""
    widths = [group.size * channels_of_a_unit(group) for group in analysis.groups.values() if group.free.any()]
    return sum(width * width for width in widths) / max(sum(widths), 1)


def _pays(found: Way, plain: Way, share: float, error: float) -> bool:
    """Whether the multiple costs no more than this share of the score that goes without it, and of an `error` of all
    scores; leaves a choice of what goes, and leaves little of the budgets unused."""
    most = _lost(plain) + share * (_lost(plain) + error * float(plain.details["whole_score"]))
    cheap = _lost(found) <= most and _kept(found) >= KEPT * _kept(plain)
    return cheap and _used(found) >= USED * _used(plain)


def _kept(way: Way) -> float:
    """The share that is kept of the scores of all units that may go."""
    return float(way.details["kept_score"] / (way.details["whole_score"] or 1.0))


def _lost(way: Way) -> float:
    """The score that goes. What is kept doesn't compare: units that may not go under a multiple aren't counted."""
    return float(way.details["whole_score"] - way.details["kept_score"])


def _used(way: Way) -> float:
    """How much is used of the budget that is used up most."""
    return max(float(each["reached"] / each["limit"]) for each in way.details["budget"].values())


def _told(way: Way, number: int, runtime: str, why: str) -> Way:
    reason = f"{number}, of the widths that {runtime} prefers" if number > 1 else "1"
    said: dict[str, Any] = {"multiple_of": {"channels": number, "runtime": runtime, "why": f"{reason}{why}"}}
    return replace(way, notes=(*way.notes, Note("multiple_of", f"{reason}{why}")), details={**way.details, **said})
