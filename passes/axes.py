"""`axes`: how blocks of channels are divided into units. Nothing of the model changes; put it before `score`.

    - axes: heads                                    attention loses whole heads
    - axes: head_width                               attention loses the same positions of every head
    - axes: {grouped: equal}                         grouped layers: equally many channels, chosen freely in each group
    - axes: {grouped: {"layer1.*": whole, "*": same}}
    - axes: {incoming: true}                         a channel of a shared value may go for one of its readers alone
    - axes: {incoming: ["*.bn1", norm]}              so for these readers

attention    heads        a head goes with its part of the query, key and value projections and of what reads them. What
                          all heads share stays: a table of rotary positions, a norm, a layer that runs over each head
             head_width   query and key lose the same positions of every head; the values and their reader lose others.
                          With rotary positions, these are pairs, which leave the table, too. A scale that was taken
                          from the width stays what it was
grouped      same         the same positions of every group go
             equal        every group loses as many, each its own: units leave in packs, the least important of each
             free         what passes a channel shuffle loses what it likes; grouped layers are divided as by `equal`
             whole        a group of inputs goes with its group of outputs, and there are fewer groups
incoming     own          a reader of a value that others read, too, selects what it reads: a channel may go for it
                          alone. An `index_select` (or a slice) is put before the norm and activation that lead to its
                          weights. Of the value itself, a channel goes where no reader keeps it
             shared       a channel goes for all of its readers, or for none

The units of such a reader are a group of their own, called after its norm or, without one, after its layer:
`layer1.0.bn1.incoming`. So `score: bn_scale` gives them the scale of the norm behind the selection: in a network whose
norms stand before the convolutions, that is what network slimming trains. The value's own units can't be chosen then.
A list stands for `own` at what it names, `true` for `own` everywhere, except for readers of a value that something else
reads whole, and that could lose channels without this.

The first pattern that fits counts. Patterns name grouped convolutions and group norms, and views that split channels
into rows by the layers that write them; for attention, the projections; for incoming channels, any layer from the
selection on, up to the weights. A layer that none names is divided as without this pass: whole heads, the same
positions of groups, and of a view what leaves more units.

With `equal` and `free` a channel shuffle, whether it is written with views or called by its name, becomes a gather
(`index_select` with a constant index) wherever what is left of its rows isn't the same of each, for then no view can
give the order that it must. A view that does anything else loses the same positions of every row.

What is asked for and can't be had is a warning; where the pattern says which layers are meant (any but `*`), and none
of them can be divided so or may lose anything, an error.

The granularity stays with the program, so that later rounds of `score`, `select` and `shrink` use it. Heads and head
widths can't be units at once, since a row and a column of a grid share an element; cut them in two rounds:

    - axes: heads
    - score
    - select: 25%
    - shrink
    - axes: head_width
    - score
    - select: 50%
    - shrink
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.granularity import CHOICES, Block, Granularity, Patterns
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.plan.options import wrong

Attention = Literal["heads", "head_width"]
Grouped = Literal["same", "equal", "free", "whole"]
Incoming = Literal["own", "shared"]


class Axes(Pass):
    """Say how heads, head widths and groups of channels are divided into units, and which readers select what they
    read."""

    name: ClassVar[str] = "axes"
    shorthand: ClassVar[str | None] = "attention"

    attention: Attention | dict[str, Attention] | None = Field(
        default=None, description="what attention loses: everywhere, or by pattern", examples=[{"blocks.*": "heads"}]
    )
    grouped: Grouped | dict[str, Grouped] | None = Field(
        default=None,
        description="what grouped layers and split channels lose: everywhere, or by pattern",
        examples=[{"layer1.*": "whole"}],
    )

    incoming: bool | list[str] | dict[str, Incoming] | None = Field(
        default=None,
        description="readers that select what they read of a shared value: true for all, or patterns",
        examples=[True, ["*.bn1"]],
    )

    @field_validator("attention", mode="before")
    @classmethod
    def _one_kind(cls, value: object) -> object:
        """Refuse `all`, with a hint: heads and head widths are cut one after the other."""
        if value == "all":
            hint = (
                "cut them one after the other: axes: heads, score, select, shrink, then the same with axes: head_width"
            )
            raise wrong(
                "must be heads or head_width, for a row and a column of one grid can't both be units", hint=hint
            )
        return value

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program with this granularity, by which its units are numbered anew.

        Raises PassError after `score` or `select`.
        """
        if program.facts:
            raise PassError(
                f"{' and '.join(sorted(program.facts))} count units as they were divided before",
                hint="put 'axes' before 'score'",
            )
        divided = self.foreseen(program)
        self._check(divided)
        blocks = analyse(divided).flow.divided.values()
        choices = {block.node: block.choice for block in blocks if block.choice}
        told = tuple(f"axes: {note}" for note in self._notes(divided))
        return PassResult(divided, details={"divided": choices}, warnings=told)

    def remarks(self, program: Program) -> tuple[Note, ...]:
        """Notes on options about what the model doesn't have, and on what is divided otherwise than was asked."""
        return self._notes(self.foreseen(program))

    def _notes(self, divided: Program) -> tuple[Note, ...]:
        """What the plan asks for and can't have: nothing to divide, blocks that are divided in another way, and blocks
        of which nothing may go."""
        analysis = analyse(divided)
        blocks = analysis.flow.divided.values()
        asked = [kind for kind in CHOICES if getattr(self, kind)]
        found: dict[str, list[str]] = {}
        idle = [kind for kind in asked if all(block.kind != kind for block in blocks)]
        if self.incoming is True and not analysis.flow.incoming:
            idle.append("incoming")
        for block in blocks:
            if block.kind in asked and block.kind != "incoming" and (reason := _unmet(analysis, block)):
                found.setdefault(reason, []).append(block.node)
        return (
            *(Note(kind, "the model has nothing to divide that way") for kind in idle),
            *(Note(_few(nodes), reason) for reason, nodes in found.items()),
        )

    def foreseen(self, program: Program) -> Program:
        """The program with this granularity; what no option names keeps the one that it has."""
        known = {kind: program.granularity.of(kind) for kind in CHOICES}
        said = {kind: _patterns(given) for kind in CHOICES if (given := self._given(kind)) is not None}
        return program.derive(granularity=Granularity(**{**known, **said}))

    def _given(self, kind: str) -> str | Mapping[str, str] | None:
        """What the plan says of a kind: one choice, or choices by pattern."""
        if kind != "incoming":
            given: str | dict[str, str] | None = getattr(self, kind)
            return given
        if isinstance(self.incoming, bool):
            return "own" if self.incoming else "shared"
        return dict.fromkeys(self.incoming, "own") if isinstance(self.incoming, list) else self.incoming

    def check(self, program: Program) -> None:
        """Raise PassError for a pattern that names no block, or none that can be divided so."""
        self._check(self.foreseen(program))

    def _keys(self, kind: str, pattern: str) -> tuple[str | int, ...]:
        """Where a pattern stands in the plan."""
        given = getattr(self, kind)
        return kind, given.index(pattern) if isinstance(given, list) else pattern

    def _check(self, divided: Program) -> None:
        analysis = analyse(divided)
        for kind in CHOICES:
            said = self._given(kind)
            given = said if isinstance(said, Mapping) else {}
            mine = [block for block in analysis.flow.divided.values() if block.kind == kind]
            for pattern, choice in given.items():
                if pattern == "*":
                    continue  # a wish in general: see `_notes`
                named = [block for block in mine if block.answers(pattern)]
                if not named:
                    raise _unknown(kind, pattern, mine, self._keys(kind, pattern))
                decided = [block for block in named if _first(given, block) == pattern]
                reasons = [_unmet(analysis, block) for block in decided]
                if decided and all(reasons):
                    raise _impossible(kind, pattern, choice, reasons[0], decided, self._keys(kind, pattern))


