"""Losses by name and of a user: of each sample, summed, and the mean to train by; and what they can't take."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from prunec.compiler.data import Batch
from prunec.compiler.errors import DataError, PlanError
from prunec.compiler.task.losses import LOSSES, GivenLoss, TorchLoss

CROSS = LOSSES["cross_entropy"]
X = torch.zeros(4, 1)
LOGITS = torch.tensor([[2.0, 0], [0, 2], [1, 1], [0, 3]])
CLASSES = torch.tensor([0, 0, 1, 1])
EACH = F.cross_entropy(LOGITS, CLASSES, reduction="none")


def batch(labels):
    return Batch(torch.zeros(4, 1), labels)


@pytest.mark.parametrize("shape", [(), (4,), (4, 1)])
def test_a_loss_of_classes_needs_classes(shape):
    piece = Batch(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"cross_entropy is of outputs \[samples, classes\]"):
        LOSSES["cross_entropy"].each(torch.zeros(shape), piece)


def test_a_loss_that_is_nan_is_refused():
    piece = Batch(torch.zeros(4, 2), torch.full((4, 2), math.nan))
    with pytest.raises(DataError, match="the loss mse is NaN: its labels hold NaN"):
        LOSSES["mse"].each(torch.zeros(4, 2), piece)
    with pytest.raises(DataError, match="the loss mse is NaN: the model's outputs hold NaN"):
        LOSSES["mse"].each(torch.full((4, 2), math.nan), Batch(torch.zeros(4, 2), torch.zeros(4, 2)))


def test_each_sample_the_sum_and_the_mean():
    assert torch.equal(CROSS.each(LOGITS, batch(CLASSES)), EACH)
    assert CROSS.total(LOGITS, batch(CLASSES)) == EACH.double().sum()
    assert torch.equal(CROSS.mean(LOGITS, batch(CLASSES[:, None])), F.cross_entropy(LOGITS, CLASSES))


def test_the_mean_is_torchs_own_with_its_arguments():
    loss = TorchLoss("cross_entropy", args={"label_smoothing": 0.1, "weight": [1, 3]})
    wanted = F.cross_entropy(LOGITS, CLASSES, label_smoothing=0.1, weight=torch.tensor([1.0, 3.0]))
    assert torch.equal(loss.mean(LOGITS, batch(CLASSES)), wanted)


def test_pixels_that_do_not_count():
    outputs = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 4, 5, dtype=torch.uint8)
    labels[0, 1:], labels[1] = 255, 255
    loss, pixels = TorchLoss("cross_entropy", args={"ignore_index": 255}), Batch(torch.zeros(2, 1), labels)
    kept = F.cross_entropy(outputs[:1, :, :1], torch.zeros(1, 1, 5, dtype=torch.int64))
    torch.testing.assert_close(loss.each(outputs, pixels), torch.stack([kept, torch.tensor(0.0)]))
    torch.testing.assert_close(loss.mean(outputs, pixels), kept)
    masks = Batch(torch.zeros(2, 1), labels[:, None])
    torch.testing.assert_close(loss.each(outputs, masks), torch.stack([kept, torch.tensor(0.0)]))


OTHER = torch.ones(4, 2)
PAIRED = {
    "one tensor of labels": ((LOGITS, OTHER), CLASSES, None, EACH),
    "by name": ({"a": OTHER, "b": LOGITS}, {"b": CLASSES}, None, EACH),
    "the one of that name": ({"a": OTHER, "b": LOGITS}, CLASSES, "b", EACH),
    "the one of that name, and its labels": ({"a": OTHER, "b": LOGITS}, (OTHER, CLASSES), "b", EACH),
    "the one at that place": ((OTHER, LOGITS), (OTHER, CLASSES), 1, EACH),
}


@pytest.mark.parametrize("name", PAIRED)
def test_which_output_is_held_against_which_labels(name):
    outputs, labels, output, wanted = PAIRED[name]
    assert torch.equal(TorchLoss("cross_entropy", output).each(outputs, batch(labels)), wanted)


def test_the_losses_of_several_outputs_are_added():
    labels = (CLASSES, 1 - CLASSES)
    wanted = EACH + F.cross_entropy(LOGITS, 1 - CLASSES, reduction="none")
    assert torch.equal(CROSS.each((LOGITS, LOGITS), batch(labels)), wanted)


def test_an_output_that_the_model_has_not():
    with pytest.raises(DataError, match=r"the model has no output 'logit': it gives aux, logits(.|\n)*mean 'logits'"):
        TorchLoss("cross_entropy", "logit").mean({"aux": OTHER, "logits": LOGITS}, batch(CLASSES))
    with pytest.raises(DataError, match="the model has no output '2': it gives 2 outputs, numbered from 0"):
        TorchLoss("cross_entropy", 2).mean((OTHER, LOGITS), batch(CLASSES))


# -- a user's ----------------------------------------------------------------------------------------------------------


def given(function, **options):
    return GivenLoss("dice.py:dice", **options, function=function)


def test_a_function_of_outputs_and_labels():
    loss = given(lambda y, t: F.cross_entropy(y, t, reduction="none"))
    assert torch.equal(loss.each(LOGITS, batch(CLASSES)), EACH)
    assert loss.total(LOGITS, batch(CLASSES)) == pytest.approx(float(EACH.sum()), rel=1e-6)
    assert torch.equal(loss.mean(LOGITS, batch(CLASSES)), EACH.mean())
    pixels = given(lambda y, t: (y - t).abs())
    assert torch.equal(pixels.each(LOGITS, batch(OTHER)), (LOGITS - OTHER).abs().mean(1))


def test_one_number_is_the_mean_and_of_no_single_sample():
    loss = given(F.cross_entropy)
    assert loss.total(LOGITS, batch(CLASSES)) == pytest.approx(float(EACH.sum()), rel=1e-6)
    with pytest.raises(DataError, match="dice gives one number for 4 samples, and taylor needs that of each"):
        loss.each(LOGITS, batch(CLASSES), "taylor")
    torch.testing.assert_close(loss.each(LOGITS[:1], Batch(X[:1], CLASSES[:1])), EACH[:1])


def test_a_function_gets_outputs_and_labels_as_they_are():
    seen = []
    given(lambda y, t: seen.append((y, t)) or torch.tensor(1.0)).mean({"a": OTHER, "b": LOGITS}, batch({"x": CLASSES}))
    given(lambda y, t: seen.append((y, t)) or torch.tensor(1.0), output="b").mean(
        {"a": OTHER, "b": LOGITS}, batch({"a": CLASSES, "b": OTHER})
    )
    assert seen[0][0].keys() == {"a", "b"}
    assert seen[0][1].keys() == {"x"}
    assert seen[1][0] is LOGITS
    assert seen[1][1] is OTHER


def test_broadcasting_is_refused():
    loss = given(lambda y, t: (y - t) ** 2)
    with pytest.raises(DataError, match=r"gave \[4, 4\] for outputs \[4, 1\] and labels \[4\]"):
        loss.each(torch.zeros(4, 1), batch(torch.zeros(4)))


def broken(outputs, labels):
    raise RuntimeError("no such thing")


def test_what_it_raises_is_its_own():
    with pytest.raises(PlanError, match=r"the loss dice.py:dice failed: RuntimeError: no such thing") as caught:
        given(broken).mean(LOGITS, batch(CLASSES))
    assert caught.value.at.file == __file__
    with pytest.raises(PlanError, match="and the data give inputs alone"):
        given(F.mse_loss).mean(LOGITS, batch(None))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (1.5, "gave a float, not a tensor of floats"),
        (CLASSES, "gave a tensor of torch.int64, not a tensor of floats"),
        (torch.zeros(3), r"gave \[3\] for 4 samples"),
        (torch.full((4,), math.nan), "is NaN"),
    ],
)
def test_what_is_no_loss(result, message):
    with pytest.raises(DataError, match=message):
        given(lambda y, t: result).each(LOGITS, batch(CLASSES))
