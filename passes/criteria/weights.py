"""Criteria of weights that look at data, and what they share: the gradients of weights, and their sums by position.

    taylor_weight    | sum over the unit's weights and bias of w * dC/dw |     (Molchanov et al. 2019)

Without batch norm that equals the gradient of a gate on the unit. C is the mean loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from prunec.compiler.data import Batch
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Group, Member
from prunec.compiler.groups.axis_rows import axis_rows
from prunec.compiler.ir.program import Axis, Program
from prunec.passes.calibration.calibration import bytes_of_a_sample
from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Found, LossCriterion, Setting, is_weight, numbers
from prunec.passes.criteria.watching import evaluated


@dataclass(frozen=True)
class Weighed:
    """An axis of weights that is asked about, and the tensors whose rows belong to it: weight, and a writer's bias."""

    group: Group
    member: Member
    tensors: tuple[str, ...]

    def rows(self, program: Program, values: Mapping[str, Tensor]) -> Tensor:
        """Figures of elements (`values`, by tensor) as [positions, elements]; the bias is the last column."""
        axes = [Axis(name, self._dim(index)) for index, name in enumerate(self.tensors)]
        return torch.cat([axis_rows(program, axis, values[axis.tensor]) for axis in axes], 1)

    def _dim(self, index: int) -> int:
        return 0 if index else self.member.axis.dim

    def evidence(self, figures: Tensor) -> Found:
        """Figures of positions, [positions], as evidence about the group."""
        found = Evidence(str(self.member.axis), self.member.units, numbers(figures)[self.member.positions])
        return self.group.name, found


@dataclass(frozen=True)
class Weights:
    """The weights that are asked about, as the only parameters of the program that take a gradient."""

    setting: Setting
    asked: tuple[Weighed, ...]
    more: tuple[str, ...] = ()
    """Tensors that are looked at element by element."""

    @staticmethod
    def of(setting: Setting) -> Weights:
        """Every axis of weights that the plan asks about."""
        members = ((group, member) for group in setting.groups for member in setting.members(group))
        asked = (
            Weighed(group, member, _tensors(setting, member))
            for group, member in members
            if is_weight(setting.program, member)
        )
        return Weights(setting, tuple(asked))

    @cached_property
    def leaves(self) -> Mapping[str, nn.Parameter]:
        """Tensor's name -> its parameter; tied names have the same one."""
        tensors = self.setting.program.tensors
        made: dict[int, nn.Parameter] = {}
        found: dict[str, nn.Parameter] = {}
        for name in dict.fromkeys([*(name for weighed in self.asked for name in weighed.tensors), *self.more]):
            found[name] = made.setdefault(id(tensors[name]), nn.Parameter(tensors[name].detach()))
        return found

    @cached_property
    def module(self) -> fx.GraphModule:
        """The program with these parameters."""
        return evaluated(self.setting.program, self.leaves).graph_module

    def pieces(self, at_once: int | None = None) -> Iterator[Batch]:
        """The data, a piece at a time."""
        program, setting = self.setting.program, self.setting
        return setting.calibration.pieces(program, setting.context, bytes_of_a_sample(program), at_once)

    def loss(self, piece: Batch) -> Tensor:
        """The summed loss of a piece."""
        return self.setting.calibration.loss.total(piece.through(self.module), piece)

    def gradients(self, scalar: Tensor, keep: bool = False) -> dict[str, Tensor]:
        """Gradients of `scalar`, by tensor; with `keep`, differentiable ones. Raises `PassError` for lack of any."""
        names = list(self.leaves)
        found = gradients_of((scalar,), [self.leaves[name] for name in names], keep=keep)
        return dict(zip(names, found, strict=True))


def gradients_of(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], along: Sequence[Tensor] | None = None, *, keep: bool = False
) -> tuple[Tensor, ...]:
    """`sum_i along_i * d outputs_i / d leaf` for every leaf, zero where none depends on it.

    Raises `PassError` where an operation can't be differentiated.
    """
    live = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not live:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    try:
        return torch.autograd.grad(
            [outputs[index] for index in live],
            leaves,
            None if along is None else [along[index] for index in live],
            create_graph=keep,
            retain_graph=keep or along is not None,
            allow_unused=True,
            materialize_grads=True,
        )
    except RuntimeError as error:
        raise PassError(f"the loss can't be differentiated: {error}", keys=("criterion",)) from error


def _tensors(setting: Setting, member: Member) -> tuple[str, ...]:
    """The weight, and the bias that lies along the axis that the weight writes."""
    bias = f"{member.axis.owner}.bias" if member.axis.owner else ""
    known = setting.analysis.flow.bindings
    here, there = known.get(Axis(bias, 0)), known.get(member.axis)
    if member.role != "writer" or here is None or there is None or here.labels is not there.labels:
        return (member.axis.tensor,)
    return member.axis.tensor, bias


def times(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The product of two sets of tensors, name by name, without autograd."""
    return {name: a[name].detach() * b[name].detach() for name in a}


class TaylorWeight(LossCriterion):
    """The loss's first-order change when the unit's weights become zero.

    A batch norm behind the writer keeps its shift then, which a removed unit doesn't: `axes: readers` takes the weights
    whose zeros are the removal, and finds what `gate` does.
    """

    name: ClassVar[str] = "taylor_weight"
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    form: Literal["sum", "absolute", "squared"] = Field(
        default="sum", description="|sum w g|, sum |w g|, or sum (w g)^2 over the unit's weights"
    )
    each_sample: bool = Field(
        default=False, description="take the form of each sample's gradients and then the mean: one run a sample"
    )

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence of each writer, with its bias."""
        weights, count = Weights.of(setting), 0
        totals = [torch.zeros((), dtype=torch.float64) for _ in weights.asked]
        summed = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in weights.leaves.items()}
        for piece in weights.pieces(1 if self.each_sample else None):
            count += piece.count
            found = weights.gradients(weights.loss(piece))
            if self.each_sample:
                totals = [t + f for t, f in zip(totals, self._formed(weights, found), strict=True)]
            else:
                summed = {name: total + found[name] for name, total in summed.items()}
        if not self.each_sample:
            totals = self._formed(weights, {name: total / count for name, total in summed.items()})
            count = 1
        for weighed, total in zip(weights.asked, totals, strict=True):
            yield weighed.evidence(total / count)

    def _formed(self, weights: Weights, gradients: Mapping[str, Tensor]) -> list[Tensor]:
        """[positions] of each axis."""
        terms = times(gradients, weights.leaves)
        rows = (weighed.rows(weights.setting.program, terms).double() for weighed in weights.asked)
        return [FORMS[self.form](each) for each in rows]


FORMS = {
    "sum": lambda rows: rows.sum(1).abs(),
    "absolute": lambda rows: rows.abs().sum(1),
    "squared": lambda rows: rows.square().sum(1),
}
"""From `w g`, [positions, elements], to a figure for each position."""