def _first(given: Mapping[str, str], block: Block) -> str:
    """The pattern that decides about a block: the first that fits."""
    return next((pattern for pattern in given if block.answers(pattern)), "")


def _patterns(given: str | Mapping[str, str]) -> Patterns:
    return tuple(given.items()) if isinstance(given, Mapping) else (("*", given),)


def _unmet(analysis: Analysis, block: Block) -> str:
    """Why a block isn't divided as the plan asks, or why nothing of it may go; '' where it is as it was asked for."""
    asked = analysis.program.granularity.choice(block.kind, block.names)
    if not asked:
        return ""
    if asked != block.choice:
        return f"{block.choice} instead of {asked}, since {_WHY.get((block.kind, block.choice), _TIED)}"
    reason = _pinned(analysis, block)
    return f"no {_WHAT.get(asked, 'channel')} may go: {reason}" if reason else ""


def _pinned(analysis: Analysis, block: Block) -> str:
    """Why no unit of a block may go, most often; '' where one may."""
    labels = [labels.ravel() for labels in analysis.flow.grids[block.node]]
    units = set(np.concatenate([analysis.units(part) for part in labels]).tolist() if labels else ()) - {NO_UNIT}
    pinned = [reason for group in analysis.groups.values() for reason in group.pinned]
    reasons = Counter(pinned[unit] for unit in sorted(units))
    return "" if not reasons or "" in reasons else reasons.most_common(1)[0][0]


_TIED = "its heads meet positions that are fixed"
_WHY = {
    ("attention", "heads"): "the widths of a head go together before",
    ("grouped", "same"): "what it gives must keep its order",
    ("grouped", "equal"): "a layer takes groups of one width",
    ("incoming", "shared"): "nobody else reads what it reads",
}
_WHAT = {"heads": "head", "head_width": "width of the heads", "whole": "group"}
_KINDS = {
    "attention": "attention",
    "grouped": "grouped layer or split of channels",
    "incoming": "reader that could select what it reads",
}


def _few(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"{', '.join(nodes[:3])}{more}"


def _impossible(
    kind: str, pattern: str, choice: str, reason: str, blocks: Sequence[Block], keys: tuple[str | int, ...]
) -> PassError:
    place = _few([block.node for block in blocks])
    other = {block.choice for block in blocks} - {choice}
    instead = other and kind != "incoming"
    hint = f"{' or '.join(sorted(other))} is possible there" if instead else "leave the pattern out"
    return PassError(f"{kind}: '{pattern}' can't be {choice} at {place}: {reason}", keys=keys, hint=hint)


def _unknown(kind: str, pattern: str, blocks: list[Block], keys: tuple[str | int, ...]) -> PassError:
    names = sorted(set(_names(blocks)))
    few = f"there are {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else None
    return PassError(f"{kind}: no {_KINDS[kind]} is called '{pattern}'", keys=keys, hint=nearest(pattern, names) or few)


def _names(blocks: list[Block]) -> Iterator[str]:
    return (name for block in blocks for name in block.names)
