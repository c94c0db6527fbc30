"""Loss and metric without some units: all trials are measured in one pass over the data.

    trials    {conv1: 3, 7}    {conv1: 3, 7, 9}    {conv2: 0}        sets of units that are masked
    data      a piece at a time: once through the whole model, once through each trial from where it differs
    figures   mean loss [trials], metric [trials], and both of the whole model

Where the plan names no metric, it is accuracy, of samples or of pixels, if the outputs are classes; else there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunec.compiler.data import Batch
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import Axis, Edge, FloatArray, IntArray, Program
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import removed_positions
from prunec.compiler.task.metrics import Accuracy, LossMetric, Meter, Metric
from prunec.compiler.verify.interpreter import StepError
from prunec.compiler.verify.variants import WHOLE, Variants
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample

Trial = IntArray
"""Program-wide numbers of the units that are masked."""


@dataclass(frozen=True)
class Figures:
    """Of the whole model and of every trial, the mean loss over samples, and the metric; NaN where there is none."""

    loss: float
    metric: float
    losses: FloatArray
    """[trials]"""
    metrics: FloatArray
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
    sums, samples = np.zeros(len(trials) + 1), 0  # the last one is the whole model's
    meters = _Meters.of(program, context.metric, len(sums))
    for piece in calibration.pieces(program, context, bytes_of_a_sample(program)):
        samples += piece.count
        for done, (number, outputs) in enumerate(_outputs(program, variants, piece)):
            sums[number] += float(calibration.loss.total(outputs, piece))
            meters.update(number, outputs, piece)
            context.progress(what, done + 1, len(trials) + 1)
    means, metrics = sums / samples, meters.compute()
    return Figures(float(means[WHOLE]), float(metrics[WHOLE]), means[:WHOLE], metrics[:WHOLE], samples)


def judge(metric: Metric) -> Metric | None:
    """What trials are judged by besides the loss. Accuracy, where nobody named a metric, may be that of pixels, too;
    None where the metric is the loss."""
    if isinstance(metric, LossMetric):
        return None
    return metric if metric.said else Accuracy(said=False)


@dataclass
class _Meters:
    """A meter for each trial; none where nobody asked for a metric, and accuracy can't be measured."""

    metric: Metric | None
    count: int
    device: torch.device
    meters: list[Meter]

    @staticmethod
    def of(program: Program, metric: Metric, count: int) -> _Meters:
        device = next((tensor.device for tensor in program.tensors.values()), torch.device("cpu"))
        return _Meters(judge(metric), count, device, [])

    def update(self, number: int, outputs: Any, piece: Batch) -> None:
        """Take what one trial gives for a piece in. Raises `DataError` where a metric can't be measured that somebody
        asked for."""
        if self.metric is None:
            return
        if not self.metric.said and self.metric.unfit(outputs, piece):
            self.metric = None
            return
        self.meters = self.meters or [self.metric.meter(self.device) for _ in range(self.count)]
        self.meters[number].update(outputs, piece)

    def compute(self) -> FloatArray:
        """[trials + 1]"""
        if self.metric is None:
            return np.full(self.count, np.nan)
        return np.array([meter.compute() for meter in self.meters])


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
