"""Penalties that send whole units to zero, as subgradients: added to the gradients between `backward()` and `step()`.

    group_norm       strength * sum over units of the norm of all that belongs to a unit: the group lasso (Yuan and Lin
                     2006), its groups being the slices of all coupled parameters (Fang et al. 2023)
    coupled_scales   the same over batch norm's scales alone: layers that a residual sum couples go to zero together
    growing          an L2 penalty on the units that are to go, whose strength rises while the others learn to do
                     without them (Wang et al. 2021)

    units = UnitSlices.of(trace(model, inputs), model)
    loss.backward()
    add_group_norm(units, 1e-3)
    optimizer.step()

What has to stay (pinned units) isn't penalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunec.compiler.ir.program import Axis, BoolArray, Program
from prunec.passes.training.unit_slices import UnitSlices
from prunec.passes.training.updates import Update


def unit_norms(units: UnitSlices) -> Tensor:
    """[units]: the Euclidean norm of all slices of each unit."""
    return units.squares().sqrt_()


def group_norm_factors(units: UnitSlices, strength: float) -> Tensor:
    """[units]: what each element of a unit is multiplied by in the subgradient of `strength * norm`; 0 at a norm of 0,
    and for units that can't go."""
    norms = unit_norms(units)
    free = units.mask(units.analysis.free)
    return torch.where(norms > 0, strength * free / norms, 0.0)


def add_group_norm(units: UnitSlices, strength: float) -> None:
    """Add the subgradient of `strength * sum of the units' norms` to the gradients."""
    units.add_decay(group_norm_factors(units, strength))


def batch_norm_slices(program: Program, module: nn.Module) -> UnitSlices:
    """The slices of units in batch norm's scales alone."""

    def is_scale(axis: Axis) -> bool:
        norm = program.state.get(axis.owner)
        return isinstance(norm, nn.modules.batchnorm._BatchNorm) and axis.tensor == f"{axis.owner}.weight"

    return UnitSlices.of(program, module, wanted=is_scale)


class GroupNorm(Update):
    """Adds the subgradient of the units' norms before every step; over batch norm's scales alone, of coupled scales."""

    small = 0.01
    """Units whose norm is under this share of their group's largest count as small."""

    def __init__(self, units: UnitSlices, strength: float) -> None:
        self.units, self.strength = units, strength

    def before_step(self) -> None:
        """Add it to the gradients."""
        add_group_norm(self.units, self.strength)

    def measures(self) -> Mapping[str, float]:
        """`small_units`: the share of the units that may go whose norm is next to nothing."""
        analysis = self.units.analysis
        counted, small = analysis.free & self.units.present, 0
        for name, norms in self.units.by_group(unit_norms(self.units)):
            mine = counted[analysis.groups[name].where]
            small += int((norms <= self.small * norms.max(initial=0.0))[mine].sum())
        return {"small_units": small / max(int(counted.sum()), 1)}


class Growing(Update):
    """An L2 penalty on chosen units alone, `strength / 2 * w^2`, that grows by `growth` every `every` steps up to
    `ceiling`."""

    def __init__(
        self, units: UnitSlices, chosen: BoolArray, growth: float = 1e-4, every: int = 10, ceiling: float = 1.0
    ) -> None:
        self.units, self.chosen = units, chosen
        self.growth, self.every, self.ceiling = growth, every, ceiling
        self.steps = 0
        self._start = self._size()

    @property
    def strength(self) -> float:
        """The penalty of the next step."""
        return min(self.growth * (1 + self.steps // self.every), self.ceiling)

    def before_step(self) -> None:
        """Add it to the gradients, and count the step."""
        self.units.add_decay(self.strength * self.units.mask(self.chosen))
        self.steps += 1

    def _size(self) -> float:
        return float((self.units.squares() * self.units.mask(self.chosen)).sum().sqrt())

    def measures(self) -> Mapping[str, float]:
        """`strength`, and `left`: the norm of the chosen units, as a share of what it was at first."""
        return {"strength": self.strength, "left": self._size() / self._start if self._start else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """The steps so far, and the norm at first."""
        return {"steps": self.steps, "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.steps, self._start = int(state["steps"]), float(state["start"])
