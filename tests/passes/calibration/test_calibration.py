"""How much data is looked at, in which pieces, and data that don't fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from calibrating import DATA, EXACT, ON_DATA, Samples, flat, scores
from pydantic import TypeAdapter, ValidationError
from torch import nn

from prunec.compiler.errors import DataError, PassError
from prunec.compiler.pass_base import Context
from prunec.compiler.tracing.trace import trace
from prunec.passes.calibration.calibration import Bytes, Calibration, bytes_of_a_sample
from prunec.passes.score import Score


def test_how_much_is_looked_at(program):
    first = Samples(DATA.inputs[:12], DATA.labels[:12])
    expected = flat(scores(program, "taylor", first))
    for options in ({"samples": 12}, {"batches": 3}):
        found = scores(program, "taylor", DATA.in_batches_of(4 if "batches" in options else 8), **options)
        np.testing.assert_allclose(flat(found), expected, **EXACT)


def test_one_pass_over_the_data_and_its_progress(stream):
    seen: list[tuple[str, int, int]] = []

    class Once(Samples):
        passes = 0

        def train(self):
            Once.passes += 1
            return super().train()

    data = Once(DATA.inputs, DATA.labels)
    Score(criterion="taylor", batches=2).run(stream, Context(data=data, progress=lambda *step: seen.append(step)))
    assert Once.passes == 1
    assert seen == [("calibrate", 1, 2), ("calibrate", 2, 2), ("calibrate", 1, 1)]


@pytest.mark.parametrize("text", [0, "0", "0.0MB", "0 kB", True, "-1", "5 Mb", "MB", ""])
def test_no_memory_is_no_bound(text):
    with pytest.raises(ValidationError, match="must be a number of bytes"):
        TypeAdapter(Bytes).validate_python(text)


@pytest.mark.parametrize(("text", "bytes_"), [(1, 1), ("512", 512), ("1.5kB", 1500), ("2 GiB", 2 * 2**30)])
def test_memory_in_units(text, bytes_):
    assert TypeAdapter(Bytes).validate_python(text) == bytes_


class Kinds(nn.Module):
    """Values of elements of eight bytes, of four and of one."""

    def forward(self, x):
        return (x.float() > 0).sum(1)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_bytes_of_a_sample_count_each_elements_size(batch):
    program = trace(Kinds(), (torch.rand(batch, 10, dtype=torch.float64),))
    assert bytes_of_a_sample(program) == 10 * (8 + 4 + 1) + 8 + 8  # the last value is counted as the output, too


def test_memory_is_a_bound(program):
    one = bytes_of_a_sample(program)
    pieces = Calibration(memory=5 * one + 1).pieces(program, Context(data=DATA.in_batches_of(8)), one)
    assert [piece.count for piece in pieces] == [5, 3, 5, 3, 4]
    with pytest.raises(PassError, match="one sample needs"):
        scores(program, "taylor", DATA, memory=one - 1)


@pytest.mark.parametrize("name", [*ON_DATA, "torch_pruning"])
def test_without_data(program, name):
    made = {name: {"importance": "TaylorImportance"}} if name == "torch_pruning" else name
    with pytest.raises(PassError, match="calibration needs data, and the plan has none"):
        scores(program, made)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Samples(DATA.inputs, DATA.labels.double()), {}, "the loss cross_entropy can't take outputs"),
        (Samples(DATA.inputs[:, :1], DATA.labels), {}, "the model can't take the data's batches, of shape"),
        (Samples(DATA.inputs[:0], DATA.labels[:0]), {}, "the data's split 'train' is empty"),
    ],
    ids=["labels", "shape", "empty"],
)
def test_data_that_do_not_fit(program, data, options, message):
    with pytest.raises(DataError, match=message):
        scores(program, "taylor", data, **options)


def test_inputs_of_nan_are_refused(program):
    data = Samples(torch.full_like(DATA.inputs, math.nan), DATA.labels)
    with pytest.raises(DataError, match="its inputs hold NaN"):
        scores(program, "activation_mean", data)
