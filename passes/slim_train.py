"""`slim_train`: train with a penalty that sends whole units towards zero, so that taking them out costs little.

- slim_train: {epochs: 160, lr: 0.1, strength: 0.0001}         network slimming (Liu et al. 2017)
- score: {criterion: bn_scale, normalize: none}
- select: {ratio: 70%, scope: global}
- shrink
- finetune: 160

- select: 50%                                                  units chosen first fade out (Wang et al. 2021)
- slim_train: {method: growing, strength: 0.0001, epochs: 20}
- shrink

bn_scale         `strength * sum |gamma|` over all batch norm scales, as in the paper. Layers that a residual sum
                 couples lose channels only where all of them are small, which nothing here brings about
coupled_scales   `strength * sum over units of the norm of its scales`: scales of coupled layers fade together
group_norm       `strength * sum over units of the norm of all that belongs to it`: rows, columns, biases and norms of
                 all coupled layers; needs no batch norm
growing          `k * strength / 2 * w^2` on the units of an earlier selection alone, where k counts up every so many
                 updates: the rest learns to do without them

All are added to the gradients as subgradients, behind clipping. Several passes of slimming are rounds of these passes,
with `take_at_most: 50%` in `select` as the guard: no layer loses more than half of its units at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
import torch
from pydantic import Field, StrictInt, model_validator
from torch import nn

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import BoolArray, Program
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.options import wrong
from prunec.passes.training.base import TrainingPass
from prunec.passes.training.penalties import GroupNorm, Growing, batch_norm_slices
from prunec.passes.training.unit_slices import UnitSlices
from prunec.passes.training.updates import L1, Update, batch_norm_scales

_OF_SCALES: Final = ("bn_scale", "coupled_scales")


class SlimTrain(TrainingPass):
    """Train with a penalty that sends whole units towards zero."""

    name: ClassVar[str] = "slim_train"
    shorthand: ClassVar[str | None] = "epochs"

    method: Literal["bn_scale", "coupled_scales", "group_norm", "growing"] = Field(
        default="bn_scale", description="what is penalised: batch norm scales, units' norms, or the chosen units"
    )
    strength: float = Field(
        default=1e-4, ge=0, allow_inf_nan=False, description="of the penalty; `growing`: what it grows by"
    )
    init_scales: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="what batch norm scales are set to before the first round (with `restart`, before each): 0.5 in "
        "the paper, which trains from random weights; a trained network isn't itself any more",
    )
    every: Annotated[StrictInt, Field(ge=1)] = Field(default=10, description="`growing`: updates until it grows again")
    ceiling: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="`growing`: how far it grows")

    @model_validator(mode="after")
    def _fits_the_method(self) -> SlimTrain:
        if self.init_scales is not None and self.method not in _OF_SCALES:
            raise wrong(f"must not name 'init_scales' for the method {self.method}")
        for option in ("every", "ceiling"):
            if option in self.model_fields_set and self.method != "growing":
                raise wrong(f"must not name '{option}' for a method other than growing")
        return self

    def required(self) -> frozenset[str]:
        """A selection, where the penalty is on what is to go."""
        return frozenset({"selection"}) if self.method == "growing" else frozenset()

    def check(self, program: Program) -> None:
        """Raise `PassError` as any training does, and where there are no scales to penalise."""
        super().check(program)
        if self.method in _OF_SCALES and not batch_norm_scales(program.module):
            message = f"the method {self.method} is of batch norm scales, and this model has none"
            raise PassError(message, keys=("method",), hint="method: group_norm needs no batch norm")

    def updates_for(self, module: nn.Module, program: Program, context: Context) -> Sequence[Update]:
        """The penalty; the scales begin where `init_scales` says."""
        scales = batch_norm_scales(module)
        if self.init_scales is not None and (self.rounds is None or self.rounds[0] == 0):
            with torch.no_grad():
                for scale in scales:
                    scale.fill_(self.init_scales)
        if self.method == "bn_scale":
            return [L1(scales, self.strength)]
        if self.method == "coupled_scales":
            return [GroupNorm(batch_norm_slices(program, module), self.strength)]
        units = UnitSlices.of(program, module)
        if self.method == "group_norm":
            return [GroupNorm(units, self.strength)]
        return [Growing(units, _chosen(program), self.strength, self.every, self.ceiling)]


def _chosen(program: Program) -> BoolArray:
    """[units]: those of the selection."""
    analysis = analyse(program)
    chosen = np.zeros(analysis.size, dtype=bool)
    for name, units in program.facts["selection"].items():
        chosen[analysis.groups[name].where][units] = True
    return chosen
