"""The metric on whatever data give, or why there is none; and what is said when the slim model has forgotten all."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from prunec.compiler.data import Data
from prunec.compiler.driver.evaluation import (
    Compared,
    Evaluated,
    collapse,
    compare,
    evaluate,
    evaluate_first,
    settled,
    try_out,
)
from prunec.compiler.errors import DataError, Span
from prunec.compiler.task.losses import LOSSES
from prunec.compiler.task.metrics import DefaultAccuracy, GivenMetric, known_metric

LOGITS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
BATCHES = [(LOGITS, torch.tensor([0, 1, 0, 0])), (LOGITS[:1], torch.tensor([2]))]
AT = Span("plan.yaml", 4, 7)


class Named(nn.Module):
    def forward(self, x, scale=1.0):
        return x * scale


def found(module, given, **options) -> Evaluated:
    return evaluate(module, Data.of(given, at=AT), LOGITS, **options)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x,), lambda x: [x, 2.0], lambda x: {"scale": 1.0, "x": x}, lambda x: x.double().numpy()],
    ids=["tensor", "tuple", "two", "by name", "array"],
)
def test_the_share_of_samples_at_their_label(wrap):
    measured = found(Named(), [(wrap(x), labels) for x, labels in BATCHES])
    assert measured.value == 0.6
    assert measured.guess == 0.6  # three of five samples are of class 0
    assert (measured.split, measured.samples, measured.left_out) == ("test", 5, "")


@pytest.mark.parametrize("change", [lambda y: y[:, None], lambda y: y.int(), lambda y: y.tolist()])
def test_labels_as_data_sets_have_them(change):
    assert found(Named(), [(x, change(labels)) for x, labels in BATCHES]).value == 0.6


def test_each_class_is_counted_where_somebody_asks():
    assert found(Named(), BATCHES).by_class == ()
    assert found(Named(), BATCHES, classes=3).by_class == ((3, 2), (1, 1), (1, 0))
    column = [(x, labels[:, None].int()) for x, labels in BATCHES]
    assert found(Named(), column, classes=3).by_class == ((3, 2), (1, 1), (1, 0))


def test_what_is_of_no_class_is_not_counted():
    pixels = [(torch.zeros(4, 3, 2, 2), torch.zeros(4, 2, 2, dtype=torch.int64))]
    assert found(Named(), pixels, classes=3).by_class == ()


def test_progress_is_told_from_the_first_to_the_last():
    seen: list[tuple[str, int, int]] = []
    found(Named(), BATCHES, progress=lambda *step: seen.append(step))
    assert seen == [("accuracy", 0, 2), ("accuracy", 1, 2), ("accuracy", 2, 2)]


def test_so_many_batches_are_looked_at():
    assert found(Named(), BATCHES, batches=1).samples == 4


class Splits:
    """An object with some splits."""

    def __init__(self, *names):
        self.names = names

    def __getattr__(self, name):
        if name not in self.names:
            raise AttributeError(name)
        return lambda: iter(BATCHES[:1] if name == "val" else BATCHES)


def test_which_split_is_measured():
    assert found(Named(), Splits("train", "val", "test")).split == "test"
    assert found(Named(), Splits("train", "val")).split == "val"
    alone = found(Named(), Splits("train"))
    assert (alone.value, alone.left_out) == (None, "the data have neither test() nor val()")


LABELS = torch.tensor([0, 1, 0, 0])
LEFT_OUT = {
    "several outputs": (lambda x: (x, x), LABELS, "the model gives 2 outputs"),
    "named outputs": (lambda x: {"a": x, "b": x}, LABELS, "the model gives outputs by name: a, b"),
    "no tensor": (lambda x: 3, LABELS, "the model gives a int"),
    "pixels": (lambda x: x[:, :, None, None], LABELS[:, None, None], "the model gives [4, 3, 1, 1]"),
    "a number": (lambda x: x[:, 0], LABELS, "the model gives [4]"),
    "one column": (lambda x: x[:, :1], LABELS, "the model gives [4, 1]"),
    "other rows": (lambda x: x.repeat(2, 1), LABELS, "the model gives [8, 3] for 4 labels"),
    "no labels": (lambda x: x, None, "the data have no labels"),
    "regression": (lambda x: x, LABELS.float(), "the labels are float32 [4]"),
    "several targets": (lambda x: x, LOGITS, "the labels are float32 [4, 3]"),
    "multi-label": (lambda x: x, LOGITS.long(), "the labels are int64 [4, 3]"),
    "boxes": (lambda x: x, [{}] * 4, "the labels are a list"),
}


class Giving(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


@pytest.mark.parametrize(("what", "labels", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_cannot_be_measured_is_left_out_with_the_reason(what, labels, reason):
    measured = found(Giving(what), [(LOGITS, labels)] * 2)
    assert measured.value is None
    assert measured.left_out.startswith("it needs one output [samples, classes] and the class of every sample; ")
    assert measured.left_out.endswith(reason)
    assert measured.samples == 4  # one batch told as much


@pytest.mark.parametrize(
    ("module", "batches", "message"),
    [
        (nn.Linear(4, 2), BATCHES, r"can't take the data's batches, of shape \[4, 3\]"),
        (Named(), [({"y": LOGITS}, BATCHES[0][1])], r"can't take the data's batches, of shape \[4, 3\]"),
        (Named(), [], "the data's test split is empty"),
        (Named(), [(LOGITS[:0], LABELS[:0])], "the data's test split is empty"),
        (Named(), [(LOGITS, LABELS + 2)], "batch 0 of the data: it has the label 3, and the model gives 3 classes"),
        (Named(), [*BATCHES, (LOGITS, LABELS - 1)], "batch 2 of the data: it has the label -1"),
    ],
    ids=["size", "name", "empty", "empty batch", "label", "negative label"],
)
def test_data_that_do_not_fit(module, batches, message):
    with pytest.raises(DataError, match=message) as caught:
        found(module, batches)
    assert caught.value.at == AT


def test_both_models_see_the_same_samples():
    data = Data.of(Splits("test"))
    both = compare(evaluate_first(Named(), data, LOGITS), nn.Softmin(1), data, LOGITS)
    assert both.measured is not None
    assert both.measured.value.before == 0.6
    assert both.measured.value.after != 0.6
    assert both.fingerprint == both.before.fingerprint
    assert both.evaluation.to_dict() == {"split": "test", "samples": 5}


def test_what_is_left_out_is_not_run_again():
    data = Data.of([(LOGITS, None)])
    before = evaluate_first(Named(), data, LOGITS)
    assert compare(before, Giving(lambda x: 1 / 0), data, LOGITS).after is before


class UsedUp:
    """Batches that are gone after the first reading."""

    def __init__(self):
        self.left = list(BATCHES)

    def test(self):
        while self.left:
            yield self.left.pop()


def test_data_that_are_used_up_are_refused_before_the_passes_run():
    with pytest.raises(DataError, match="the data's test split is empty when it is read a second time"):
        evaluate_first(Named(), Data.of(UsedUp()), LOGITS)


# -- what nobody may overlook --------------------------------------------------------------------------------------

KNOWS = Evaluated("test", 360, "abc", value=0.9944, guess=0.1)


def with_accuracy(accuracy: float, **more) -> Evaluated:
    return dataclasses.replace(KNOWS, value=accuracy, **more)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.9944, 0.10, "accuracy fell from 99.44% to 10.00%: that is no better than guessing, which gets 10.00%"),
        (0.9944, 0.02, "no better than guessing"),
        (0.9944, 0.12, "no better than guessing"),
        (0.9944, 0.30, "accuracy fell from 99.44% to 30.00%: more than half of what the model knew is lost"),
        (0.9944, 0.60, None),
        (0.9944, 0.9944, None),
        (0.12, 0.08, None),
        (0.12, 0.12, None),
    ],
)
def test_a_collapse(before, after, said):
    warning = collapse(with_accuracy(before), with_accuracy(after))
    assert warning is None if said is None else said in str(warning)


def test_guessing_is_the_most_frequent_class_or_one_of_all():
    assert found(Named(), [(LOGITS, torch.tensor([1, 1, 1, 0]))]).guess == 0.75
    assert found(Named(), [(LOGITS, torch.tensor([1, 1, 1, 1]))]).guess == pytest.approx(1 / 3)


def test_two_classes_of_which_one_is_rare():
    common = with_accuracy(0.97, guess=0.95)
    assert collapse(common, with_accuracy(0.95, guess=0.95)) is None
    assert collapse(with_accuracy(0.99, guess=0.9), with_accuracy(0.9, guess=0.9)) is not None


def test_other_samples_at_each_reading_and_numbers_that_are_none():
    assert Compared(KNOWS, KNOWS).alarms == []
    other = Compared(KNOWS, with_accuracy(0.9944, fingerprint="def"))
    assert other.fingerprint is None
    assert other.alarms == ["the data's test split gives other samples at each reading, for each model its own"]
    broken = found(Giving(lambda x: x * math.nan), BATCHES)
    assert (broken.value, broken.nan) == (0.0, 5)
    assert "of 5 samples, the outputs of 5 are NaN before and 5 after" in Compared(broken, broken).alarms


# -- other metrics -----------------------------------------------------------------------------------------------------

MSE = LOSSES["mse"]
X, Y = torch.tensor([[1.0], [2], [3], [6]]), torch.tensor([1.0, 2, 3, 4])


def by(name: str, **options):
    return known_metric(name, {}, options.pop("output", None), None, MSE)


def test_a_metric_that_was_asked_for():
    data = Data.of([(X[:3], Y[:3]), (X[3:], Y[3:])])
    measured = evaluate(Named(), data, X, by("rmse"))
    assert (measured.value, measured.metric.title, measured.left_out) == (pytest.approx(1.0), "RMSE", "")
    assert measured.guess == pytest.approx(float(Y.std(correction=0)))


def test_any_split_may_be_asked_for():
    data = Data.of(Splits("train", "val", "test"))
    assert evaluate(Named(), data, LOGITS, split="val").samples == 4
    assert evaluate(Named(), Data.of(Splits("train")), LOGITS, split="train").value == 0.6


def test_a_metric_that_was_asked_for_is_never_left_out():
    at = Span("plan.yaml", 5, 9)
    metric = dataclasses.replace(by("rmse"), at=at)
    with pytest.raises(DataError, match=r"the metric rmse can't be measured: .* for labels \[3\]") as caught:
        evaluate(Named(), Data.of([(X[:3].repeat(1, 2), Y[:3])]), X, metric)
    assert caught.value.at == at


def test_the_loss_may_stand_instead_of_accuracy():
    data, loss = Data.of([(X, Y)]), by("loss")
    default = DefaultAccuracy(instead=loss)
    assert settled(default, Named(), data, X) is loss
    assert settled(default, Named(), Data.of(BATCHES), LOGITS) is default
    assert settled(default, Named(), Data.of([(X, None)]), X) is default
    assert settled(default, Named(), None, X) is default
    assert evaluate(Named(), data, X).hint.startswith("say what is measured")


def test_trying_out_gives_no_figure():
    found = try_out(Named(), Data.of([(X[:1], Y[:1])] * 2), X, by("rmse"))
    assert (found.samples, found.value, found.left_out) == (1, None, "")


def figure(metric, value, guess=None, samples=400) -> Evaluated:
    return Evaluated("test", samples, "abc", metric=metric, value=value, guess=guess)


HIGH = GivenMetric("own.py:psnr", function=max)
LOW = GivenMetric("own.py:off", higher_is_better=False, function=max)


@pytest.mark.parametrize(
    ("metric", "before", "after", "guess", "said"),
    [
        (by("rmse"), 0.2, 1.0, 1.0, "RMSE rose from 0.2 to 1: that is no better than guessing, which gets 1"),
        (by("rmse"), 0.2, 3.0, 1.0, "no better than guessing"),
        (by("rmse"), 0.2, 0.7, 1.0, "more than half of what the model knew is lost (guessing gets 1)"),
        (by("rmse"), 0.01, 0.03, 1.0, None),
        (by("rmse"), 0.95, 1.2, 1.0, None),
        (by("mean_iou"), 0.8, 0.1, 0.1, "mean IoU fell from 80.00% to 10.00%: that is no better than guessing"),
        (HIGH, 30.0, 14.0, None, "psnr fell from 30 to 14: more than half of it is lost"),
        (HIGH, 30.0, 16.0, None, None),
        (HIGH, -3.0, -9.0, None, None),
        (LOW, 1.5, 3.5, None, "off rose from 1.5 to 3.5: it has more than doubled"),
        (LOW, 1.5, 2.5, None, None),
        (LOW, 1.5, math.nan, None, "off was 1.5, and is NaN"),
        (LOW, math.nan, 2.0, None, None),
    ],
)
def test_a_collapse_of_any_metric(metric, before, after, guess, said):
    warning = collapse(figure(metric, before, guess), figure(metric, after, guess))
    assert warning is None if said is None else said in str(warning)
