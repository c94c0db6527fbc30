"""Accuracy on the plan's data: what can be measured, of which split, and whether the slim model has forgotten all.

    outputs [samples, classes], a class for each sample      the share of samples whose largest output is at their class
    anything else (several outputs, pixels, regression)      left out, with the reason

The original is measured before the passes run: whatever is wrong with the data is told before any work is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn

from prunec.compiler.data import Batch, Data, Reading, told
from prunec.compiler.driver.fingerprint import Fingerprint
from prunec.compiler.errors import DataError
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.report.report import Change, Evaluation

MEASURED: Final = ("test", "val")
"""The splits that accuracy is measured on, the first that the data have; on `train` it would say little."""


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
    accuracy: float | None = None
    guess: float = 1.0
    """The accuracy of a model that always says the most frequent class."""
    nan: int = 0
    """How many samples the model gives no numbers for."""
    left_out: str = ""
    """Why there is no accuracy."""


@dataclass
class _Tally:
    """Counts samples, those that are classified correctly, and how often each class comes."""

    right: int = 0
    nan: int = 0
    total: int = 0
    classes: Tensor | None = None

    def add(self, outputs: Tensor, classes: Tensor) -> None:
        nan = outputs.isnan().any(1)
        self.right += int(((outputs.argmax(1) == classes) & ~nan).sum())
        self.nan += int(nan.sum())
        self.total += len(classes)
        counts = torch.bincount(classes, minlength=outputs.shape[1])
        self.classes = counts if self.classes is None else self.classes + counts

    @property
    def guess(self) -> float:
        if self.classes is None or not self.total:
            return 1.0
        several = int((self.classes > 0).sum()) > 1
        return float(self.classes.max()) / self.total if several else 1 / len(self.classes)


def evaluate(
    module: nn.Module, data: Data, example: Any, progress: Progress = silent, batches: int | None = None
) -> Evaluated:
    """The model's accuracy on the test split, or on what the data have; of so many batches, where that is given.

    `example` are example inputs, whose dtype the data take. Raises `DataError` where the data can't be read or don't
    fit the model.
    """
    split = data.first(*MEASURED, "train")
    assert split, "data have at least one split"
    reading, seen, tally = data.read(split), Fingerprint(), _Tally()
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    index, shapes, left_out = -1, "", ""
    with torch.no_grad():
        for index, batch in enumerate(islice(reading, batches)):
            progress("accuracy", index, _total(reading, index))
            if not batch.count:
                continue
            seen.add(batch)
            shapes = shapes or batch.shapes
            batch = batch.like(example, device)
            outputs = batch.through(module)
            left_out = _unfit(outputs, batch) if split in MEASURED else "the data have neither test() nor val()"
            if left_out:
                break
            tally.add(outputs, _classes(batch, outputs.shape[1]))
    if not seen.samples:
        raise DataError(f"the data's {split} split is empty", at=data.at)
    progress("accuracy", index + 1, index + 1)
    if left_out:
        return Evaluated(split, seen.samples, seen.hexdigest(), shapes, left_out=left_out)
    accuracy = tally.right / tally.total
    return Evaluated(split, seen.samples, seen.hexdigest(), shapes, accuracy, tally.guess, tally.nan)


def _total(reading: Reading, index: int) -> int:
    return max(reading.total or 0, index + 1)


def _unfit(outputs: Any, batch: Batch) -> str:
    """Why accuracy can't be measured on such outputs and labels; empty where it can."""
    wanted = "it needs one output [samples, classes] and the class of every sample"
    if isinstance(outputs, Mapping):
        return f"{wanted}; the model gives outputs by name: {', '.join(map(str, outputs))}"
    if isinstance(outputs, tuple | list):
        return f"{wanted}; the model gives {len(outputs)} outputs"
    if not isinstance(outputs, Tensor):
        return f"{wanted}; the model gives a {type(outputs).__name__}"
    if outputs.ndim != 2 or outputs.shape[1] < 2 or outputs.is_complex():
        return f"{wanted}; the model gives {list(outputs.shape)}"
    if batch.classes is None:
        return f"{wanted}; {told(batch.labels)}"
    if len(batch.classes) != len(outputs):
        return f"{wanted}; the model gives {list(outputs.shape)} for {len(batch.classes)} labels"
    return ""


def _classes(batch: Batch, known: int) -> Tensor:
    """The batch's classes. Raises `DataError` for those that the model doesn't know."""
    classes = batch.classes
    assert classes is not None, "the batch was found to have classes"
    wrong = classes[(classes < 0) | (classes >= known)]
    if wrong.numel():
        message = f"it has the label {int(wrong[0])}, and the model gives {known} classes"
        raise batch.place.fault(message, f"labels are 0 to {known - 1}; without labels no accuracy is measured")
    return classes


# -- both models ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """What the data say of the original and of the slim model; the same twice, where nothing can be measured."""

    before: Evaluated
    after: Evaluated

    @property
    def accuracy(self) -> Change[float] | None:
        """Both accuracies; None where they can't be measured."""
        if self.before.accuracy is None or self.after.accuracy is None:
            return None
        return Change(self.before.accuracy, self.after.accuracy)

    @property
    def evaluation(self) -> Evaluation:
        """What was measured, for the report."""
        return Evaluation(self.before.split, self.before.samples, self.before.left_out or self.after.left_out)

    @property
    def fingerprint(self) -> str | None:
        """The hash of the samples; None where each reading gives others."""
        return self.before.fingerprint if self.before.fingerprint == self.after.fingerprint else None

    @property
    def alarms(self) -> list[str]:
        """What nobody may overlook: an accuracy that has collapsed, that isn't of the same samples, or is of NaN."""
        before, after = self.before, self.after
        other = f"the data's {before.split} split gives other samples at each reading, for each model its own"
        nan = f"of {before.samples:,} samples, the outputs of {before.nan:,} are NaN before and {after.nan:,} after"
        known = {other: self.fingerprint is None, nan: before.nan + after.nan > 0}
        fell = collapse(before, after)
        return [*(alarm for alarm, holds in known.items() if holds), *([fell] if fell else [])]


def evaluate_first(module: nn.Module, data: Data, example: Any, progress: Progress = silent) -> Evaluated:
    """Evaluate the original. Raises `DataError` as `evaluate` does, and where the data can't be read a second time."""
    found = evaluate(module, data, example, progress)
    if not found.left_out and next(iter(data.read(found.split)), None) is None:
        message = f"the data's {found.split} split is empty when it is read a second time"
        raise DataError(message, at=data.at, hint="data are read several times: make the batches anew at each reading")
    return found


def compare(original: Evaluated, slim: nn.Module, data: Data, example: Any, progress: Progress = silent) -> Compared:
    """Evaluate the slim model as the original was."""
    return Compared(original, original if original.left_out else evaluate(slim, data, example, progress))


def collapse(before: Evaluated, after: Evaluated) -> str | None:
    """A warning where the slim model has lost half or more of what the original knows beyond guessing."""
    if before.accuracy is None or after.accuracy is None:
        return None
    guess = before.guess
    error = (guess * (1 - guess) / before.samples) ** 0.5  # the standard error of a guess
    known, left = before.accuracy - guess, after.accuracy - guess
    if known <= 3 * error or left > known / 2:
        return None
    fell = f"accuracy fell from {before.accuracy:.2%} to {after.accuracy:.2%}"
    if left <= 2 * error:
        return f"{fell}: that is no better than guessing, which gets {guess:.2%}"
    return f"{fell}: more than half of what the model knew is lost (guessing gets {guess:.2%})"
