"""Criteria that look at the weights of one axis: norms, batch norm's scale, distances, and the control.

l1          sum of |w| over what goes with the position (Li et al. 2017)
l2          square root of the sum of w^2
bn_scale    |gamma| of batch norm (Liu et al. 2017)
fpgm        distances to all other filters of the layer: what is near the geometric median can be replaced by the
            others (He et al. 2019)
random      uniform in [0, 1): the control
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn

from prunec.compiler.axes import axis_rows
from prunec.compiler.units import FloatArray, Member
from prunec.passes.criteria.base import AxisCriterion, Setting, is_weight, numbers

CACHED: Final = 2**18
"""Elements that are looked at together: a large weight's absolute values need more time to store than to add."""


def _absolute_sums(rows: Tensor) -> Tensor:
    """`sum |row|` of each row; the absolute values of some rows at a time, always in the same place."""
    some = max(1, CACHED // max(rows.shape[1], 1))
    scratch = rows.new_empty(min(some, len(rows)), rows.shape[1])
    return torch.cat([torch.abs(part, out=scratch[: len(part)]).sum(1) for part in torch.split(rows, some)])


class L1(AxisCriterion):
    """The sum of absolute weights, `s_j = sum |W[j]|`."""

    name: ClassVar[str] = "l1"
    axes: ClassVar[str] = "all"

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]; nothing about vectors."""
        if not is_weight(setting.program, member):
            return None
        rows = axis_rows(setting.program, member.axis)
        return numbers(_absolute_sums(rows))


class L2(AxisCriterion):
    """The Euclidean norm of the weights."""

    name: ClassVar[str] = "l2"
    axes: ClassVar[str] = "all"

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]; nothing about vectors."""
        if not is_weight(setting.program, member):
            return None
        return numbers(torch.linalg.vector_norm(axis_rows(setting.program, member.axis), dim=1))


class BatchNormScale(AxisCriterion):
    """The magnitude of batch norm's scale, |gamma|.

    One threshold for all layers (`normalize: none`), as in the paper, is for networks that were trained with a penalty
    on all scales alike. Without one, a layer's scales are as large as training happened to leave them.
    """

    name: ClassVar[str] = "bn_scale"
    roles: ClassVar[tuple[str, ...] | None] = ("carrier",)

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[channels]; nothing about any other axis."""
        module = setting.program.state.get(member.axis.owner)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not member.axis.tensor.endswith(".weight"):
            return None
        return numbers(setting.program.tensors[member.axis.tensor].detach().abs())


class GeometricMedian(AxisCriterion):
    """The summed Euclidean distance to the layer's other filters: the least is nearest to their geometric median."""

    name: ClassVar[str] = "fpgm"
    axes: ClassVar[str] = "all"

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]; nothing about vectors."""
        if not is_weight(setting.program, member):
            return None
        rows = axis_rows(setting.program, member.axis).double()
        return numbers(torch.cdist(rows, rows).sum(1))


class Random(AxisCriterion):
    """A number from 0 to 1 for each position, from the plan's seed: the control."""

    name: ClassVar[str] = "random"
    normalize: ClassVar[str] = "none"

    def figures(self, setting: Setting, member: Member) -> FloatArray | None:
        """[positions]; axes that are coupled draw numbers of their own."""
        generator = setting.context.rng("score", str(member.axis))
        return np.asarray(generator.random(setting.program.size(member.axis)))
