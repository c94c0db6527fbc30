"""Units that training hardly touches: their accumulated gradient stays small, so they are candidates to go.

The gradient norm of a unit over all its slices (of every coupled parameter) is summed over a window of steps. Units
whose sum is under a threshold are candidates; what goes with each is the unit's own business. The sums are given as the
fact `scores`, so that `select: {threshold: 0.01, keep_at_least: 8}` takes the candidates, within its limits.

This is the sound form of "what depends on a parameter with a small gradient becomes zero": read literally, that rule
takes away everything behind the first such parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import IntArray
from prunec.passes.criteria.aggregates import Scores
from prunec.passes.training.unit_slices import UnitSlices
from prunec.passes.training.updates import WATCHES, Update


def gradient_norms(units: UnitSlices) -> Tensor:
    """[units]: the Euclidean norm of the gradients of all slices of each unit; what has no gradient counts as 0."""
    return units.squares(lambda p: torch.zeros_like(p) if p.grad is None else p.grad).sqrt_()


class Candidates(Update):
    """Adds up units' gradient norms; after every `steps` of them the sum is kept, and begun anew."""

    rank: ClassVar[int] = WATCHES

    def __init__(self, units: UnitSlices, threshold: float, steps: int) -> None:
        self.units, self.threshold, self.steps = units, threshold, steps
        self._sum = torch.zeros(units.analysis.size)
        self._count = 0
        self._last: Tensor | None = None

    def planned(self, steps: int) -> None:
        """Raise `PassError` where no window would be full."""
        if steps < self.steps:
            raise PassError(
                f"the gradients of {self.steps} updates are summed, and this training has {steps}",
                keys=("constraints", "candidates", "steps"),
                hint="more epochs, or fewer steps",
            )

    def before_step(self) -> None:
        """Take up the gradients of this step."""
        norms = gradient_norms(self.units)
        self._sum = self._sum.to(norms.device) + norms
        self._count += 1
        if self._count == self.steps:
            self._last, self._sum, self._count = self._sum, torch.zeros_like(self._sum), 0

    @property
    def sums(self) -> Tensor | None:
        """[units]: the accumulated norms of the last whole window; None before the first is full."""
        return self._last

    def candidates(self) -> dict[str, IntArray]:
        """Group -> the units that may go whose accumulated gradient norm was under the threshold, rising."""
        if self._last is None:
            return {}
        groups = self.units.analysis.groups
        small = self.units.by_group(self._last < self.threshold)
        found = {name: np.flatnonzero((few > 0) & groups[name].free) for name, few in small}
        return {name: units for name, units in found.items() if units.size}

    def measures(self) -> Mapping[str, float]:
        """`candidates`: how many there are."""
        return {"candidates": float(sum(units.size for units in self.candidates().values()))}

    def facts(self) -> Mapping[str, Any]:
        """`scores`: the accumulated norms, of groups that may lose units.

        Raises `PassError` where the training ended before a window was full.
        """
        self.planned(self._count if self._last is None else self.steps)
        assert self._last is not None, "a window is full"
        groups = self.units.analysis.groups
        scores = Scores({name: sums for name, sums in self.units.by_group(self._last) if groups[name].free.any()})
        scores.doubt = "accumulated gradients are no loss"
        return {"scores": scores}

    def state_dict(self) -> dict[str, Any]:
        """The sums of this window and the last one."""
        return {
            "sum": self._sum.clone(),
            "count": self._count,
            "last": None if self._last is None else self._last.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on within the window."""
        self._sum, self._count, self._last = state["sum"], int(state["count"]), state["last"]
