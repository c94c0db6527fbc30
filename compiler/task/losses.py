"""The loss that a model was trained for: of each sample, for who compares samples, and the mean, for who trains.

    loss: cross_entropy                          by name, with what torch's function of that name takes
    loss: {name: cross_entropy, args: {label_smoothing: 0.1, ignore_index: 255}}
    loss: dice.py:dice                           def dice(outputs, labels): one number, or one for each sample
    loss: {name: torch.nn:HuberLoss, args: {delta: 0.5}, output: depth}

Losses of single samples are means over everything else, such as pixels. A function of the user's is called with the
outputs and labels as they are, or with those of one `output`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.compiler.data import Batch, told
from prunec.compiler.errors import DataError, PlanError, Span
from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.task.outputs import Output, chosen, paired
from prunec.compiler.user_code import running


@dataclass(frozen=True)
class Loss(ABC):
    """A loss; see the module's text."""

    name: str
    """As a plan has it: `cross_entropy`, or `module:callable`."""
    output: Output | None = None
    """Which output it is of; None for all that have labels, or the first where the labels are one tensor."""
    at: Span | None = field(default=None, compare=False)
    """Where the plan names it."""

    @abstractmethod
    def each(self, outputs: Any, batch: Batch, who: str = "this pass") -> Tensor:
        """The loss of every sample, [samples], summed over the outputs that have labels; `who` needs it, for messages.

        Raises `DataError` where labels and outputs don't fit the loss or each other, where it gives one number for all
        samples, and where it is NaN.
        """

    @abstractmethod
    def total(self, outputs: Any, batch: Batch) -> Tensor:
        """The summed loss of the samples, a scalar in float64; a loss that gives one number is taken for their mean.

        Raises as `each` does, except for one number.
        """

    @abstractmethod
    def mean(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss to train by, a scalar. Raises `DataError` where labels and outputs don't fit; NaN is given back."""


# -- losses of torch -----------------------------------------------------------------------------------------------


def _classes(y: Tensor, t: Tensor) -> Tensor:
    """Classes as torch wants them: in int64, and [samples, ...] where they are [samples, 1, ...]. Shares of classes
    stay."""
    if t.is_floating_point():
        return t
    return t.long().squeeze(1) if t.ndim == y.ndim and t.shape[1] == 1 else t.long()


def _numbers(y: Tensor, t: Tensor) -> Tensor:
    """As many numbers as outputs, in their dtype."""
    return t.to(y.dtype).reshape(y.shape)


@dataclass(frozen=True)
class _Kind:
    """A function of torch's, how labels are made ready for it, and the arguments of it that a plan may give."""

    function: Callable[..., Any]
    labels: Callable[[Tensor, Tensor], Tensor]
    args: tuple[str, ...] = ()
    classes: bool = False
    """Whether it compares classes: of a single one it is zero, whatever the model gives."""


_KINDS: Final[Mapping[str, _Kind]] = {
    "cross_entropy": _Kind(F.cross_entropy, _classes, ("label_smoothing", "ignore_index", "weight"), classes=True),
    "nll": _Kind(F.nll_loss, _classes, ("ignore_index", "weight"), classes=True),
    "mse": _Kind(F.mse_loss, _numbers),
    "binary_cross_entropy": _Kind(F.binary_cross_entropy_with_logits, _numbers, ("weight", "pos_weight")),
}

_WEIGHTS: Final = ("weight", "pos_weight")
"""Arguments that are tensors; a plan has them as lists of numbers."""

_IGNORED: Final = -100
"""The class that torch leaves out where `ignore_index` says no other."""


@dataclass(frozen=True)
class TorchLoss(Loss):
    """A loss of torch's, by name; `args` are those of torch's function."""

    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.name in _KINDS, f"{self.name} is the name of a loss"

    def each(self, outputs: Any, batch: Batch, who: str = "this pass") -> Tensor:
        """As in `Loss`."""
        return reduce(torch.add, [self._each(output, labels, batch) for output, labels in self._pairs(outputs, batch)])

    def total(self, outputs: Any, batch: Batch) -> Tensor:
        """As in `Loss`."""
        return self.each(outputs, batch).double().sum()

    def mean(self, outputs: Any, batch: Batch) -> Tensor:
        """As in `Loss`, with torch's own mean: elements of the class `ignore_index` don't count."""
        pairs = self._pairs(outputs, batch)
        return reduce(torch.add, [self._taken(output, labels, batch, "mean") for output, labels in pairs])

    def _each(self, output: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        found = self._taken(output, labels, batch, "none")
        if found.isnan().any():
            raise batch.place.fault(f"the loss {self.name} is NaN{_where_nan(output, labels)}")
        if found.ndim < 2:
            return found
        if _KINDS[self.name].classes and not labels.is_floating_point():
            ignored = (labels == self.args.get("ignore_index", _IGNORED)).flatten(1)
            if ignored.any():
                return found.flatten(1).sum(1).div((~ignored).sum(1).clamp(min=1))
        return found.flatten(1).mean(1)

    def _taken(self, output: Tensor, labels: Tensor, batch: Batch, reduction: str) -> Tensor:
        kind = _KINDS[self.name]
        if kind.classes and (output.ndim < 2 or output.shape[1] < 2):
            message = f"the loss {self.name} is of outputs [samples, classes]; the model gives {list(output.shape)}"
            others = ", ".join(name for name, other in _KINDS.items() if not other.classes)
            several = "" if isinstance(batch.labels, Tensor) else "; 'output' says which of several is meant"
            raise batch.place.fault(message, f"losses of other outputs: {others}{several}")
        args = {key: self._argument(key, value, output) for key, value in self.args.items()}
        try:
            found: Tensor = kind.function(output, kind.labels(output, labels), reduction=reduction, **args)
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = f"outputs {list(output.shape)} and labels {list(labels.shape)}"
            others = f"losses: {', '.join(name for name in _KINDS if name != self.name)}"
            raise batch.place.fault(f"the loss {self.name} can't take {shapes}: {error}", others) from error
        return found

    def _argument(self, key: str, value: Any, output: Tensor) -> Any:
        return torch.as_tensor(value, dtype=output.dtype, device=output.device) if key in _WEIGHTS else value

    def _pairs(self, outputs: Any, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        pairs = paired(outputs, batch, self.output)
        if not pairs:
            message = f"the loss {self.name} needs labels: a tensor, or one for each output; {told(batch.labels)}"
            raise batch.place.fault(message, f"a batch for {self.name} is (inputs, labels)")
        return pairs


def _where_nan(output: Tensor, labels: Tensor) -> str:
    """Where the NaN of a loss comes from: from the outputs, or from the labels."""
    values = {"the model's outputs": output, "its labels": labels}
    return next((f": {what} hold NaN" for what, tensor in values.items() if tensor.isnan().any()), "")


LOSSES: Final[Mapping[str, TorchLoss]] = {name: TorchLoss(name) for name in _KINDS}
"""By the name that a plan uses; `binary_cross_entropy` is of logits."""

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {name: kind.args for name, kind in _KINDS.items()}
"""What a plan may say beside the name."""

DEFAULT: Final = LOSSES["cross_entropy"]
"""The loss of a plan that names none."""


# -- losses of users -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenLoss(Loss):
    """A function of the user's, called with outputs and labels. Whatever it raises is told as its own."""

    function: Callable[[Any, Any], Any] = field(kw_only=True, compare=False)

    def each(self, outputs: Any, batch: Batch, who: str = "this pass") -> Tensor:
        """As in `Loss`."""
        found = self._checked(outputs, batch)
        if found.ndim or batch.count == 1:
            return found.reshape(batch.count, -1).mean(1)
        message = f"the loss {self.name} gives one number for {batch.count} samples, and {who} needs that of each"
        raise DataError(message, at=self.at, hint="return one for each sample, [samples]: reduction='none' in torch")

    def total(self, outputs: Any, batch: Batch) -> Tensor:
        """As in `Loss`."""
        found = self._checked(outputs, batch)
        return found.double().mean() * batch.count

    def mean(self, outputs: Any, batch: Batch) -> Tensor:
        """As in `Loss`."""
        return self._called(outputs, batch).mean()

    def _checked(self, outputs: Any, batch: Batch) -> Tensor:
        found = self._called(outputs, batch)
        if found.isnan().any():
            raise batch.place.fault(f"the loss {self.name} is NaN")
        return found

    def _called(self, outputs: Any, batch: Batch) -> Tensor:
        """What the function gives: a scalar, or [samples, ...]."""
        output, labels = chosen(outputs, batch, self.output)
        if isinstance(self.function, nn.Module):
            self.function.to(next(tensors_in(output), torch.zeros(())).device)
        with running(f"the loss {self.name} failed", PlanError, at=self.at, hint=_unlabelled(labels)):
            found = self.function(output, labels)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise DataError(f"the loss {self.name} gave {kind}, not a tensor of floats", at=self.at)
        if found.numel() == 1:
            return found.reshape(())
        sizes = [value.numel() for value in (output, labels) if isinstance(value, Tensor)]
        if len(sizes) == 2 and found.numel() > max(sizes):
            shapes = f"{list(found.shape)} for outputs {list(output.shape)} and labels {list(labels.shape)}"
            hint = "they were broadcast: squeeze the outputs, or give the labels their shape"
            raise DataError(f"the loss {self.name} gave {shapes}", at=self.at, hint=hint)
        if not found.ndim or len(found) != batch.count:
            message = f"the loss {self.name} gave {list(found.shape)} for {batch.count} samples"
            raise DataError(message, at=self.at, hint="a loss is one number, or one for each sample")
        return found


def _unlabelled(labels: Any) -> str | None:
    """A hint where a loss may have failed for want of labels."""
    return "a batch is (inputs, labels), and the data give inputs alone" if labels is None else None
