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
from typing import Final

import torch
from torch import Tensor

from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, silent
from prunec.compiler.verify.interpreter import Interpreter, StepError, precision_of
from prunec.compiler.verify.variants import WHOLE, Variants
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.repairing.moments import CLOSE
from prunec.passes.repairing.walk import AT_ONCE, feeds_of, floats_of

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
    errors = _errors(before, [_between(before, after, 1.0)], dense, calibration, context)
    if errors is None:
        return None
    without, most = errors[WHOLE], errors[0]
    step = Step(1.0, without, most, most)
    if step.is_nearer or not shorten:
        return step
    shorter = _errors(before, [_between(before, after, share) for share in SHORTER], dense, calibration, context)
    for number, share in enumerate(SHORTER):
        if shorter is not None and shorter[number] <= without:
            return Step(share, without, shorter[number], most)
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
) -> dict[int, float] | None:
    """The outputs' error with each variant's tensors in place of the program's own, and with these (`WHOLE`). Samples
    whose dense outputs aren't finite say nothing."""
    runs, exact = Variants(slim, variants), Interpreter(dense, precision_of(dense))
    apart: dict[int, dict[int, float]] = {}
    sizes: dict[int, float] = {}
    each = bytes_of_a_sample(slim) + bytes_of_a_sample(dense)
    for piece in calibration.pieces(slim, replace(context, progress=silent), each, AT_ONCE):
        try:
            wanted = floats_of(exact.run(tuple(feeds_of(dense, piece.inputs))))
            given = {n: floats_of(outputs) for n, outputs in runs.outputs(tuple(feeds_of(slim, piece.inputs)))}
        except StepError as error:
            raise piece.refused(error) from error
        for place, target in enumerate(wanted):
            found = {number: outputs[place] for number, outputs in given.items() if place < len(outputs)}
            if len(found) < len(given) or any(output.shape != target.shape for output in found.values()):
                continue
            fine, sums = target.isfinite(), apart.setdefault(place, dict.fromkeys(given, 0.0))
            sizes[place] = sizes.get(place, 0.0) + float(target.masked_fill(~fine, 0.0).square().sum())
            for number, output in found.items():
                sums[number] += float((output - target).masked_fill(~fine, 0.0).square().sum())
    counted = [place for place, size in sizes.items() if size > 0]
    if not counted:
        return None
    return {n: sum(apart[place][n] / sizes[place] for place in counted) / len(counted) for n in apart[counted[0]]}
