"""What the plan's data say of a model: its metric, of which split, and whether the slim model has forgotten all.

    metric: rmse                            measured; it is an error where the model's outputs and labels don't fit
    none, outputs [samples, classes]        accuracy: the share of samples whose largest output is at their class
    none, other outputs, and a loss         the loss that the plan names
    none, other outputs                     left out, with the reason

The original is measured before the passes run: whatever is wrong with the data is told before any work is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn

from prunec.compiler.data import Batch, Data, Reading
from prunec.compiler.driver.fingerprint import Fingerprint
from prunec.compiler.errors import DataError
from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.report.figures import metric_text
from prunec.compiler.report.report import Change, ClassScore, Evaluation, Measured
from prunec.compiler.task.metrics import ACCURACY, Meter, Metric
from prunec.compiler.task.outputs import Output, paired

MEASURED: Final = ("test", "val")
"""The splits that a metric is measured on, the first that the data have; on `train` it would say little."""


@dataclass(frozen=True)
class Evaluated:
    """What the data say of a model."""

    split: str
    samples: int
    """How many were looked at: of the first batch alone, where nothing can be measured."""
    fingerprint: str
    """A hash of these samples."""
    shapes: str = ""
    """The shapes of the first batch's inputs, in words."""
    metric: Metric = ACCURACY
    value: float | None = None
    """The metric's; None where it can't be measured."""
    guess: float | None = None
    """What a model gets that always says the same; None where nobody knows."""
    nan: int = 0
    """How many samples the model gives no numbers for."""
    left_out: str = ""
    """Why there is no value."""
    hint: str = field(default="", compare=False)
    """What may be said in a plan to have one."""
    by_class: tuple[tuple[int, int], ...] = ()
    """Of each class, where that was asked for: its samples, and how many of them the model puts right."""


def evaluate(
    module: nn.Module,
    data: Data,
    example: Any,
    metric: Metric = ACCURACY,
    *,
    split: str | None = None,
    progress: Progress = silent,
    batches: int | None = None,
    classes: int = 0,
) -> Evaluated:
    """The model's metric on a split, of so many batches, where that is given; by default on the test split, or on val.
    With it each of so many `classes`, where the judged output has these and the labels are numbers of classes.

    `example` are example inputs, whose dtype the data take. The model runs in the mode that it is in. Raises
    `DataError` where the data can't be read or don't fit the model or a metric that somebody asked for; a metric that
    nobody asked for is left out.
    """
    return _evaluated(module, data, example, _Asked(metric, split, progress, batches, classes=classes))


def try_out(
    module: nn.Module, data: Data, example: Any, metric: Metric = ACCURACY, *, split: str | None = None
) -> Evaluated:
    """Take one batch in as `evaluate` does, without a figure: of so few samples, a metric may have none."""
    return _evaluated(module, data, example, _Asked(metric, split, batches=1, figure=False))


@dataclass(frozen=True)
class _Asked:
    """What is measured, and how much of the data is read."""

    metric: Metric
    split: str | None = None
    progress: Progress = silent
    batches: int | None = None
    figure: bool = True
    classes: int = 0


def _evaluated(module: nn.Module, data: Data, example: Any, asked: _Asked) -> Evaluated:
    metric, split = asked.metric, asked.split
    chosen = split or data.first(*MEASURED, "train")
    assert chosen, "data have at least one split"
    run = _Run(data.read(chosen), metric, asked.progress, asked.batches)
    meter, unseen = None, split is not None or chosen in MEASURED
    tally = _Tally(asked.classes, metric.output)
    with torch.no_grad():
        for outputs, batch in run.batches(module, example):
            if not unseen:
                run.left_out = "the data have neither test() nor val()"
            elif not metric.said:  # a meter refuses what doesn't fit a metric that somebody asked for
                run.left_out = metric.unfit(outputs, batch)
            if run.left_out:
                run.hint = _HINT if unseen and batch.labels is not None else ""
                break
            meter = meter or metric.meter(run.device)
            meter.update(outputs, batch)
            tally.add(outputs, batch)
        if not run.seen.samples:
            raise DataError(f"the data's {chosen} split is empty", at=data.at)
        seen = run.seen
        found = Evaluated(chosen, seen.samples, seen.hexdigest(), run.shapes, metric, nan=run.nan, by_class=tally.found)
        return run.finished(found, meter if asked.figure and not run.left_out else None)


