"""Which samples of the plan's data a pass looks at, in pieces that memory holds, and the loss of each sample.

    data.train()     batch of 128                  batch of 128                 ...
    pieces           48 | 48 | 32                  48 | 48 | 32                 with a bound on memory
    losses           [48] one a sample             ...

A piece is as large as the bound on memory allows, so no figure may depend on where one ends: losses are those of single
samples, and the model runs in evaluation mode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, Final

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, WithJsonSchema
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.data import Batch, Data, told
from prunec.compiler.errors import DataError, PassError
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.train_eval import ByMode, in_eval
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.options import wrong

SAMPLES: Final = 1024
"""How many samples are used where the plan doesn't say."""

_UNITS: Final = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _bytes(value: object) -> int:
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(value))
    if isinstance(value, bool) or match is None or match[2] not in _UNITS or not float(match[1]):
        raise wrong("must be a number of bytes", hint="for example: 512MB, 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]"}]}),
]
"""A number of bytes, which a plan may also write as `512MB` or `2GiB`."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function of outputs and labels of N samples to N losses, [N]."""


def _each(losses: Tensor) -> Tensor:
    """One number a sample: the mean over everything else (the pixels of a segmentation)."""
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def _classes(y: Tensor, t: Tensor) -> Tensor:
    """Classes as torch wants them: in int64, and [samples] where they are [samples, 1]. Shares of classes stay."""
    if t.is_floating_point():
        return t
    return t.long().squeeze(1) if y.ndim == 2 and t.shape == (len(y), 1) else t.long()


LOSSES: Final[Mapping[str, Loss]] = {
    "cross_entropy": lambda y, t: _each(F.cross_entropy(y, _classes(y, t), reduction="none")),
    "nll": lambda y, t: _each(F.nll_loss(y, _classes(y, t), reduction="none")),
    "mse": lambda y, t: _each(F.mse_loss(y, t.to(y.dtype).reshape(y.shape), reduction="none")),
    "binary_cross_entropy": lambda y, t: _each(
        F.binary_cross_entropy_with_logits(y, t.to(y.dtype).reshape(y.shape), reduction="none")
    ),
}
"""By the name that a plan uses; `binary_cross_entropy` is of logits."""

_OF_CLASSES: Final = ("cross_entropy", "nll")
"""Losses that compare classes: of a single one they are zero, whatever the model gives."""


@dataclass(frozen=True)
class Calibration:
    """Which of the plan's data are used: so many batches or samples; the first `SAMPLES` samples by default."""

    batches: int | None = None
    samples: int | None = None
    split: str = "train"
    loss: str = "cross_entropy"
    memory: int | None = None
    """The most bytes that the values of one run may take."""

    def pieces(
        self, program: Program, context: Context, bytes_each: int, at_once: int | None = None
    ) -> Iterator[Batch]:
        """The samples in the data's order, in pieces as large as memory allows; one sample takes `bytes_each`.

        Raises `PassError` without data or where not even one sample fits, and `DataError` where there are no samples.
        """
        size = self._size(bytes_each, at_once)
        data, done, wanted = _data(context), 0, self._wanted()
        device = next((t.device for t in program.tensors.values()), torch.device("cpu"))
        for index, batch in enumerate(data.read(self.split)):
            if index == self.batches or done >= wanted:
                break
            piece = batch.like(program.inputs, device)[: max(0, wanted - done)]
            if any(x.isnan().any() for x in tensors_in(piece.inputs)):
                raise piece.place.fault("its inputs hold NaN, of which nothing can be measured")
            step = size or max(piece.count, 1)
            for start in range(0, piece.count, step):
                yield piece[start : start + step]
            done += piece.count
            context.progress("calibrate", *((index + 1, self.batches) if self.batches else (done, max(wanted, done))))
        if not done:
            raise DataError(f"the data's split '{self.split}' is empty", at=data.at)
        context.progress("calibrate", 1, 1)

    def check(self, program: Program) -> None:
        """Raise `PassError` where `memory` doesn't hold one sample."""
        self._size(bytes_of_a_sample(program), None)

    def first(self, program: Program, context: Context) -> tuple[Batch, Any]:
        """The first samples, and what the model gives for them. Raises as `pieces` does, and `DataError` where the
        model can't take them."""
        piece = next(self.pieces(program, context, bytes_of_a_sample(program)))
        with torch.no_grad():
            return piece, piece.through(program.deployed.module)

    def losses(self, outputs: Any, piece: Batch) -> Tensor:
        """The loss of every sample, [N], summed over the outputs that have labels. Raises `DataError` where labels and
        outputs don't fit the loss, or each other."""
        pairs = _paired(outputs, piece)
        if not pairs:
            message = f"the loss {self.loss} needs labels: a tensor, or one for each output; {told(piece.labels)}"
            raise piece.place.fault(message, f"a batch for {self.loss} is (inputs, labels)")
        return reduce(torch.add, [self._loss(output, labels, piece) for output, labels in pairs])

    def _loss(self, output: Tensor, labels: Tensor, piece: Batch) -> Tensor:
        if self.loss in _OF_CLASSES and (output.ndim < 2 or output.shape[1] < 2):
            message = f"the loss {self.loss} is of outputs [samples, classes]; the model gives {list(output.shape)}"
            others = ", ".join(name for name in LOSSES if name not in _OF_CLASSES)
            raise piece.place.fault(message, f"losses of other outputs: {others}")
        try:
            found = LOSSES[self.loss](output, labels)
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = f"outputs {list(output.shape)} and labels {list(labels.shape)}"
            raise piece.place.fault(f"the loss {self.loss} can't take {shapes}: {error}", _other(self.loss)) from error
        if found.isnan().any():
            raise piece.place.fault(f"the loss {self.loss} is NaN{_where_nan(output, labels)}")
        return found

    def _wanted(self) -> int:
        if self.samples is not None:
            return self.samples
        return SAMPLES if self.batches is None else 2**62

    def _size(self, bytes_each: int, at_once: int | None) -> int | None:
        """The number of samples in a piece; None for a whole batch."""
        if self.memory is None:
            return at_once
        fitting = self.memory // max(bytes_each, 1)
        if not fitting:
            least = f"{bytes_each / 1e6:,.1f} MB"
            raise PassError(f"one sample needs {least}, which is more than memory allows", keys=("memory",))
        return min(fitting, at_once or fitting)


