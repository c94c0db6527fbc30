"""The figures in words: sizes and times, gains and losses, what was foretold, and what was left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_reports import BARE, FULL

from prunec.compiler.ir.program import Note
from prunec.compiler.report import figures
from prunec.compiler.report.report import Change, Evaluation, GroupWidths, KeptFindings, Latency, Measured


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (figures.count, 125_485_696, "125 M"),
        (figures.count, 5_210, "5.21 k"),
        (figures.count, 999, "999"),
        (figures.count, 0, "0"),
        (figures.count, 4_089_200_000, "4.09 G"),
        (figures.size, 117_912, "118 kB"),
        (figures.size, 17, "17 B"),
        (figures.duration, 0.0000542, "54.2 µs"),
        (figures.duration, 14.6, "14.6 s"),
        (figures.duration, 0.0, "0 µs"),
        (figures.duration, 2.0, "2 s"),
        (figures.count, 5_000, "5.00 k"),
        (figures.percent, 0.99444, "99.44%"),
    ],
)
def test_figures_in_words(text, value, expected):
    assert text(value) == expected


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        (None, ""),
        (Evaluation("test", 360), ""),
        (Evaluation("val", 1200), "accuracy: of 1,200 samples of the split val"),
        (Evaluation("test", 8, "no labels"), "accuracy: not measured: no labels"),
    ],
)
def test_what_the_accuracy_is_of(evaluation, expected):
    assert figures.evaluated(replace(BARE, evaluation=evaluation)) == expected


def test_what_another_metric_is_of():
    rmse = Measured("RMSE", False, False, Change(1.0, 2.0))
    report = replace(BARE, metric=rmse, evaluation=Evaluation("val", 1200))
    assert figures.evaluated(report) == "RMSE: of 1,200 samples of the split val"


def lines(report) -> list[tuple[str, str, str, str]]:
    return [(figure.name, figure.before, figure.after, figure.change) for figure in figures.figures(report)]


def test_a_bare_report_has_its_costs_alone():
    assert lines(BARE) == [
        ("MACs", "1.00 k", "400", "-60.0%"),
        ("parameters", "200", "90", "-55.0%"),
        ("activations at once", "64", "48", "-25.0%"),
    ]


def test_everything_that_was_measured_has_a_line():
    assert lines(FULL) == [
        ("accuracy", "99.00%", "98.00%", "-1.00 points"),
        ("balanced accuracy", "87.50%", "75.00%", "-12.50 points"),
        *lines(BARE),
        ("weights file", "118 kB", "58.6 kB", "-50.3%"),
        ("ONNX file", "120 kB", "60.0 kB", "-50.0%"),
        ("latency in onnxruntime", "130 µs", "65.0 µs", "-50.0%"),
        ("predicted latency", "2.00 ms", "1.00 ms", "-50.0%"),
    ]


def test_without_an_onnx_file_a_latency_was_measured_for_the_prediction():
    assert lines(replace(FULL, onnx=None))[-2:] == [
        ("measured latency", "4.00 ms", "2.50 ms", "-37.5%"),
        ("predicted latency", "2.00 ms", "1.00 ms", "-50.0%"),
    ]
    only_predicted = replace(BARE, latency=Latency(FULL.latency.predicted))
    assert [figure.name for figure in figures.figures(only_predicted)][3:] == ["predicted latency"]


@pytest.mark.parametrize(
    ("accuracy", "better", "change"),
    [
        (Change(0.9, 0.9), None, "+0.00 points"),
        (Change(0.9, 0.8), False, "-10.00 points"),
        (Change(0.8, 0.9), True, "+10.00 points"),
    ],
    ids=["the same", "a loss", "a gain"],
)
def test_a_gain_is_known_from_a_loss(accuracy, better, change):
    found = {
        figure.name: figure
        for figure in figures.figures(replace(BARE, metric=Measured("accuracy", True, True, accuracy)))
    }
    assert found["MACs"].better is True
    assert (found["accuracy"].better, found["accuracy"].change) == (better, change)


METRICS = {
    "an error that fell": (Measured("RMSE of depth", False, False, Change(2.5, 2.25)), "2.5", "2.25", "-10.0%", True),
    "an error that rose": (Measured("RMSE", False, False, Change(2.0, 2.5)), "2", "2.5", "+25.0%", False),
    "a share": (Measured("mean IoU", True, True, Change(0.5, 0.75)), "50.00%", "75.00%", "+25.00 points", True),
    "of nothing": (Measured("MAE", False, False, Change(0.0, 0.125)), "0", "0.125", "+0.125", False),
    "a negative one": (Measured("R2Score", True, False, Change(-2.0, -1.0)), "-2", "-1", "+50.0%", True),
    "NaN": (Measured("MAE", False, False, Change(1.0, float("nan"))), "1", "NaN", "NaN", False),
}


@pytest.mark.parametrize("name", METRICS)
def test_any_metric_has_the_first_line(name):
    metric, before, after, change, better = METRICS[name]
    (first, *_) = figures.figures(replace(BARE, metric=metric))
    assert first.name == metric.name + ("" if metric.higher_is_better else " (less is better)")
    assert (first.before, first.after, first.change) == (before, after, change)
    assert first.better is better
    assert first.share >= 0


def test_what_a_plan_may_say_to_have_a_metric():
    left_out = replace(BARE, evaluation=Evaluation("test", 8, "several outputs", "say metric"))
    assert figures.unevaluated(left_out) == "hint: say metric"
    assert figures.unevaluated(BARE) == ""


def test_what_there_was_nothing_of_is_new():
    (first, *_) = figures.figures(replace(BARE, metric=None, cost=BARE.cost.each(lambda cost: replace(cost, macs=0))))
    assert (first.change, first.share, first.better) == ("new", 1.0, None)


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        (FULL.latency, "latency in onnxruntime: predicted 50.0% of the original, measured 62.5% (-20.0%)"),
        (Latency(Change(2.0, 1.0)), ""),
        (None, ""),
    ],
    ids=["measured", "predicted alone", "neither"],
)
def test_a_prediction_in_words(latency, expected):
    assert figures.foretold(replace(BARE, latency=latency)) == expected


def test_the_check_of_a_pass_in_words():
    score, shrink = BARE.passes
    assert figures.checked(score) == ""
    assert figures.checked(shrink) == "differs by 9.7e-07 at most (float32, batches of 2 and 3)"


def test_notes_are_gathered_by_their_reason():
    notes = [Note(subject, reason) for subject, reason in (("a", "x"), ("b", "y"), ("c", "y"))]
    assert figures.gathered(notes) == [("y", ["b", "c"]), ("x", ["a"])]


def test_groups_that_are_wholly_pinned_are_left_alone():
    assert figures.left_alone(BARE) == [("reaches the model's output", ["fc"])]
    more = tuple(GroupWidths(name, 3, Change(3, 3), {"is shared": 1, "is read": 2}) for name in ("g", "h"))
    found = figures.left_alone(replace(BARE, groups=(*BARE.groups, *more)))
    assert found == [("is shared", ["g", "h"]), ("reaches the model's output", ["fc"])]


def test_the_channels_that_are_gone():
    assert [figures.removed(group) for group in BARE.groups] == [10, 0]


def test_each_class_that_is_kept_has_a_row():
    assert figures.class_rows(FULL) == [
        ("cat (3)", "8", "100.00%", "75.00%", "-25.00 points"),
        ("dog (5)", "4", "75.00%", "75.00%", "+0.00 points"),
        ("mean", "", "87.50%", "75.00%", "-12.50 points"),
    ]
    assert figures.class_rows(BARE) == figures.class_rows(replace(FULL, classes=KeptFindings((3, 5), 10))) == []
