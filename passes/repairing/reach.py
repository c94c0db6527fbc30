"""How far errors of layers reach: what changed weights make of a model's outputs, on samples that weren't fitted.

    x -- conv1 -- relu -- conv2 + change -- bn2 -- (+) -- ... -- outputs       sum of (outputs - before)^2 / variance

An error of a tenth of a residual sum may vanish in what follows, or be all that the next layers look at; only the
outputs tell. All changes are tried in one run over the samples, each from the first layer on that it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.data import Batch
from prunec.compiler.ir.program import FloatArray, Program
from prunec.compiler.pass_base import Context
from prunec.compiler.verify.interpreter import StepError
from prunec.compiler.verify.variants import WHOLE, Variants
from prunec.passes.calibration.calibration import SAMPLES as ALL
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample
from prunec.passes.repairing.layers import Layer
from prunec.passes.repairing.refit import HELD_OUT
from prunec.passes.repairing.walk import AT_ONCE, feeds_of, floats_of, numbers_of

SAMPLES: Final = 64
"""About the most samples that say how far errors reach."""
FEWEST: Final = 8
"""So many are looked at, if there are so many, however many changes there are."""
RUNS: Final = 1_600
"""About so many runs of one sample, of all changes together, are worth it."""


@dataclass(frozen=True)
class Change:
    """What is added to a layer's weight, and to all that it gives."""

    layer: Layer
    weight: Tensor
    """[groups, inputs of a group, outputs of a group]"""
    shift: Tensor
    """[outputs]: zero where the layer has nothing that moves its outputs."""


def changed(program: Program, changes: Iterable[Change]) -> dict[str, Tensor]:
    """The tensors that changes make others of: name -> tensor."""
    made: dict[str, Tensor] = {}

    def own(name: str) -> Tensor:
        if name not in made:
            made[name] = program.tensors[name].detach().clone()
        return made[name]

    for change in changes:
        layer = change.layer
        weight = layer.part.of(own(layer.weight))
        laid = layer.form.laid(weight)
        laid.add_(change.weight.view(laid.shape).to(laid.dtype))
        layer.form.put(laid, weight)
        if layer.shift is not None:
            by = -change.shift if layer.moves_norm else change.shift
            layer.shift.of(own(layer.shift.name)).add_(by.to(laid.dtype))
    return made


def reach(
    program: Program,
    variants: Sequence[Mapping[str, Tensor]],
    calibration: Calibration,
    context: Context,
    *,
    hold: bool,
) -> FloatArray:
    """[variants]: the mean squared error of the outputs with other tensors, as a share of their variance; NaN where the
    model has no floating-point outputs. With `hold`, on the samples that fits hold out (`Inputs`), if there are any.

    Raises `DataError` where the model can't take the data.
    """
    runs, sums = Variants(program, variants), _Sums(len(variants))
    samples = min(SAMPLES, max(FEWEST, RUNS // len(variants)))
    for piece in _pieces(program, calibration, context, samples, hold):
        found: dict[int, list[Tensor]] = {}
        try:
            for number, outputs in runs.outputs(tuple(feeds_of(program, piece.inputs))):
                found[number] = floats_of(outputs)
        except StepError as error:
            raise piece.refused(error) from error
        sums.add(found.pop(WHOLE), found)
    return sums.shares()


def _pieces(program: Program, calibration: Calibration, context: Context, samples: int, hold: bool) -> Iterable[Batch]:
    """About so many of the samples, of those that are held out where some are; which these are depends on each sample
    alone."""
    wanted = calibration.samples or ALL
    every = max(1, round(wanted / (HELD_OUT if hold else 1) / samples))
    first, taken = list[Batch](), 0
    for piece in calibration.pieces(program, context, bytes_of_a_sample(program), AT_ONCE):
        first = first or [piece]
        numbers = torch.tensor(numbers_of(piece))
        mine = piece.picked((numbers // HELD_OUT % every == 0) & ((numbers % HELD_OUT == 0) | (not hold)))
        taken += mine.count
        if mine.count:
            yield mine
    if not taken:
        yield from (piece[:samples] for piece in first)


class _Sums:
    """Sums over pieces, for each of the outputs."""

    def __init__(self, variants: int) -> None:
        self.variants = variants
        self.values: list[_Values] = []
        self.errors: list[FloatArray] = []

    def add(self, whole: Sequence[Tensor], found: Mapping[int, Sequence[Tensor]]) -> None:
        """Take in what a piece gives: unchanged, and in each variant."""
        if not self.values:
            self.values, self.errors = [_Values() for _ in whole], [np.zeros(self.variants) for _ in whole]
        for place, output in enumerate(whole):
            known = output.isfinite()
            values = torch.where(known, output, 0.0)
            self.values[place].add(values)
            for number, others in found.items():
                # what isn't finite any more is as wrong as if it were gone
                apart = torch.where(known & others[place].isfinite(), others[place], 0.0) - values
                self.errors[place][number] += float(apart.square().sum())

    def shares(self) -> FloatArray:
        """[variants]: the mean over the outputs that aren't zero."""
        wholes = [values.apart() for values in self.values]
        found = [error / whole for error, whole in zip(self.errors, wholes, strict=True) if whole > 0]
        shares: FloatArray = np.mean(found, axis=0) if found else np.full(self.variants, np.nan)
        return shares


class _Values:
    """Sums of one output, for how far it is from its mean."""

    def __init__(self) -> None:
        self.count, self.squares = 0, 0.0
        self.totals: Tensor | None = None
        """[...]: the sum over samples."""
        self.varies = False
        """Whether the shape of a sample isn't always the same: then there is no mean."""

    def add(self, values: Tensor) -> None:
        """Take in a piece's, [samples, ...]."""
        values = values if values.ndim else values[None]
        self.count += len(values)
        self.squares += float(values.square().sum())
        totals = values.sum(0)
        self.varies |= self.totals is not None and self.totals.shape != totals.shape
        self.totals = totals if self.totals is None or self.varies else self.totals + totals

    def apart(self) -> float:
        """The sum of squares about the mean; about zero where only one sample, or samples of many shapes tell of it."""
        if self.totals is None:
            return 0.0
        mean = 0.0 if self.varies else float(self.totals.square().sum()) / self.count
        found = self.squares - mean
        return found if found > 1e-12 * self.squares else self.squares
