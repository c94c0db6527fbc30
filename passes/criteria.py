"""How important is each position of an axis: the criteria that `score` may name.

A criterion takes a program, a member of a group and what makes a generator, and gives one number a position,
[positions], or None where it has nothing to say about that axis (`bn_scale` about a convolution).

    l1        sum of |w| over what goes with the position (Li et al.)
    l2        square root of the sum of w^2
    bn_scale  |gamma| of batch norm (network slimming)
    random    uniform in [0, 1): the control
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import nn

from prunec.compiler.axes import axis_rows
from prunec.compiler.ir import Program
from prunec.compiler.units import FloatArray, Member

Random = Callable[[], np.random.Generator]
"""Makes the member's generator, which takes longer than most criteria do."""

CACHED: Final = 2**18
"""Elements that are looked at together: a large weight's absolute values need more time to store than to add."""

Criterion = Callable[[Program, Member, Random], FloatArray | None]


def _numbers(values: torch.Tensor) -> FloatArray:
    return np.asarray(values.double().numpy(), dtype=np.float64)


def _is_weight(program: Program, member: Member) -> bool:
    """Vectors (biases, batch norm's four) say nothing about a filter's norm."""
    return program.tensors[member.axis.tensor].ndim > 1


def l1(program: Program, member: Member, random: Random) -> FloatArray | None:
    """Sum of absolute weights, `s_j = sum |W[j]|` (Li et al. 2017)."""
    if not _is_weight(program, member):
        return None
    rows = axis_rows(program, member.axis)
    some = max(1, CACHED // max(rows.shape[1], 1))
    return _numbers(torch.cat([part.abs().sum(1) for part in torch.split(rows, some)]))


def l2(program: Program, member: Member, random: Random) -> FloatArray | None:
    """Euclidean norm of the weights."""
    if not _is_weight(program, member):
        return None
    return _numbers(torch.linalg.vector_norm(axis_rows(program, member.axis), dim=1))


def bn_scale(program: Program, member: Member, random: Random) -> FloatArray | None:
    """|gamma| (Liu et al. 2017)."""
    module = program.state.get(member.axis.owner)
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not member.axis.tensor.endswith(".weight"):
        return None
    return _numbers(program.tensors[member.axis.tensor].detach().abs())


def uniform(program: Program, member: Member, random: Random) -> FloatArray | None:
    """A number from 0 to 1 for each position."""
    return random().random(program.size(member.axis))


CRITERIA: Final[Mapping[str, Criterion]] = {"l1": l1, "l2": l2, "bn_scale": bn_scale, "random": uniform}
"""By the name that a plan uses."""