class _Tally:
    """Counts for each class its samples, and those whose largest output is at it."""

    def __init__(self, classes: int, output: Output | None) -> None:
        self.output, self.counts = output, torch.zeros(2, classes, dtype=torch.int64)

    def add(self, outputs: Any, batch: Batch) -> None:
        """Take a batch in; outputs or labels that are of something else end the count."""
        classes = self.counts.shape[1]
        if not classes:
            return
        pair = next(iter(paired(outputs, batch, self.output)), None)
        labels = None if pair is None else replace(batch, labels=pair[1]).classes
        fits = pair is not None and pair[0].ndim > 1 and labels is not None
        if pair is None or labels is None or not fits or pair[0].shape[:2].numel() != pair[0].numel():
            self.counts = torch.zeros(2, 0, dtype=torch.int64)
            return
        right = labels[pair[0].flatten(1).argmax(1) == labels]
        self.counts += torch.stack([torch.bincount(each.cpu(), minlength=classes) for each in (labels, right)])

    @property
    def found(self) -> tuple[tuple[int, int], ...]:
        """As in `Evaluated`; empty where nothing was counted."""
        counts = self.counts.T.tolist() if self.counts.any() else []
        return tuple((samples, right) for samples, right in counts)


@dataclass
class _Run:
    """One reading of a split, and what is noted of it on the way."""

    reading: Reading
    metric: Metric
    progress: Progress
    most: int | None
    seen: Fingerprint = field(default_factory=Fingerprint)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    number: int = 0
    nan: int = 0
    shapes: str = ""
    left_out: str = ""
    hint: str = ""

    def batches(self, module: nn.Module, example: Any) -> Iterator[tuple[Any, Batch]]:
        """The model's outputs for each batch, with the batch."""
        self.device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
        for index, batch in enumerate(islice(self.reading, self.most)):
            self.progress(self.metric.title, index, max(self.reading.total or 0, index + 1))
            self.number = index + 1
            if not batch.count:
                continue
            self.seen.add(batch)
            self.shapes = self.shapes or batch.shapes
            batch = batch.like(example, self.device)
            outputs = batch.through(module)
            yield outputs, batch
            self.nan += _nan(outputs, batch)

    def finished(self, found: Evaluated, meter: Meter | None) -> Evaluated:
        """What was found, with the meter's figure."""
        self.progress(self.metric.title, self.number, self.number)
        if meter is None:
            return replace(found, left_out=self.left_out, hint=self.hint)
        return replace(found, value=meter.compute(), guess=meter.guess)


def _nan(outputs: Any, batch: Batch) -> int:
    """For how many samples some output is NaN."""
    rows = (
        output.reshape(batch.count, -1).isnan().any(1)
        for output in tensors_in(outputs)
        if output.is_floating_point() and output.ndim and len(output) == batch.count and output.numel()
    )
    found: Tensor | None = None
    for row in rows:
        found = row if found is None else found | row
    return 0 if found is None else int(found.sum())


_HINT: Final = "say what is measured, for example metric: rmse, or metric: mean_iou"
"""For a plan that names no metric, where the data have labels."""


