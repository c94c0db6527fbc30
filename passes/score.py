"""`score`: a number for every unit of every group, kept as the fact `scores`.

- score: {criterion: l1, aggregate: mean, normalize: l2}

criterion   a number for each position of each axis of the group
aggregate   joins the numbers of all positions, over all axes, that belong to one unit
normalize   makes groups comparable
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import Field, field_validator

from prunec.compiler.base import Context, Pass, PassResult
from prunec.compiler.errors import nearest
from prunec.compiler.ir import Note, Program
from prunec.compiler.options import wrong
from prunec.compiler.units import FloatArray, Group, Member, analyse
from prunec.passes.criteria import CRITERIA

AGGREGATES: Final[Mapping[str, Callable[[FloatArray, FloatArray, FloatArray], FloatArray]]] = {
    "mean": lambda total, count, largest: total / np.maximum(count, 1),
    "sum": lambda total, count, largest: total,
    "max": lambda total, count, largest: largest,
}
"""From sum, number and largest of a unit's figures, [units] each."""

NORMALS: Final[Mapping[str, Callable[[FloatArray], float]]] = {
    "none": lambda s: 1.0,
    "mean": lambda s: float(np.mean(s)),
    "max": lambda s: float(np.max(s)),
    "l2": lambda s: float(np.sqrt(np.sum(s**2))),
}
"""What a group's scores, [units], are divided by."""


class Score(Pass):
    """Score every unit of every group by a criterion."""

    name: ClassVar[str] = "score"
    gives: ClassVar[frozenset[str]] = frozenset({"scores"})
    shorthand: ClassVar[str | None] = "criterion"

    criterion: str = Field(default="l1", description="a number for each position: " + ", ".join(CRITERIA))
    aggregate: Literal["mean", "sum", "max"] = Field(
        default="mean", description="joins the numbers of a unit's positions"
    )
    normalize: Literal["none", "mean", "max", "l2"] = Field(
        default="none", description="what a group's scores are divided by"
    )
    axes: Literal["writers", "readers", "all"] = Field(default="writers", description="the axes that are looked at")

    @field_validator("criterion")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in CRITERIA:
            raise wrong("must be one of " + ", ".join(CRITERIA), hint=nearest(value, CRITERIA))
        return value

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the fact `scores`: group -> [units]. A group that the criterion says nothing about gets none."""
        scores: dict[str, FloatArray] = {}
        notes: list[Note] = []
        for group in analyse(program).groups.values():
            if not group.free.any():
                continue
            found = self.score_group(program, group, context)
            if found is None:
                notes.append(Note(group.name, f"criterion {self.criterion} says nothing about it"))
            else:
                scores[group.name] = found
        return PassResult(program.with_facts(scores=scores), tuple(notes))

    def score_group(self, program: Program, group: Group, context: Context) -> FloatArray | None:
        """The scores of one group's units, [units]; None where the criterion has nothing to go by."""
        total, count = np.zeros(group.size), np.zeros(group.size)
        largest = np.full(group.size, -np.inf)
        for member, figures in self._figures(program, group, context):
            np.add.at(total, member.units, figures)
            np.add.at(count, member.units, 1.0)
            np.maximum.at(largest, member.units, figures)
        if not count.all():
            return None
        scores = AGGREGATES[self.aggregate](total, count, largest)
        size = NORMALS[self.normalize](scores)
        return scores / size if size else scores

    def _figures(self, program: Program, group: Group, context: Context) -> Iterable[tuple[Member, FloatArray]]:
        roles = {"writers": ("writer",), "readers": ("reader",), "all": ("writer", "reader")}[self.axes]
        if self.criterion == "bn_scale":
            roles = ("carrier",)
        seen: set[tuple[str, int]] = set()
        for member in group.writers if roles == ("writer",) else group.members:
            if member.role not in roles or member.axis in seen:
                continue
            seen.add(member.axis)
            random = partial(context.rng, "score", group.name, str(member.axis))
            figures = CRITERIA[self.criterion](program, member, random)
            if figures is not None:
                yield member, figures[member.positions]

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """A lock needs no scores: the selection is spelled out."""
        return ()
