"""The parameters of a model as the units of its program see them: figures of all units at once.

    conv1 -> bn1 -> conv2     unit 3 has the slices conv1.weight[3], bn1.weight[3], bn1.bias[3], conv2.weight[:, 3]

An element of a weight lies in two slices, of the unit that it writes and of the one that it reads. Slices of one axis
are summed together, and one indexed addition takes all of them to their units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.program import Axis, BoolArray, FloatArray, Program
from prunec.passes.training.slices import over_slices, slice_sums
from prunec.passes.training.updates import gradient_of


class _Along(NamedTuple):
    """A dimension of a parameter whose slices belong to units; `groups` as in `slices.py`."""

    dim: int
    groups: int
    where: slice
    """Its part of all slices, one behind the other."""


@dataclass(frozen=True)
class UnitSlices:
    """The slices of a model's parameters that belong to units, for all units of a program."""

    analysis: Analysis
    parameters: Mapping[nn.Parameter, Sequence[_Along]]
    _unit: Tensor
    """[slices]: the unit that each belongs to, [units] for none."""
    _moved: dict[torch.device, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the parameters are now: a training may move them after this was made."""
        return next(iter(self.parameters), self._unit).device

    @property
    def unit(self) -> Tensor:
        """[slices]: the unit that each belongs to, [units] for none."""
        if self.device not in self._moved:
            self._moved[self.device] = self._unit.to(self.device)
        return self._moved[self.device]

    @staticmethod
    def of(program: Program, module: nn.Module, *, wanted: Callable[[Axis], bool] = lambda axis: True) -> UnitSlices:
        """The slices along the axes that are `wanted`. The module has the program's parameter names: the model that was
        traced, or the program's own module.

        Raises `PassError` where a parameter of the program isn't one of the module's.
        """
        analysis = analyse(program)
        known = dict(module.named_parameters(remove_duplicate=False))
        found: dict[nn.Parameter, dict[int, _Along]] = {}
        units, count = list[np.ndarray](), 0
        for axis, binding in analysis.flow.bindings.items():
            if not (isinstance(program.tensors[axis.tensor], nn.Parameter) and wanted(axis)):
                continue
            unit = analysis.units(binding.labels).ravel()
            along = found.setdefault(_parameter(axis.tensor, known), {})
            if (unit != NO_UNIT).any() and axis.dim not in along:  # a tied weight has a name in each of its places
                along[axis.dim] = _Along(axis.dim, program.groups_along(axis), slice(count, count + unit.size))
                units.append(np.where(unit == NO_UNIT, analysis.size, unit))
                count += unit.size
        number = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *units]))
        return UnitSlices(analysis, {p: tuple(along.values()) for p, along in found.items() if along}, number)

    @torch.no_grad()
    def squares(self, values: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter) -> Tensor:
        """[units]: the sum of squares over all slices of each unit, of the parameters or of the `values` beside them.

        An element that lies in two slices of one unit counts twice.
        """
        sums = []
        for parameter, dims in self.parameters.items():
            found = values(parameter)
            square = found.to(torch.promote_types(found.dtype, torch.float32)).square()
            sums += [slice_sums(square, along.dim, along.groups) for along in dims]
        rows = torch.cat(sums) if sums else torch.zeros(0, device=self.device)
        return rows.new_zeros(self.analysis.size + 1).index_add_(0, self.unit, rows)[:-1]

    @torch.no_grad()
    def add_decay(self, factors: Tensor) -> None:
        """Add to the gradient of every element itself times the sum of its units' factors, [units]."""
        laid = torch.cat([factors, factors.new_zeros(1)])[self.unit]
        for parameter, dims in self.parameters.items():
            if parameter.requires_grad:
                factor = sum(over_slices(laid[a.where], parameter.shape, a.dim, a.groups) for a in dims)
                gradient_of(parameter).addcmul_(parameter, torch.as_tensor(factor, dtype=parameter.dtype))

    @cached_property
    def present(self) -> BoolArray:
        """[units]: which units have a slice here."""
        return np.bincount(self._unit.numpy(), minlength=self.analysis.size + 1)[:-1] > 0

    def by_group(self, figures: Tensor) -> Iterator[tuple[str, FloatArray]]:
        """Figures of all units, [units], by group."""
        numbers = figures.double().cpu().numpy()
        return ((group.name, numbers[group.where]) for group in self.analysis.groups.values())

    def mask(self, units: BoolArray) -> Tensor:
        """[units]: 1 for these units, 0 for others."""
        return torch.from_numpy(units).to(self.device, torch.float32)


def _parameter(name: str, known: Mapping[str, nn.Parameter]) -> nn.Parameter:
    if name not in known:
        message = f"the model that is trained has no parameter '{name}', which its program has"
        raise PassError(message, hint=nearest(name, known) or "train the program's own module, `program.module`")
    return known[name]
