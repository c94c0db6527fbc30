"""The metric that a model is judged by: a figure for all samples, of which more or less is better.

    metric: accuracy                             or top5, mean_iou, rmse, mae; or loss, the plan's own
    metric: {name: mean_iou, args: {ignore_index: 255}, output: out}
    metric: {name: MulticlassF1Score, args: {num_classes: 10}}            a class of torchmetrics
    metric: {name: depth.py:delta, better: higher}                        def delta(outputs, labels)

A function of the user's gives one number for a batch, or one for each sample, and counts with the mean over samples. A
class of the user's has `update(outputs, labels)` and `compute()`. Both get outputs and labels as they are, or those of
one `output`.

`rmse`, `mae`, `mean_iou` and classes by name come from torchmetrics, which is imported when one of them is measured.
"""

from __future__ import annotations

import copy
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.data import Batch, told
from prunec.compiler.errors import DataError, PlanError, Span, nearest
from prunec.compiler.ir.train_eval import in_eval
from prunec.compiler.task.losses import Loss
from prunec.compiler.task.outputs import Output, chosen, named, paired
from prunec.compiler.user_code import running


class Meter(ABC):
    """Sums up what a metric needs of batches; made anew for each measurement."""

    guess: float | None = None
    """What a model would get that knows nothing, and always gives the same; None where nobody knows."""

    @abstractmethod
    def update(self, outputs: Any, batch: Batch) -> None:
        """Take a batch in. Raises `DataError` where the metric can't take such outputs and labels."""

    @abstractmethod
    def compute(self) -> float:
        """The figure for all batches that were taken in; NaN where it isn't defined."""


