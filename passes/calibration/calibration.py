"""Which samples of the plan's data a pass looks at, in pieces that memory holds, and by which loss.

    data.train()     batch of 128                  batch of 128                 ...
    pieces           48 | 48 | 32                  48 | 48 | 32                 with a bound on memory

A piece is as large as the bound on memory allows, so no figure may depend on where one ends: losses are summed over
samples, and the model runs in evaluation mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

import torch
from pydantic import BeforeValidator, WithJsonSchema
from torch import Tensor
from torch.utils import _pytree as pytree

from prunec.compiler.data import Batch, Data
from prunec.compiler.errors import DataError, PassError
from prunec.compiler.ir.inputs import batch_of, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.options import wrong
from prunec.compiler.task.losses import DEFAULT, Loss

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


@dataclass(frozen=True)
class Calibration:
    """Which of the plan's data are used: so many batches or samples; the first `SAMPLES` samples by default."""

    batches: int | None = None
    samples: int | None = None
    split: str = "train"
    loss: Loss = DEFAULT
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

    def ready(self, program: Program, context: Context, who: str) -> None:
        """Raise `PassError` without data, which `who` needs, and `DataError` where they don't fit the model. Labels
        aren't asked for."""
        if context.data is None:
            hint = "name a data factory, for example data: prunec.models.data:digits; labels aren't needed"
            raise PassError(f"{who} needs some samples, and the plan has no data", hint=hint)
        context.data.require(self.split)
        self.first(program, context)

    def first(self, program: Program, context: Context) -> tuple[Batch, Any]:
        """The first samples, and what the model gives for them. Raises as `pieces` does, and `DataError` where the
        model can't take them."""
        piece = next(self.pieces(program, context, bytes_of_a_sample(program)))
        with torch.no_grad():
            return piece, piece.through(program.deployed.module)

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


def bytes_of_a_sample(program: Program) -> int:
    """The bytes of all values of one run, for one sample: what a backward pass may need at once."""
    batch = batch_of(program.inputs) or 1
    values = (node.meta.get("val") for node in program.graph.nodes)
    tensors = (leaf for value in values for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return sum(t.numel() * t.element_size() for t in tensors) // batch