# -- both models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """What the data say of the original and of the slim model; the same twice, where nothing can be measured."""

    before: Evaluated
    after: Evaluated

    @property
    def measured(self) -> Measured | None:
        """The metric of both; None where it can't be measured."""
        if self.before.value is None or self.after.value is None:
            return None
        metric = self.before.metric
        title = metric.title
        return Measured(title, metric.higher_is_better, metric.share, Change(self.before.value, self.after.value))

    @property
    def scores(self) -> tuple[ClassScore, ...]:
        """Of each class, where both models were asked about the same samples."""
        pairs = list(zip(self.before.by_class, self.after.by_class, strict=False))
        if any(old[0] != new[0] for old, new in pairs):
            return ()
        return tuple(ClassScore(old[0], Change(old[1], new[1])) for old, new in pairs)

    @property
    def evaluation(self) -> Evaluation:
        """What was measured, for the report."""
        left_out = self.before.left_out or self.after.left_out
        return Evaluation(self.before.split, self.before.samples, left_out, self.before.hint)

    @property
    def fingerprint(self) -> str | None:
        """The hash of the samples; None where each reading gives others."""
        return self.before.fingerprint if self.before.fingerprint == self.after.fingerprint else None

    @property
    def alarms(self) -> list[str]:
        """What nobody may overlook: a metric that has collapsed, that isn't of the same samples, or is of NaN."""
        before, after = self.before, self.after
        other = f"the data's {before.split} split gives other samples at each reading, for each model its own"
        nan = f"of {before.samples:,} samples, the outputs of {before.nan:,} are NaN before and {after.nan:,} after"
        known = {other: self.fingerprint is None, nan: before.nan + after.nan > 0}
        fell = collapse(before, after)
        return [*(alarm for alarm, holds in known.items() if holds), *([fell] if fell else [])]


def settled(metric: Metric, module: nn.Module, data: Data | None, example: Any) -> Metric:
    """The metric, or what stands instead of it where it can't be measured of the first batch.

    Raises `DataError` as `evaluate` does.
    """
    if data is None or metric.instead is None:
        return metric
    found = try_out(module, data, example, metric)
    return metric.instead if found.hint else metric


def evaluate_first(
    module: nn.Module,
    data: Data,
    example: Any,
    metric: Metric = ACCURACY,
    progress: Progress = silent,
    classes: int = 0,
) -> Evaluated:
    """Evaluate the original, each of so many `classes` by itself, too.

    Raises `DataError` as `evaluate` does, and where the data can't be read a second time.
    """
    found = evaluate(module, data, example, metric, progress=progress, classes=classes)
    if not found.left_out and next(iter(data.read(found.split)), None) is None:
        message = f"the data's {found.split} split is empty when it is read a second time"
        raise DataError(message, at=data.at, hint="data are read several times: make the batches anew at each reading")
    return found


def compare(original: Evaluated, slim: nn.Module, data: Data, example: Any, progress: Progress = silent) -> Compared:
    """Evaluate the slim model as the original was."""
    if original.left_out:
        return Compared(original, original)
    classes = len(original.by_class)
    return Compared(original, evaluate(slim, data, example, original.metric, progress=progress, classes=classes))


def collapse(before: Evaluated, after: Evaluated) -> str | None:
    """A warning where the slim model has lost half or more of what the original knows beyond guessing.

    Where nobody knows what guessing gets, half of a figure that should be high is too much, and twice one that should
    be low.
    """
    if before.value is None or after.value is None or math.isnan(before.value):
        return None
    metric = before.metric
    old, new = (metric_text(value, metric.share) for value in (before.value, after.value))
    changed = f"{metric.title} {'fell' if metric.higher_is_better else 'rose'} from {old} to {new}"
    if math.isnan(after.value):
        return f"{metric.title} was {old}, and is NaN"
    if before.guess is None:
        return _halved(before.value, after.value, changed, higher=metric.higher_is_better)
    sign = 1 if metric.higher_is_better else -1
    error = _error(before)
    known, left = sign * (before.value - before.guess), sign * (after.value - before.guess)
    if known <= 3 * error or left > known / 2:
        return None
    guess = metric_text(before.guess, metric.share)
    if left <= 2 * error:
        return f"{changed}: that is no better than guessing, which gets {guess}"
    return f"{changed}: more than half of what the model knew is lost (guessing gets {guess})"


def _error(before: Evaluated) -> float:
    """The standard error of a guess, of so many samples; of errors and losses an upper bound."""
    guess = before.guess or 0.0
    spread = guess * (1 - guess) if before.metric.share else guess * guess
    return float((spread / before.samples) ** 0.5)


def _halved(before: float, after: float, changed: str, *, higher: bool) -> str | None:
    if before <= 0:
        return None
    if higher:
        return f"{changed}: more than half of it is lost" if after < before / 2 else None
    return f"{changed}: it has more than doubled" if after > 2 * before else None