def _data(context: Context) -> Data:
    if context.data is None:
        hint = "name a data factory, for example data: prunec.models.data:digits"
        raise PassError("calibration needs data, and the plan has none", keys=("criterion",), hint=hint)
    return Data.of(context.data)


def _where_nan(output: Tensor, labels: Tensor) -> str:
    """Where the NaN of a loss comes from: from the outputs, or from the labels."""
    values = {"the model's outputs": output, "its labels": labels}
    return next((f": {what} hold NaN" for what, tensor in values.items() if tensor.isnan().any()), "")


def _other(loss: str) -> str:
    return f"losses: {', '.join(name for name in LOSSES if name != loss)}"


def first_output(outputs: Any, piece: Batch) -> Tensor:
    """The first floating-point tensor among a model's outputs."""
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise piece.place.fault("the model gives no tensor of floats to take a loss of")


def judged(outputs: Any, piece: Batch) -> list[Tensor]:
    """The outputs that a loss is taken of: the first one. In both modes, all outputs of train mode with the shape of
    eval mode's first: losses are made for those (eval mode may give shares instead of logits), and auxiliary heads
    count."""
    first = first_output(outputs, piece)
    if not isinstance(outputs, ByMode):
        return [first]
    leaves = (leaf for leaf in pytree.tree_leaves(outputs.train) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.shape == first.shape] or [first]


def _paired(outputs: Any, piece: Batch) -> list[tuple[Tensor, Tensor]]:
    """Outputs with their labels: those that are `judged` with the one tensor; or of several labels, each with the
    output of its name or position."""
    labels, given = piece.labels, in_eval(outputs)
    if isinstance(labels, Tensor):
        return [(output, labels) for output in judged(outputs, piece)]
    if isinstance(labels, Mapping) and isinstance(given, Mapping):
        pairs = [(given[name], each) for name, each in labels.items() if name in given]
    elif isinstance(labels, tuple | list) and isinstance(given, tuple | list) and len(labels) == len(given):
        pairs = list(zip(given, labels, strict=True))
    else:
        pairs = []
    return [(output, each) for output, each in pairs if isinstance(output, Tensor) and isinstance(each, Tensor)]


def bytes_of_a_sample(program: Program) -> int:
    """The bytes of all values of one run, for one sample: what a backward pass may need at once."""
    batch = batch_of(program.inputs) or 1
    values = (node.meta.get("val") for node in program.graph.nodes)
    tensors = (leaf for value in values for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return sum(t.numel() * t.element_size() for t in tensors) // batch
