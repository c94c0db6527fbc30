"""A criterion of somebody else's, in a file of its own: found through the entry-point group `prunec.criteria`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from prunec.compiler.groups.analysis import Member
from prunec.compiler.groups.axis_rows import axis_rows
from prunec.compiler.ir.program import FloatArray
from prunec.passes.criteria.base import AxisCriterion, Setting, numbers


class Heaviest(AxisCriterion):
    """The largest weight of a position."""

    name: ClassVar[str] = "acme_heaviest"

    power: Annotated[float, Field(gt=0)] = 1.0

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]."""
        return numbers(axis_rows(setting.program, member.axis).abs().amax(1) ** self.power)
