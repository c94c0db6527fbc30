"""How far a slim program's outputs are from the dense one's on the samples, and how much of a repair is good for them.

    error     E[|y - t|^2] / E[|t|^2]              y the slim program's output, t the dense one's; the mean over outputs
    step      old + share * (new - old)            of all tensors that a repair has changed

Each layer by itself comes nearer to the dense one's, which says little of the outputs: a mean that is right, of values
that hardly vary any more, shuts units that would have opened. So a step that takes the outputs farther away is halved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, silent
from prunec.compiler.verify.interpreter import Interpreter, StepError
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.repairing.moments import CLOSE
from prunec.passes.repairing.walk import AT_ONCE, feeds_of

SHORTER: Final = (0.5, 0.25)
"""Shares of a step that are tried where the whole one leads farther away."""


@dataclass(frozen=True)
class Step:
    """How much of a repair is taken, and the outputs' errors."""

    share: float
    """1 is all of it, 0 nothing."""
    before: float
    """The error without it."""
    after: float
    """The error with so much of it."""
    whole: float
    """The error with all of it."""

    @property
    def is_nearer(self) -> bool:
        """Whether the whole step leads no farther away, but for rounding; nothing is asked of outputs that weren't
        numbers before."""
        return math.isnan(self.before) or self.whole <= max(self.before, CLOSE**2)

    def to_dict(self) -> dict[str, float]:
        """For the report."""
        figures = {"error_before": self.before, "error_after": self.after}
        return {**{name: float(f"{value:.3g}") for name, value in figures.items()}, "step": self.share}


def longest_step(
    before: Program, after: Program, dense: Program, calibration: Calibration, context: Context, *, shorten: bool = True
) -> Step | None:
    """The most of a repair with which the outputs are no farther from the dense ones than without it; all of it where
    it may not `shorten`. None where no output has the dense one's shape. The programs are `deployed`.

    Raises `DataError` where a model can't take the data.
    """
    errors = _errors(before, ({}, _between(before, after, 1.0)), dense, calibration, context)
    if errors is None:
        return None
    without, most = errors
    step = Step(1.0, without, most, most)
    if step.is_nearer or not shorten:
        return step
    shorter = [_between(before, after, share) for share in SHORTER]
    for share, error in zip(SHORTER, _errors(before, shorter, dense, calibration, context) or (), strict=True):
        if error <= without:
            return Step(share, without, error, most)
    return Step(0.0, without, without, most)


def partial_step(before: Program, after: Program, share: float) -> Program:
    """The program whose tensors lie a share of the way from one's to the other's."""
    made = after.derive(state=with_own_tensors(after.state))
    with torch.no_grad():
        for name, tensor in _between(before, after, share).items():
            made.tensors[name].copy_(tensor)
    return made


def _between(before: Program, after: Program, share: float) -> dict[str, Tensor]:
    """The tensors of floats that differ, a share of the way from one to the other."""
    old, new = before.tensors, after.tensors
    changed = (name for name in new if new[name].is_floating_point() and not torch.equal(old[name], new[name]))
    if share in (0, 1):  # as they are: a refit may have overflowed, and a share of infinity is none
        return {name: (new if share else old)[name] for name in changed}
    with torch.no_grad():
        return {name: torch.lerp(old[name], new[name], share) for name in changed}


def _errors(
    slim: Program, variants: Sequence[Mapping[str, Tensor]], dense: Program, calibration: Calibration, context: Context
) -> list[float] | None:
    """The outputs' error with each variant's tensors in place of the program's own. Samples whose dense outputs aren't
    finite say nothing."""
    apart: dict[int, list[float]] = {}
    sizes: dict[int, float] = {}
    each = bytes_of_a_sample(slim) + bytes_of_a_sample(dense)
    for piece in calibration.pieces(slim, replace(context, progress=silent), each, AT_ONCE):
        try:
            wanted = _outputs(Interpreter(dense, _precision(dense)), feeds_of(dense, piece.inputs))
            given = [
                _outputs(Interpreter(slim, _precision(slim), tensors), feeds_of(slim, piece.inputs))
                for tensors in variants
            ]
        except StepError as error:
            raise piece.refused(error) from error
        for number, target in enumerate(wanted):
            found = [outputs[number] for outputs in given if number < len(outputs)]
            if len(found) < len(variants) or any(output.shape != target.shape for output in found):
                continue
            fine = target.isfinite()
            size = target.double().masked_fill(~fine, 0.0).square().sum()
            sizes[number] = sizes.get(number, 0.0) + float(size)
            off = [(y.double() - target.double()).masked_fill(~fine, 0.0).square().sum() for y in found]
            apart[number] = [a + float(b) for a, b in zip(apart.get(number, [0.0] * len(off)), off, strict=True)]
    counted = [number for number, size in sizes.items() if size > 0]
    if not counted:
        return None
    shares = [[error / sizes[number] for error in apart[number]] for number in counted]
    return [sum(column) / len(counted) for column in zip(*shares, strict=True)]


def _outputs(run: Interpreter, feeds: Sequence[Any]) -> list[Tensor]:
    """The outputs that are tensors of floats."""
    leaves = pytree.tree_leaves(run.run(tuple(feeds)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _precision(program: Program) -> torch.dtype:
    floats = {tensor.dtype for tensor in program.tensors.values()}
    return torch.float64 if torch.float64 in floats else torch.float32
