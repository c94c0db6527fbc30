"""Ways to say how much goes that look at every group by itself: ratios, widths, thresholds, counts.

    by_ratio        {"layer1.*": 10%, "*": 40%}    of conv1's 32 units, 19 stay (rounded down; limits may keep more);
                                                   in a later round, of the 32 that it has in the traced model
    by_widths       {conv1: 24}                    24 channels stay
    by_threshold    0.005                          units whose score is lower go
    by_counts       {conv1: 28}                    28 units stay, as `selection/curves.py` has chosen

Each gives a level for every queue of the ranking. Budgets, which span groups, are for `selection/budgets.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Analysis, Group
from prunec.compiler.groups.patterns import matching
from prunec.compiler.ir.program import FloatArray, IntArray, Note
from prunec.passes.selection.limits import channels_of_a_unit, pack_size
from prunec.passes.selection.ranking import Ranking


@dataclass(frozen=True)
class Way:
    """A selection: a level for each queue, with notes and figures for the report."""

    ranking: Ranking
    levels: IntArray
    notes: tuple[Note, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    falls_short: PassError | None = None
    """Why a budget isn't met that may be missed."""


def kept_share(size: int, ratio: float) -> int:
    """How many of `size` units stay: `int(size * (1 - ratio))`, as in Li et al. (2017), exact for decimal ratios."""
    return int(size * (1 - ratio) + 1e-9)


def gone_now(size: int, whole: int, ratio: float) -> int:
    """How many of the `size` units that are left go, so that `ratio` of the traced model's `whole` are gone."""
    return max(size - kept_share(whole, ratio), 0)


def by_ratio(ranking: Ranking, ratio: float | Mapping[str, float]) -> Way:
    """Every group loses its share of the traced model's units, less what it has lost before, as far as limits and
    packs allow.

    Raises `PassError` for a pattern that names no group that can be cut.
    """
    groups = ranking.analysis.groups
    notes: tuple[Note, ...] = ()
    if isinstance(ratio, Mapping):
        wanted, notes = _named(ranking, ratio, "ratio")
    else:
        wanted = dict.fromkeys(ranking.groups, ratio)
    size = {name: groups[name].size for name in wanted}
    gone = {name: gone_now(size[name], ranking.whole.get(name, size[name]), s) for name, s in wanted.items()}
    return Way(ranking, ranking.levels(_by_queue(ranking, gone)), notes)


def by_widths(ranking: Ranking, widths: Mapping[str, int]) -> Way:
    """Every named group keeps so many channels. Raises `PassError` where a group can't have that width."""
    analysis = ranking.analysis
    found, notes = _named(ranking, widths, "widths")
    first: dict[str, str] = {}
    for pattern, names in matching(widths, analysis.groups, option="widths").items():
        for name in names:
            first.setdefault(name, pattern)
    gone = {name: _gone(analysis, analysis.groups[name], first[name], int(width)) for name, width in found.items()}
    return Way(ranking, ranking.levels(_by_queue(ranking, gone)), notes)


def by_counts(ranking: Ranking, kept: Mapping[str, int]) -> Way:
    """Every named group keeps so many units, or as few more as limits and packs allow. All of them can be cut."""
    groups = ranking.analysis.groups
    gone = {name: groups[name].size - count for name, count in kept.items()}
    return Way(ranking, ranking.levels(_by_queue(ranking, gone)))


def by_threshold(ranking: Ranking, threshold: float | Mapping[str, float]) -> Way:
    """Units whose score is under a threshold go, as far as limits and packs allow."""
    notes: tuple[Note, ...] = ()
    found: Mapping[str, float] = {}
    if isinstance(threshold, Mapping):
        found, notes = _named(ranking, threshold, "threshold")
    else:
        found = dict.fromkeys(ranking.groups, threshold)
    limits = np.full(ranking.count, -np.inf)
    for name, value in found.items():
        limits[ranking.groups[name]] = max(limits[ranking.groups[name]], value)
    return Way(ranking, ranking.below(limits), notes)


def _named(ranking: Ranking, wanted: Mapping[str, float], option: str) -> tuple[dict[str, float], tuple[Note, ...]]:
    """(group -> what is asked of it, for groups that can be cut; notes on named groups that can't be)

    Raises `PassError` for a pattern that names none that could ever be cut; one that earlier rounds have cut as far as
    it goes is noted. Groups that limits keep whole are left out.
    """
    groups = ranking.analysis.groups
    found: dict[str, float] = {}
    notes: dict[str, Note] = {}
    for pattern, names in matching(wanted, groups, option=option).items():
        stuck = [name for name in names if not groups[name].free.any() or name not in ranking.scored]
        spent = [name for name in stuck if _is_spent(groups[name])]
        if len(stuck) == len(names) > len(spent):
            raise PassError(f"group '{stuck[0]}' can't be cut: {_why_not(groups[stuck[0]])}", keys=(option,))
        for name in stuck:
            notes.setdefault(name, Note(name, f"can't be cut: {_why_not(groups[name])}"))
        for name in names:
            if name in ranking.groups:
                found.setdefault(name, wanted[pattern])
    return found, tuple(notes.values())


def _is_spent(group: Group) -> bool:
    """Whether a group has lost units in earlier rounds, so that nothing more need go."""
    origin = group.table.flow.program.origin
    return any(member.axis in origin for member in group.writers) and not group.free.any()


def _why_not(group: Group) -> str:
    reasons = sorted({reason for reason in group.pinned if reason})
    return "the criterion gives it no scores" if group.free.any() else reasons[0]


def _by_queue(ranking: Ranking, gone: Mapping[str, float]) -> FloatArray:
    """[queues]: how many units are to go; of tied groups, the largest share holds for all."""
    groups = ranking.analysis.groups
    share = np.full(ranking.count, np.nan)
    for name, count in gone.items():
        queue = ranking.groups[name]
        share[queue] = np.fmax(share[queue], count / groups[name].size)
    return np.asarray(share * ranking.sizes)


def _gone(analysis: Analysis, group: Group, pattern: str, width: int) -> int:
    each = channels_of_a_unit(group)
    step = each * pack_size(analysis, group)
    if width > group.size * each or width % step:
        fits = f"a multiple of {step} up to {group.size * each}" if step > 1 else f"at most {group.size}"
        message = f"widths: '{pattern}' asks for {width} channels of '{group.name}', which can have {fits}"
        raise PassError(message, keys=("widths", pattern))
    return group.size - width // each
