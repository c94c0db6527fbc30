"""Metrics by name, of torchmetrics and of a user: their values by hand, what they can't take, and what a guess gets."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import torchmetrics

from prunec.compiler.data import Batch
from prunec.compiler.errors import DataError, PlanError
from prunec.compiler.task.losses import LOSSES
from prunec.compiler.task.metrics import NAMES, GivenMetric, Metric, find_torchmetrics, fresh, known_metric

SCORES = torch.tensor([[3.0, 1, 2, 0], [0, 1, 2, 3], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
CLASSES = torch.tensor([0, 2, 0, 0, 3])


def named(name: str, output=None, loss="mse", **args) -> Metric:
    return known_metric(name, args, output, None, LOSSES[loss])


def measured(metric: Metric, *batches: tuple) -> float:
    """The metric over (outputs, labels) of several batches."""
    return meter_of(metric, *batches).compute()


def meter_of(metric: Metric, *batches: tuple):
    meter = metric.meter()
    for outputs, labels in batches:
        count = len(next(leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)))
        meter.update(outputs, Batch(torch.zeros(count, 1), labels))
    return meter


def halves(outputs, labels):
    return (outputs[:2], labels[:2]), (outputs[2:], labels[2:])


# -- classes -----------------------------------------------------------------------------------------------------------


def test_accuracy_of_samples():
    assert measured(named("accuracy"), *halves(SCORES, CLASSES)) == 3 / 5
    assert measured(named("accuracy"), (SCORES, CLASSES[:, None])) == 3 / 5


def test_the_right_one_among_the_five_largest():
    scores = torch.arange(10.0).repeat(4, 1)
    assert measured(named("top5"), (scores, torch.tensor([9, 5, 4, 0]))) == 0.5
    assert measured(named("top5"), (SCORES, CLASSES)) == 1.0  # there are four classes


def pixels():
    """Scores [2, 3, 2, 2] and classes [2, 2, 2], of which one image is void but for a corner."""
    classes = torch.tensor([[[0, 0], [1, 1]], [[2, 255], [255, 255]]])
    predicted = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 2]]])
    return torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float(), classes


def test_pixels_of_a_segmentation():
    scores, classes = pixels()
    assert measured(named("accuracy", ignore_index=255), *halves(scores, classes)) == 3 / 5
    # intersections 1, 2, 0 over unions 3, 3, 1
    wanted = (1 / 3 + 2 / 3 + 0) / 3
    assert measured(named("mean_iou", ignore_index=255), *halves(scores, classes)) == pytest.approx(wanted)
    assert measured(named("mean_iou", ignore_index=255), (scores, classes[:, None])) == pytest.approx(wanted)
    jaccard = of_torchmetrics("MulticlassJaccardIndex", num_classes=3, ignore_index=255)
    assert measured(jaccard, (scores, classes[:, None])) == pytest.approx(wanted)


def test_a_class_that_comes_nowhere_does_not_count():
    scores, classes = pixels()
    assert measured(named("mean_iou"), (scores[:1], classes[:1])) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_void_alone_is_no_number():
    scores, classes = pixels()
    void = torch.full_like(classes, 255)
    assert math.isnan(measured(named("mean_iou", ignore_index=255), (scores, void)))
    assert math.isnan(measured(named("accuracy", ignore_index=255), (scores, void)))


def test_which_output_of_several():
    outputs = {"out": SCORES, "aux": -SCORES}
    assert measured(named("accuracy"), (outputs, CLASSES)) == 3 / 5
    assert measured(named("accuracy", "aux"), (outputs, CLASSES)) == 1 / 5
    assert measured(named("accuracy", "aux"), (outputs, {"out": CLASSES, "aux": 3 - CLASSES})) == 2 / 5
    assert measured(named("accuracy"), (outputs, {"aux": 3 - CLASSES})) == 2 / 5


REFUSED = {
    "a number": (SCORES[:, 0], CLASSES, r"the model gives \[5\]"),
    "one column": (SCORES[:, :1], CLASSES, r"the model gives \[5, 1\]; of a column of yes or no, BinaryAccuracy"),
    "no labels": (SCORES, None, "the data have no labels"),
    "numbers": (SCORES, SCORES, r"the labels are float32 \[5, 4\]"),
    "other pixels": (SCORES[..., None], CLASSES, r"the model gives \[5, 4, 1\] for labels \[5\]"),
    "boxes": (SCORES, [{}] * 5, "the labels are a list, which fit none of the outputs"),
    "two of two": (
        (SCORES, SCORES),
        (CLASSES, CLASSES),
        "2 outputs have labels: 'output' says which is meant, of 2 outputs",
    ),
    "a class too many": (SCORES, CLASSES + 4, "it has the label 4, and the model gives 4 classes"),
}


@pytest.mark.parametrize("metric", ["accuracy", "mean_iou"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_are_no_classes(name, metric):
    outputs, labels, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        measured(named(metric), (outputs, labels))


# -- numbers -----------------------------------------------------------------------------------------------------------

GIVEN = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
WANTED = torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_how_far_numbers_are_off():
    assert measured(named("rmse"), *halves(GIVEN, WANTED)) == pytest.approx(1.0)
    assert measured(named("mae"), *halves(GIVEN, WANTED[:, None].int())) == pytest.approx(0.5)
    assert measured(named("mae", 1), ((GIVEN, GIVEN + 1), (WANTED, WANTED))) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "no labels"), (WANTED[:3], r"the model gives \[4, 1\] for labels \[3\]"), ([{}] * 4, "fit none of the")],
)
def test_numbers_that_do_not_fit(labels, message):
    with pytest.raises(DataError, match=rf"the metric rmse can't be measured: it needs an output.*{message}"):
        measured(named("rmse"), (GIVEN, labels))


def test_the_loss_is_a_metric():
    assert measured(named("loss"), *halves(GIVEN, WANTED)) == pytest.approx(1.0)
    assert named("loss").title == "loss (mse)"


# -- what nothing but guessing gets ------------------------------------------------------------------------------------


def test_what_a_guess_gets():
    assert meter_of(named("accuracy"), *halves(SCORES, CLASSES)).guess == 3 / 5
    assert meter_of(named("accuracy"), (SCORES, CLASSES * 0)).guess == 1 / 4
    scores = torch.zeros(10, 10)
    assert meter_of(named("top5"), (scores, torch.arange(10))).guess == 0.5
    assert meter_of(named("mean_iou"), (SCORES, CLASSES)).guess == pytest.approx(3 / 5 / 3)
    assert meter_of(named("rmse"), *halves(GIVEN, WANTED)).guess == pytest.approx(float(WANTED.std(correction=0)))
    assert meter_of(named("mae"), (GIVEN, WANTED)).guess == pytest.approx(1.0)
    assert meter_of(named("loss"), *halves(GIVEN, WANTED)).guess == pytest.approx(float(WANTED.var(correction=0)))
    assert meter_of(named("loss", loss="cross_entropy"), (SCORES, CLASSES)).guess == pytest.approx(math.log(4))


def test_of_several_numbers_each_has_its_own_mean():
    wanted = torch.stack([WANTED, WANTED + 100], 1)
    assert meter_of(named("rmse"), (wanted, wanted)).guess == pytest.approx(float(WANTED.std(correction=0)))


# -- torchmetrics ------------------------------------------------------------------------------------------------------


def of_torchmetrics(name: str, output=None, key=None, **args) -> GivenMetric:
    made = find_torchmetrics(name, None)(**args)
    return GivenMetric(name, bool(made.higher_is_better), output=output, make=lambda: fresh(made), key=key)


def test_a_class_of_torchmetrics():
    metric = of_torchmetrics("MulticlassF1Score", num_classes=4, average="macro")
    wanted = torchmetrics.functional.f1_score(SCORES, CLASSES, task="multiclass", num_classes=4, average="macro")
    assert measured(metric, *halves(SCORES, CLASSES)) == pytest.approx(float(wanted))
    assert measured(metric, (SCORES, CLASSES[:, None])) == pytest.approx(float(wanted))
    assert measured(metric, (SCORES, CLASSES.float())) == pytest.approx(float(wanted))
    for labels in (WANTED.int(), WANTED[:, None]):
        assert measured(of_torchmetrics("R2Score"), (GIVEN, labels)) == pytest.approx(0.2)


def test_a_model_that_gives_the_classes_themselves():
    metric = of_torchmetrics("MulticlassAccuracy", num_classes=4, average="micro")
    assert measured(metric, (SCORES.argmax(1), CLASSES)) == pytest.approx(3 / 5)
    with pytest.raises(DataError, match=r"the metric accuracy can't be measured: .*; the model gives \[5\]"):
        measured(named("accuracy"), (SCORES.argmax(1), CLASSES))
    assert measured(named("mae"), (SCORES.argmax(1), CLASSES)) == pytest.approx((0 + 1 + 0 + 2 + 0) / 5)


def test_yes_or_no_in_one_column():
    metric = of_torchmetrics("BinaryAccuracy")
    assert measured(metric, (torch.tensor([[2.0], [-1], [-3]]), torch.tensor([1.0, 0, 1]))) == pytest.approx(2 / 3)


def test_what_torchmetrics_refuses_is_told_with_the_batch():
    message = r"the metric MulticlassF1Score can't be measured: it can't take float32 \[4, 1\] and float32 \[4\]: "
    with pytest.raises(DataError, match=message):
        measured(of_torchmetrics("MulticlassF1Score", num_classes=4), (GIVEN, WANTED + 0.5))
    with pytest.raises(
        DataError, match="the metric R2Score can't be measured: it is of one output, and 2 outputs have labels"
    ):
        measured(of_torchmetrics("R2Score"), ((GIVEN, GIVEN), (WANTED, WANTED)))
    with pytest.raises(DataError, match="gave 4 numbers, and one is needed"):
        measured(of_torchmetrics("MulticlassF1Score", num_classes=4, average=None), (SCORES, CLASSES))


def test_a_name_that_torchmetrics_has_not():
    with pytest.raises(PlanError, match=r"no class 'MulticlassF1Scor'\nhint: did you mean 'MulticlassF1Score'"):
        find_torchmetrics("MulticlassF1Scor", None)
    with pytest.raises(PlanError, match="hint: did you mean 'rmse'"):
        find_torchmetrics("RMSE", None)


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert measured(named("accuracy"), (SCORES, CLASSES)) == 3 / 5
    for name in ("rmse", "mean_iou", "mae"):
        with pytest.raises(PlanError, match=rf"{name} needs torchmetrics, which isn't installed\nhint: pip install"):
            named(name).meter()


# -- a user's own ------------------------------------------------------------------------------------------------------


def function(given, **options) -> GivenMetric:
    return GivenMetric("own.py:own", **options, function=given)


def test_a_function_of_outputs_and_labels():
    off = function(lambda y, t: float((y[:, 0] - t).abs().max()), higher_is_better=False)
    assert measured(off, *halves(GIVEN, WANTED)) == pytest.approx((2 * 0 + 2 * 2) / 4)
    each = function(lambda y, t: (y[:, 0] - t).abs())
    assert measured(each, *halves(GIVEN, WANTED)) == pytest.approx(0.5)
    assert measured(function(lambda y, t: np.float32(3)), (GIVEN, WANTED)) == 3.0
    assert measured(function(lambda y, t: float(t is WANTED), output=1), ((GIVEN, GIVEN), WANTED)) == 1.0
    assert measured(function(lambda y, t: {"a": 1, "b": 2}, key="b"), (GIVEN, WANTED)) == 2.0


class Largest:
    """The largest output there was."""

    def __init__(self):
        self.found = -1.0

    def update(self, outputs, labels):
        self.found = max(self.found, float(outputs.max()))

    def compute(self):
        return self.found


def test_an_object_that_sums_up_itself():
    metric = GivenMetric("own.py:Largest", make=Largest)
    assert measured(metric, *halves(GIVEN, WANTED)) == 6.0
    assert measured(metric, (GIVEN[:1], WANTED[:1])) == 1.0


def broken(outputs, labels):
    raise ValueError("not today")


def test_what_it_raises_is_its_own():
    with pytest.raises(PlanError, match=r"the metric own.py:own failed: ValueError: not today") as caught:
        measured(function(broken), (GIVEN, WANTED))
    assert caught.value.at.file == __file__


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("good", "gave a str, not a number"),
        (None, "gave None, not a number"),
        (torch.zeros(3), "gave 3 numbers for 4 samples"),
        ({"a": 1.0, "b": 2.0}, "gives several numbers: a, b"),
    ],
    ids=str,
)
def test_what_is_no_figure(result, message):
    with pytest.raises(DataError, match=message):
        measured(function(lambda y, t: result), (GIVEN, WANTED))


def test_which_of_two_is_better():
    high, low = named("accuracy"), named("mae")
    assert high.better(0.9, 0.8)
    assert not high.better(0.8, 0.8)
    assert low.better(1.0, 2.0)
    for metric in (high, low):
        assert metric.better(1.0, math.nan)
        assert not metric.better(math.nan, 1.0)
        assert not metric.better(math.nan, math.nan)


def test_titles():
    titles = [named(name).title for name in NAMES]
    assert titles == ["accuracy", "top-5 accuracy", "mean IoU", "RMSE", "MAE", "loss (mse)"]
    assert named("rmse", "depth").title == "RMSE of depth"
    assert named("mae", 1).title == "MAE of output 1"
    assert function(broken).title == "own"
