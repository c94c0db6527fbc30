"""Criteria that look at the weights of one axis: norms, batch norm's scale, distances, and the control.

l1          sum of |w| over what goes with the position (Li et al. 2017, of filters: `axes: writers`)
l2          square root of the sum of w^2; `squared`: without the root
bn_scale    |gamma| of batch norm (Liu et al. 2017)
fpgm        distances to all other filters of the layer: what is near the geometric median can be replaced by the
            others (He et al. 2019)
random      uniform in [0, 1): the control
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from prunec.compiler.groups.analysis import Group, Member
from prunec.compiler.groups.axis_rows import axis_rows, axis_sums, zero_rows
from prunec.compiler.ir.program import BoolArray, FloatArray
from prunec.passes.criteria.base import AxisCriterion, Found, Setting, is_weight, numbers


class Norm(AxisCriterion):
    """A norm of the weights that read a unit. Where nothing writes it, since these weights are all zero, it is zero."""

    axes: ClassVar[str] = "readers"

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence from each axis."""
        if setting.axes != "readers":
            yield from super().weigh(setting)
            return
        groups = {group.name: group for group in setting.groups}
        dead = cache(lambda name: self._unwritten(setting, groups[name]))
        for name, found in super().weigh(setting):
            gone = dead(name)[found.units]
            yield name, replace(found, figures=np.where(gone, 0.0, found.figures)) if gone.any() else found

    def _unwritten(self, setting: Setting, group: Group) -> BoolArray:
        """[units]: whether all weights that write it are zero."""
        written = np.full(group.size, group.incoming)
        for member in () if group.incoming else group.writers:
            units = member.units
            if is_weight(setting.program, member):
                units = units[~zero_rows(setting.program, member.axis)[member.positions]]
            written[units] = True
        return ~written


class L1(Norm):
    """The sum of absolute weights, `s_j = sum |W[j]|`."""

    name: ClassVar[str] = "l1"

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]: the sum of |w|; None for a vector."""
        if not is_weight(setting.program, member):
            return None
        both = setting.axes == "all"
        return numbers(axis_sums(setting.program, member.axis, torch.abs, setting.memo, both=both))


class L2(Norm):
    """The Euclidean norm of the weights, or its square."""

    name: ClassVar[str] = "l2"

    squared: bool = Field(default=False, description="the sum of squares, without the root")

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]: the Euclidean norm, or its square; None for a vector."""
        if not is_weight(setting.program, member):
            return None
        both = setting.axes == "all"
        squares = numbers(axis_sums(setting.program, member.axis, torch.square, setting.memo, both=both))
        return squares if self.squared else np.sqrt(squares)


class BatchNormScale(AxisCriterion):
    """The magnitude of batch norm's scale, |gamma|.

    One threshold for all layers (`normalize: none`), as in the paper, is for networks that were trained with a penalty
    on all scales alike. Without one, a layer's scales are as large as training happened to leave them.
    """

    name: ClassVar[str] = "bn_scale"
    roles: ClassVar[tuple[str, ...] | None] = ("carrier",)

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[channels]: |gamma|; None for any other axis."""
        module = setting.program.state.get(member.axis.owner)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not member.axis.tensor.endswith(".weight"):
            return None
        return numbers(setting.program.tensors[member.axis.tensor].detach().abs())


class GeometricMedian(AxisCriterion):
    """The summed Euclidean distance to the layer's other filters: the least is nearest to their geometric median."""

    name: ClassVar[str] = "fpgm"
    axes: ClassVar[str] = "all"

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]: the summed distance; None for a vector."""
        if not is_weight(setting.program, member):
            return None
        rows = axis_rows(setting.program, member.axis).double()
        return numbers(torch.cdist(rows, rows).sum(1))


class Random(AxisCriterion):
    """A number from 0 to 1 for each position, from the plan's seed: the control."""

    name: ClassVar[str] = "random"
    normalize: ClassVar[str] = "none"

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]: random numbers, of its own for each axis of a group."""
        generator = setting.context.rng("score", str(member.axis))
        return np.asarray(generator.random(setting.program.size(member.axis)))
