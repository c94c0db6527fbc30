"""`axes`: how blocks of channels are divided into units. Nothing of the model changes; put it before `score`.

    - axes: heads                                    attention loses whole heads
    - axes: head_width                               attention loses the same positions of every head
    - axes: {grouped: equal}                         grouped layers: equally many channels, chosen freely in each group
    - axes: {grouped: {"layer1.*": whole, "*": same}}

attention    heads        a head goes with its part of the query, key and value projections and of what reads them
             head_width   query and key lose the same positions of every head; the values and their reader lose others.
                          A scale that was taken from the width stays what it was
grouped      same         the same positions of every group go
             equal        every group loses as many, each its own: units leave in packs, the least important of each
             free         what passes a channel shuffle loses what it likes; grouped layers are divided as by `equal`
             whole        a group of inputs goes with its group of outputs, and there are fewer groups

The first pattern that fits counts. Patterns name grouped convolutions and group norms, and views that split channels
into rows by the layers that write them; for attention, the projections. A layer that none names is divided as without
this pass: whole heads, the same positions of groups, and of a view what leaves more units.

With `equal` and `free` a channel shuffle, whether it is written with views or called by its name, becomes a gather
(`index_select` with a constant index) wherever what is left of its rows isn't the same of each, for then no view can
give the order that it must. A view that does anything else loses the same positions of every row.

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

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.granularity import CHOICES, Block, Granularity, Patterns
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.plan.options import wrong

Attention = Literal["heads", "head_width"]
Grouped = Literal["same", "equal", "free", "whole"]


class Axes(Pass):
    """Say how heads, head widths and channel groups are divided into units."""

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
        return PassResult(divided, self._notes(divided), {"divided": {b.node: b.choice for b in blocks if b.choice}})

    def remarks(self, program: Program) -> tuple[Note, ...]:
        """Notes on options about what the model doesn't have, and on what is divided otherwise than was asked."""
        return self._notes(self.foreseen(program))

    def _notes(self, divided: Program) -> tuple[Note, ...]:
        blocks = analyse(divided).flow.divided.values()
        idle = [kind for kind in CHOICES if getattr(self, kind) and all(block.kind != kind for block in blocks)]
        overruled = [_note(block, asked) for block in blocks if (asked := _overruled(divided, block))]
        return (*(Note(kind, "the model has nothing to divide that way") for kind in idle), *overruled)

    def foreseen(self, program: Program) -> Program:
        """The program with this granularity; what no option names keeps the one that it has."""
        known = {kind: program.granularity.of(kind) for kind in CHOICES}
        said = {kind: _patterns(given) for kind in CHOICES if (given := getattr(self, kind)) is not None}
        return program.derive(granularity=Granularity(**{**known, **said}))

    def check(self, program: Program) -> None:
        """Raise PassError for a pattern that names no block."""
        self._check(self.foreseen(program))

    def _check(self, divided: Program) -> None:
        blocks = list(analyse(divided).flow.divided.values())
        for kind in CHOICES:
            given = getattr(self, kind)
            mine = [block for block in blocks if block.kind == kind]
            for pattern in given if isinstance(given, Mapping) else ():
                if not any(block.answers(pattern) for block in mine):
                    raise _unknown(kind, pattern, mine)


def _patterns(given: str | Mapping[str, str]) -> Patterns:
    return tuple(given.items()) if isinstance(given, Mapping) else (("*", given),)


def _overruled(divided: Program, block: Block) -> str:
    """The granularity that the plan asked for, where the block is divided in another way; else ''."""
    asked = divided.granularity.choice(block.kind, block.names)
    return asked if asked != block.choice else ""


def _note(block: Block, asked: str) -> Note:
    why = _WHY.get((block.kind, block.choice), "its heads meet positions that are fixed")
    return Note(block.node, f"{block.choice} instead of {asked}, since {why}")


_WHY = {
    ("grouped", "same"): "what it gives must keep its order",
    ("grouped", "equal"): "a layer takes groups of one width",
}


def _unknown(kind: str, pattern: str, blocks: list[Block]) -> PassError:
    names = sorted(set(_names(blocks)))
    what = "attention" if kind == "attention" else "grouped layer or split of channels"
    few = f"there are {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else None
    return PassError(
        f"{kind}: no {what} is called '{pattern}'", keys=(kind, pattern), hint=nearest(pattern, names) or few
    )


def _names(blocks: list[Block]) -> Iterator[str]:
    return (name for block in blocks for name in block.names)
