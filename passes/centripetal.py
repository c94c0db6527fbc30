"""`centripetal`: train the channels of each cluster to become one, so that `merge` joins them without any loss.

- cluster: {ratio: 37.5%}                                        which are to become one
- centripetal: {epochs: 600, lr: 0.03, strength: 0.003, vectors: 0.1, decay: matrices, to_the_end: true}
- merge                                                          refuses where they haven't become equal

Every step moves the filters of a cluster by the mean of their gradients, and pulls each towards the cluster's mean
(centripetal SGD, Ding et al. 2019; `passes/training/centripetal.py` has the formula). So `lr * strength` is the share
of a difference that goes in a step; momentum 0.9 makes it ten times that. A schedule that brings the rate to nothing
brings the pull to nothing, too: `strength_schedule: {linear: {start: 1, end: 10}}` makes up for it.

chi is how far the clusters are from having collapsed. The training ends with the epoch in which it falls below
`stop_below`, or goes on `to_the_end`. What is left of the differences then, mostly rounding, is taken out. Where that
isn't reached, a warning says so, and `merge` behind it refuses, or takes the clusters' means (`{inexact: mean}`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.plan.options import wrong
from prunec.passes.training.base import TrainingPass
from prunec.passes.training.centripetal import ClusterSlices, Collapse, joined_masks
from prunec.passes.training.masks import masks_of, with_masks
from prunec.passes.training.optimizers import SCHEDULES, PlanSchedule
from prunec.passes.training.updates import Update


class Centripetal(TrainingPass):
    """Train the channels of each cluster to become one."""

    name: ClassVar[str] = "centripetal"
    needs: ClassVar[frozenset[str]] = frozenset({"clusters"})
    shorthand: ClassVar[str | None] = "epochs"

    strength: float = Field(
        default=0.05, gt=0, allow_inf_nan=False, description="of the pull towards the cluster's mean; lr is on top"
    )
    vectors: float = Field(
        default=1.0, ge=0, le=1, description="the share of it that pulls biases and norms: 0.1 in the paper"
    )
    strength_schedule: PlanSchedule = Field(
        default=SCHEDULES["constant"](),
        description="how the strength changes, as `schedule` says of the rate: {linear: {start: 1, end: 10}} grows",
    )
    stop_below: float = Field(
        default=1e-8,
        ge=0,
        allow_inf_nan=False,
        description="the chi below which clusters have collapsed: the training ends, and they are made exactly equal; "
        "0 trains to the end and leaves them as they are",
    )
    to_the_end: bool = Field(
        default=False,
        description="train all epochs, though the clusters have collapsed: for a rate that is yet to fall",
    )
    collapsed: bool | None = Field(default=None, description="a lock's: whether the clusters had collapsed")

    @model_validator(mode="after")
    def _keeps_the_last(self) -> Centripetal:
        for option, said in (("early_stop", self.early_stop is not None), ("keep", self.keep == "best")):
            if said:
                hint = "clusters collapse in the course of the training, whichever epoch had the best metric"
                raise wrong(f"must not name '{option}' for an epoch before the last", hint=hint)
        return self

    def check(self, program: Program) -> None:
        """Raise `PassError` as any training does, and for a pull so strong that it overshoots ever more."""
        super().check(program)
        peak = max(
            self.schedule.factor(share / 100) * self.strength_schedule.factor(share / 100) for share in range(101)
        )
        pull, bound = self.lr * self.strength * peak, self._bound()
        if pull >= bound:
            message = f"lr times strength is {pull:.3g}: the pull overshoots, and filters fly apart"
            raise PassError(message, keys=("strength",), hint=f"the product has to stay below {bound:.3g}")

    def _bound(self) -> float:
        """The `lr * strength` at which differences grow: of SGD with momentum, and of a pull of its own."""
        if self.optimizer.name != "sgd":
            return 2.0
        said = self.optimizer.args.get("momentum", 0.9)
        momentum = float(said) if isinstance(said, int | float) else 0.0
        return 2 * (1 + momentum) / (1 + 2 * momentum if self.optimizer.args.get("nesterov") else 1)

    def expected(self, program: Program) -> Mapping[str, Any]:
        """`expected_clusters`: whether channels will be equal isn't known before."""
        return {**super().expected(program), "expected_clusters": None}

    def updates_for(self, module: nn.Module, program: Program, context: Context) -> Sequence[Update]:
        """The averaged gradients, and the pull."""
        below = self.stop_below if self.collapsed is None else math.inf if self.collapsed else 0.0
        clusters = ClusterSlices.of(program, module)
        factor, whole = self.strength_schedule.factor, self.to_the_end
        return [Collapse(clusters, self.strength, self.vectors, below=below, to_the_end=whole, schedule=factor)]

    def run(self, program: Program, context: Context) -> PassResult:
        """Train. A warning says where the clusters haven't collapsed, a note where zeros are let go."""
        before, joined = masks_of(program), joined_masks(program)
        freed = sum(int((stays & ~before[name]).sum()) for name, stays in joined.items())
        if freed:
            program = with_masks(program, joined)
        result = super().run(program, context)
        details = dict(result.details)
        details["collapsed"] = details["chi"] < self.stop_below if self.collapsed is None else self.collapsed
        warnings = result.warnings
        if not details["collapsed"] and self.stop_below and program.facts["clusters"]:
            warnings = (*warnings, self._told(details, result.history))
        notes = result.notes
        if freed:
            held = sum(int((~stays).sum()) for stays in before.values())
            notes = (
                *notes,
                Note("masks", f"{freed} of {held} zeros are let go: others of their clusters have none there"),
            )
        return PassResult(result.program, notes, details, warnings, result.history)

    def _told(self, details: Mapping[str, Any], history: Sequence[Mapping[str, float | int]]) -> str:
        """The warning that the clusters haven't collapsed, with the group that is farthest from it."""
        apart = {key.removeprefix("chi "): value for key, value in history[-1].items() if key.startswith("chi ")}
        worst = max(apart, key=lambda name: apart[name], default="")
        of_it = f", {apart[worst]:.2g} of it in {worst}" if worst else ""
        return (
            f"centripetal: chi is {details['chi']:.2g} after {details['updates']} updates{of_it}, and not below "
            f"{self.stop_below:g}: the clusters haven't collapsed; a higher strength or more epochs bring them there"
        )

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """As any training; whether the clusters had collapsed isn't decided anew."""
        (made,) = super().resolved(result)
        return (made.model_copy(update={"collapsed": result.details["collapsed"]}),)