@dataclass(frozen=True)
class Metric(ABC):
    """A metric; see the module's text."""

    name: str
    """As a plan has it."""
    higher_is_better: bool = True
    share: bool = False
    """Whether it lies between 0 and 1, the best: then it reads in per cent, and changes in points."""
    output: Output | None = None
    """Which output it is of; None for all that have labels, or the first where the labels are one tensor."""
    at: Span | None = field(default=None, compare=False)
    """Where the plan names it."""
    said: bool = True
    """Whether somebody asked for it: then it is an error where it can't be measured."""
    instead: Metric | None = None
    """What is measured where it can't be; None where that is left out then."""

    @property
    def title(self) -> str:
        """The name for people: `RMSE of depth`."""
        what = _TITLES.get(self.name, self.name.rpartition(":")[2])
        of = f"output {self.output}" if isinstance(self.output, int) else self.output
        return what if of is None else f"{what} of {of}"

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`; any number is better than NaN."""
        if math.isnan(a) or math.isnan(b):
            return math.isnan(b) and not math.isnan(a)
        return a > b if self.higher_is_better else a < b

    def unfit(self, outputs: Any, batch: Batch) -> str:
        """Why it can't be measured on such outputs and labels; empty where it may be tried.

        A metric that nobody asked for is asked this first; of one that was asked for, the meter raises it.
        """
        return ""

    @abstractmethod
    def meter(self, device: torch.device | None = None) -> Meter:
        """What measures it, on a device. Raises `PlanError` where a package is missing or it can't be made."""

    def refused(self, batch: Batch, why: str) -> DataError:
        """The error of a metric that a batch's outputs and labels don't fit, at its place in the plan."""
        found = batch.place.fault(f"the metric {self.name} can't be measured: {why}", _unlabelled(batch.labels))
        found.at = self.at or found.at
        return found


_TITLES: Final[Mapping[str, str]] = {
    "top5": "top-5 accuracy",
    "mean_iou": "mean IoU",
    "rmse": "RMSE",
    "mae": "MAE",
}


def _told(value: Any) -> str:
    """An output or a label, in words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


# -- classes: accuracy and IoU -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy(Metric):
    """The share of right answers: of samples, or of pixels. `top` largest outputs may hold the right one."""

    name: str = "accuracy"
    share: bool = True
    top: int = 1
    ignored: int | None = None
    """The class whose elements don't count."""

    def unfit(self, outputs: Any, batch: Batch) -> str:
        """As in `Metric`."""
        return _no_classes(outputs, batch, self.output)

    def meter(self, device: torch.device | None = None) -> Meter:
        """As in `Metric`."""
        return _Right(self)


@dataclass(frozen=True)
class DefaultAccuracy(Accuracy):
    """Accuracy where nobody has said what is measured: of models with one output and a class for each sample."""

    said: bool = False

    def unfit(self, outputs: Any, batch: Batch) -> str:
        """As in `Metric`."""
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


ACCURACY: Final = DefaultAccuracy()
"""The metric of a plan that names none."""


class _Right(Meter):
    """Counts elements, those whose class is among the largest outputs, and how often each class comes."""

    def __init__(self, metric: Accuracy) -> None:
        self.metric = metric
        self.right = 0
        self.classes = _Classes()

    def update(self, outputs: Any, batch: Batch) -> None:
        """As in `Meter`; an element whose outputs hold NaN is no right answer."""
        output, labels = _classified(self.metric, outputs, batch, self.metric.ignored)
        self.classes.add(labels, output.shape[1])
        if self.metric.top == 1:
            right = output.argmax(1) == labels
        else:
            best = output.topk(min(self.metric.top, output.shape[1]), 1).indices
            right = (best == labels[:, None]).any(1)
        self.right += int((right & ~output.isnan().any(1)).sum())

    def compute(self) -> float:
        """As in `Meter`."""
        return self.right / self.classes.total if self.classes.total else math.nan

    @property
    def guess(self) -> float:  # type: ignore[override]
        """The share of the most frequent classes; where the data have one class alone, of as many of all classes."""
        counts = self.classes.counts
        if not self.classes.total:
            return 1.0
        if int((counts > 0).sum()) < 2:
            return min(self.metric.top / len(counts), 1.0)
        return float(counts.topk(min(self.metric.top, len(counts))).values.sum()) / self.classes.total


class _Classes:
    """How often each class comes."""

    def __init__(self) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64)

    def add(self, labels: Tensor, known: int) -> None:
        found = torch.bincount(labels, minlength=max(known, len(self.counts))).cpu()
        found[: len(self.counts)] += self.counts
        self.counts = found

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def _no_classes(outputs: Any, batch: Batch, output: Output | None) -> str:
    """Why outputs and labels are no classes, of samples or of pixels; empty where they are."""
    wanted = "it needs an output [samples, classes, ...] and the class of every sample or pixel"
    pairs = paired(in_eval(outputs), batch, output, floats=False)
    if len(pairs) != 1:
        return f"{wanted}; {_not_one(pairs, outputs, batch)}"
    ((scores, labels),) = pairs
    if scores.ndim < 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        hint = "; of a column of yes or no, BinaryAccuracy of torchmetrics is one" if scores.ndim > 1 else ""
        return f"{wanted}; the model gives {list(scores.shape)}{hint}"
    if labels.is_floating_point() or labels.is_complex():
        return f"{wanted}; {told(labels)}"
    if _flat(scores, labels) is None:
        return f"{wanted}; the model gives {list(scores.shape)} for labels {list(labels.shape)}"
    return ""


def _not_one(pairs: list[tuple[Tensor, Tensor]], outputs: Any, batch: Batch) -> str:
    """What is wrong where not one output has labels."""
    if not pairs:
        return told(batch.labels) if batch.labels is None else f"{told(batch.labels)}, which fit none of the outputs"
    return f"{len(pairs)} outputs have labels: 'output' says which is meant, of {named(outputs)}"


def _flat(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Scores [elements, classes] and their classes [elements]; None where they don't fit."""
    if labels.ndim == scores.ndim and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (scores.shape[0], *scores.shape[2:]):
        return None
    return scores.movedim(1, -1).reshape(-1, scores.shape[1]), labels.reshape(-1).long()


def _classified(metric: Metric, outputs: Any, batch: Batch, ignored: int | None) -> tuple[Tensor, Tensor]:
    """Scores [elements, classes] and their classes [elements], without those that are ignored.

    Raises `DataError` for classes that the model doesn't know.
    """
    why = metric.unfit(outputs, batch) if metric.said else ""  # of others, it was asked before
    if why:
        raise metric.refused(batch, why)
    ((output, labels),) = paired(in_eval(outputs), batch, metric.output, floats=False)
    found = _flat(output, labels)
    assert found is not None, "what doesn't fit was refused"
    scores, classes = found
    if ignored is not None:
        kept = classes != ignored
        scores, classes = scores[kept], classes[kept]
    known = scores.shape[1]
    wrong = classes[(classes < 0) | (classes >= known)]
    if wrong.numel():
        message = f"it has the label {int(wrong[0])}, and the model gives {known} classes"
        beside = "" if metric.said else "; without labels no accuracy is measured"
        void = "" if batch.labels is None or output.ndim < 3 else "; args: {ignore_index: ...} leaves one out"
        raise batch.place.fault(message, f"labels are 0 to {known - 1}{beside}{void}")
    return scores, classes


@dataclass(frozen=True)
class MeanIou(Metric):
    """The mean over classes of intersection over union, over all pixels of all samples; classes that come neither in
    labels nor in outputs don't count."""

    name: str = "mean_iou"
    share: bool = True
    ignored: int | None = None

    def unfit(self, outputs: Any, batch: Batch) -> str:
        """As in `Metric`."""
        return _no_classes(outputs, batch, self.output)

    def meter(self, device: torch.device | None = None) -> Meter:
        """As in `Metric`."""
        return _Overlap(self, _torchmetrics(self.name, self.at))


class _Overlap(Meter):
    """torchmetrics' Jaccard index, with as many classes as the model gives."""

    def __init__(self, metric: MeanIou, package: Any) -> None:
        self.metric, self.package = metric, package
        self.classes = _Classes()
        self.index: Any = None

    def update(self, outputs: Any, batch: Batch) -> None:
        """As in `Meter`."""
        scores, labels = _classified(self.metric, outputs, batch, self.metric.ignored)
        if self.index is None:
            self.index = self.package.classification.MulticlassJaccardIndex(scores.shape[1]).to(scores.device)
        self.classes.add(labels, scores.shape[1])
        if labels.numel():
            self.index.update(scores.argmax(1), labels)

    def compute(self) -> float:
        """As in `Meter`."""
        return float(self.index.compute()) if self.classes.total else math.nan

    @property
    def guess(self) -> float | None:  # type: ignore[override]
        """Where each pixel gets the most frequent class: the share of that, divided by the number of classes."""
        present = int((self.classes.counts > 0).sum())
        if present < 2:
            return None
        return float(self.classes.counts.max()) / self.classes.total / present


# -- numbers: RMSE and MAE -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deviation(Metric):
    """How far numbers are from those in the labels: `rmse` is the root of the mean square, `mae` the mean magnitude."""

    higher_is_better: bool = False

    def unfit(self, outputs: Any, batch: Batch) -> str:
        """As in `Metric`."""
        wanted = "it needs an output and as many numbers as labels"
        pairs = paired(in_eval(outputs), batch, self.output, floats=False)
        if len(pairs) != 1:
            return f"{wanted}; {_not_one(pairs, outputs, batch)}"
        ((output, labels),) = pairs
        fits = output.numel() == labels.numel() and not output.is_complex()
        return "" if fits else f"{wanted}; the model gives {list(output.shape)} for labels {list(labels.shape)}"

    def meter(self, device: torch.device | None = None) -> Meter:
        """As in `Metric`."""
        package = _torchmetrics(self.name, self.at).regression
        made = package.MeanSquaredError(squared=False) if self.name == "rmse" else package.MeanAbsoluteError()
        return _Distance(self, made if device is None else made.to(device))


class _Distance(Meter):
    """torchmetrics' mean error, beside that of the labels' own mean, which it is measured against."""

    def __init__(self, metric: Deviation, error: Any) -> None:
        self.metric, self.error = metric, error
        self.spread = Spread(square=metric.name == "rmse")

    def update(self, outputs: Any, batch: Batch) -> None:
        """As in `Meter`."""
        why = self.metric.unfit(outputs, batch)
        if why:
            raise self.metric.refused(batch, why)
        ((output, labels),) = paired(in_eval(outputs), batch, self.metric.output, floats=False)
        output = output if output.is_floating_point() else output.float()
        wanted = labels.to(output.dtype).reshape(output.shape)
        self.error.update(output.contiguous(), wanted.contiguous())
        self.spread.add(wanted)

    def compute(self) -> float:
        """As in `Meter`."""
        return float(self.error.compute()) if self.spread.count else math.nan

    @property
    def guess(self) -> float | None:  # type: ignore[override]
        """The error of always giving the labels' mean."""
        found = self.spread.value
        return math.sqrt(found) if found is not None and self.metric.name == "rmse" else found


class Spread:
    """The mean distance of labels from their mean, column by column: its square, or its magnitude."""

    def __init__(self, square: bool) -> None:
        self.square = square
        self.count = 0
        self.centre: Tensor | float = 0.0
        self.sums: Tensor | float = 0.0
        self.first: Tensor | float = 0.0

    def add(self, labels: Tensor) -> None:
        """Take the labels of a batch, [samples, ...], in."""
        rows = labels.double().reshape(len(labels), -1) if labels.ndim <= 2 else labels.double().reshape(-1, 1)
        if not self.count:
            self.centre = rows.mean(0)
        off = rows - self.centre
        self.sums = self.sums + (off.square() if self.square else off.abs()).sum(0)
        self.first = self.first + off.sum(0)
        self.count += len(rows)

    @property
    def value(self) -> float | None:
        """The mean; around the mean of the first batch, of a magnitude. None of labels that are all the same."""
        if not self.count:
            return None
        mean = torch.as_tensor(self.sums) / self.count
        if self.square:
            mean = mean - (torch.as_tensor(self.first) / self.count).square()
        return float(mean.clamp(min=0).mean()) or None


# -- the loss ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossMetric(Metric):
    """The mean loss of the samples, by which a model is judged where there is nothing better."""

    name: str = "loss"
    higher_is_better: bool = False
    loss: Loss = field(kw_only=True)

    @property
    def title(self) -> str:
        """The name for people: `loss (mse)`."""
        return f"loss ({self.loss.name.rpartition(':')[2]})"

    def meter(self, device: torch.device | None = None) -> Meter:
        """As in `Metric`."""
        return _MeanLoss(self.loss)


class _Mean(Meter):
    """The mean over samples of what a function sums up over those of a batch."""

    def __init__(self, total: Callable[[Any, Batch], float]) -> None:
        self.total = total
        self.sum, self.count = 0.0, 0

    def update(self, outputs: Any, batch: Batch) -> None:
        """As in `Meter`."""
        self.sum += self.total(outputs, batch)
        self.count += batch.count

    def compute(self) -> float:
        """As in `Meter`."""
        return self.sum / self.count if self.count else math.nan


class _MeanLoss(_Mean):
    """The mean loss, beside that of a model which always gives the same."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(lambda outputs, batch: float(loss.total(outputs, batch)))
        self.loss = loss
        self.classes = 0
        self.spread = Spread(square=True)

    def update(self, outputs: Any, batch: Batch) -> None:
        """As in `Meter`."""
        super().update(outputs, batch)
        if self.loss.name in ("mse", "cross_entropy", "nll"):
            output, labels = paired(in_eval(outputs), batch, self.loss.output)[0]
            self.classes = output.shape[1] if output.ndim > 1 else 1
            if self.loss.name == "mse":
                self.spread.add(labels)

    @property
    def guess(self) -> float | None:  # type: ignore[override]
        """Of classes, where all are equally likely; of numbers, where each is the labels' mean. Else nobody knows."""
        known = {"mse": self.spread.value, "binary_cross_entropy": math.log(2)}
        return known.get(self.loss.name) or (math.log(self.classes) if self.classes > 1 else None)


# -- torchmetrics, and a user's own --------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenMetric(Metric):
    """A function of outputs and labels, or what makes an object with `update` and `compute`."""

    function: Callable[[Any, Any], Any] | None = field(default=None, compare=False, kw_only=True)
    make: Callable[[], Any] | None = field(default=None, compare=False, kw_only=True)
    key: str | None = None
    """Of several numbers that it gives by name, the one that counts."""

    def meter(self, device: torch.device | None = None) -> Meter:
        """As in `Metric`."""
        if self.function is not None:
            return _Mean(self._total)
        assert self.make is not None, "a metric is a function or makes a meter"
        with self.running():
            made = self.make()
        return _Object(self, made.to(device) if device is not None and hasattr(made, "to") else made)

    def running(self, hint: str | None = None) -> running:
        """A context for its author's code."""
        return running(f"the metric {self.name} failed", PlanError, at=self.at, hint=hint)

    def _total(self, outputs: Any, batch: Batch) -> float:
        assert self.function is not None, "a metric that makes meters isn't called"
        output, labels = chosen(outputs, batch, self.output)
        with self.running(_unlabelled(labels)):
            found = self.function(output, labels)
        values = self.numbers(found)
        if values.size not in (1, batch.count):
            message = f"the metric {self.name} gave {values.size} numbers for {batch.count} samples"
            raise DataError(message, at=self.at, hint="it gives one number, or one for each sample")
        return float(values.mean()) * batch.count

    def numbers(self, found: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What it gave, as numbers. Raises `DataError` for anything else."""
        if isinstance(found, Mapping):
            if self.key not in found:
                names = [str(name) for name in found]
                said = f"has no number '{self.key}'" if self.key is not None else "gives several numbers"
                hint = nearest(self.key or "", names) or f"for example key: {names[0]}"
                raise DataError(f"the metric {self.name} {said}: {', '.join(names)}", at=self.at, hint=hint)
            found = found[self.key]
        if isinstance(found, Tensor):
            found = found.detach().double().cpu().numpy()
        if found is None:
            raise DataError(f"the metric {self.name} gave None, not a number", at=self.at)
        try:
            return np.asarray(found, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise DataError(f"the metric {self.name} gave {_told(found)}, not a number", at=self.at) from error


class _Object(Meter):
    """An object of torchmetrics or of the user's, with `update` and `compute`."""

    def __init__(self, metric: GivenMetric, made: Any) -> None:
        self.metric, self.made = metric, made
        self.count = 0

    def update(self, outputs: Any, batch: Batch) -> None:
        """As in `Meter`."""
        if not is_torchmetrics(type(self.made)):
            output, labels = chosen(outputs, batch, self.metric.output)
            with self.metric.running(_unlabelled(labels)):
                self.made.update(output, labels)
        else:
            output, labels = self._pair(outputs, batch)
            try:
                self.made.update(*self._fitted(output, labels))
            except (ValueError, RuntimeError, TypeError, IndexError) as error:
                why = f"it can't take {_told(output)} and {_told(labels)}: {error}"
                raise self.metric.refused(batch, why) from error
        self.count += batch.count

    def _pair(self, outputs: Any, batch: Batch) -> tuple[Any, Any]:
        """The output that is judged, and its labels."""
        pairs = paired(in_eval(outputs), batch, self.metric.output, floats=False)
        if len(pairs) > 1:
            raise self.metric.refused(batch, f"it is of one output, and {_not_one(pairs, outputs, batch)}")
        if not pairs:  # such as the boxes of a detector
            output, labels = chosen(outputs, batch, self.metric.output)
            if labels is None:
                raise self.metric.refused(batch, "it needs labels")
            return output, labels
        return pairs[0]

    def _fitted(self, output: Any, labels: Any) -> tuple[Any, Any]:
        """An output and its labels as torchmetrics wants them: classes in whole numbers, and numbers in the output's
        dtype and shape."""
        if not isinstance(output, Tensor) or not isinstance(labels, Tensor):
            return output, labels
        kind = type(self.made).__module__.split(".")[1]
        if output.numel() == labels.numel() and output.shape != labels.shape:
            labels = labels.reshape(output.shape)
        elif labels.ndim == output.ndim > 1 and labels.shape[1] == 1 < output.shape[1]:
            labels = labels[:, 0]
        if kind == "regression":
            return output, labels.to(output.dtype)
        whole = labels.is_floating_point() and kind in ("classification", "segmentation")
        return output, labels.long() if whole and bool((labels == labels.round()).all()) else labels

    def compute(self) -> float:
        """As in `Meter`. Raises `DataError` where it gives no single number."""
        if not self.count:
            return math.nan
        with self.metric.running():
            found = self.made.compute()
        values = self.metric.numbers(found)
        if values.size != 1:
            message = f"the metric {self.metric.name} gave {values.size} numbers, and one is needed"
            raise DataError(message, at=self.metric.at, hint="many classes of torchmetrics take average: macro")
        return float(values[0])


def _unlabelled(labels: Any) -> str | None:
    """A hint where a metric may have failed for want of labels."""
    return "a batch is (inputs, labels), and the data give inputs alone" if labels is None else None


def is_torchmetrics(made: type) -> bool:
    """Whether a class is one of torchmetrics' own."""
    return made.__module__.partition(".")[0] == "torchmetrics"


def _torchmetrics(name: str, at: Span | None) -> Any:
    """The package. Raises `PlanError` where it isn't installed."""
    try:
        package = import_module("torchmetrics")
    except ModuleNotFoundError as error:
        message = f"the metric {name} needs torchmetrics, which isn't installed"
        raise PlanError(message, at=at, hint="pip install 'prunec[train]'") from error
    return package


def find_torchmetrics(name: str, at: Span | None) -> type:
    """torchmetrics' class of that name, in whichever part of it. Raises `PlanError` where there is none."""
    package = _torchmetrics(name, at)
    known: dict[str, type] = {}
    for part in (*_parts(package), package):
        found = getattr(part, name, None)
        if isinstance(found, type) and issubclass(found, package.Metric):
            return found
        known |= {n: c for n in part.__all__ if isinstance(c := getattr(part, n), type)}
    same = {other.casefold().replace("_", ""): other for other in (*known, *NAMES)}
    hint = nearest(name, [*known, *NAMES])
    if (meant := same.get(name.casefold())) is not None:
        hint = f"did you mean '{meant}'?"
    raise PlanError(f"torchmetrics has no class '{name}'", at=at, hint=hint)


def _parts(package: Any) -> Iterator[Any]:
    """The packages for the different tasks, those of tensors first."""
    first = ("classification", "regression", "segmentation", "image")
    others = [m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg and m.name not in first]
    for name in (*first, *others):
        part = import_module(f"{package.__name__}.{name}")
        if name not in ("functional", "utilities") and hasattr(part, "__all__"):
            yield part


def fresh(made: Any) -> Any:
    """A meter of the same kind as this one, which has seen nothing."""
    copied = copy.deepcopy(made)
    if hasattr(copied, "reset"):
        copied.reset()
    return copied


# -- by name -------------------------------------------------------------------------------------------------------

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "accuracy": ("ignore_index",),
    "top5": ("ignore_index",),
    "mean_iou": ("ignore_index",),
    "rmse": (),
    "mae": (),
    "loss": (),
}
"""Metrics that are known by name, with the arguments that a plan may give."""


def known_metric(name: str, args: Mapping[str, Any], output: Output | None, at: Span | None, loss: Loss) -> Metric:
    """A metric by name; `loss` is the plan's."""
    ignored = args.get("ignore_index")
    match name:
        case "accuracy" | "top5":
            return Accuracy(name, output=output, at=at, top=5 if name == "top5" else 1, ignored=ignored)
        case "mean_iou":
            return MeanIou(output=output, at=at, ignored=ignored)
        case "loss":
            return LossMetric(at=at, loss=loss)
        case _:
            return Deviation(name, output=output, at=at)
