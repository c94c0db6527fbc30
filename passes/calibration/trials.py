"""Loss and accuracy without some units: all trials are measured in one pass over the data.

    trials    {conv1: 3, 7}    {conv1: 3, 7, 9}    {conv2: 0}        sets of units that are masked
    data      a piece at a time: once through the whole model, once through each trial from where it differs
    figures   mean loss [trials], accuracy [trials], and both of the whole model

Accuracy is known where the model gives a row of scores for each label; of an image, it is the share of its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prunec.compiler.data import Batch
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import Axis, Edge, FloatArray, IntArray, Program
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import removed_positions
from prunec.compiler.task.outputs import first_output
from prunec.compiler.verify.interpreter import StepError
from prunec.compiler.verify.variants import WHOLE, Variants
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample

Trial = IntArray
"""Program-wide numbers of the units that are masked."""


@dataclass(frozen=True)
class Figures:
    """Means over samples: of the whole model and of every trial. `accuracy` is NaN where the outputs aren't classes."""

    loss: float
    accuracy: float
    losses: FloatArray
    """[trials]"""
    accuracies: FloatArray
    """[trials]"""
    samples: int


def measure(
    program: Program, trials: Sequence[Trial], calibration: Calibration, context: Context, what: str = "trials"
) -> Figures:
    """Mask each of the sets of units in turn, on the same samples. `what` names the work in progress reports.

    Raises `PassError` without data, and `DataError` where the data don't fit the model or the loss.
    """
    analysis = analyse(program)
    variants = Variants(program, [_positions(analysis, trial) for trial in trials])
    sums, samples = np.zeros((len(trials) + 1, 2)), 0  # the last row is the whole model's
    for piece in calibration.pieces(program, context, bytes_of_a_sample(program)):
        samples += piece.count
        for done, (number, outputs) in enumerate(_outputs(program, variants, piece)):
            right = correct(outputs, piece)
            sums[number, 0] += float(calibration.loss.total(outputs, piece))
            sums[number, 1] += float("nan") if right is None else float(right.sum())
            context.progress(what, done + 1, len(trials) + 1)
    means = sums / samples
    loss, accuracy = means[WHOLE].tolist()
    return Figures(loss, accuracy, means[:WHOLE, 0], means[:WHOLE, 1], samples)


def correct(outputs: Any, piece: Batch) -> Tensor | None:
    """The share of each sample that is classified correctly, [samples]; None where the outputs aren't classes."""
    output, labels = first_output(outputs, piece), piece.labels
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != output.ndim - 1:
        return None
    right = (output.argmax(1) == labels).double()
    return right.flatten(1).mean(1) if right.ndim > 1 else right


def _positions(analysis: Analysis, trial: Trial) -> Mapping[Axis | Edge, IntArray]:
    keep = np.ones(analysis.size, dtype=bool)
    keep[trial] = False
    return removed_positions(analysis, keep)


def _outputs(program: Program, variants: Variants, piece: Batch) -> Iterator[tuple[int, Any]]:
    try:
        yield from variants.outputs(_in_order(program, piece.inputs))
    except StepError as error:
        raise piece.refused(error) from error


def _in_order(program: Program, inputs: Any) -> tuple[Any, ...]:
    """A model's inputs in the order of the program's placeholders."""
    if isinstance(inputs, Mapping):
        names = [node.target for node in program.graph.nodes if node.op == "placeholder"]
        return tuple(inputs[name] for name in names if name in inputs)
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
