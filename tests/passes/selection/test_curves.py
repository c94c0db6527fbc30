"""Sensitivity curves: how far a floor lets each of them go, and files that are wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Group
from prunec.passes.selection.curves import (
    COLUMNS,
    Curve,
    Judged,
    Point,
    held,
    kept_within,
    read_curves,
    write_curves,
)


def curve(*values: float, loss: bool = False) -> Curve:
    nan = math.nan
    points = [Point(i / 10, i, nan if loss else v, v if loss else nan) for i, v in enumerate(values)]
    return Curve("g", 10, tuple(points))


@pytest.mark.parametrize(
    ("given", "floor", "removed"),
    [
        (curve(0.9, 0.895, 0.89, 0.88), "-1pt", 2),
        (curve(0.9, 0.95, 0.88, 0.9), "-1pt", 1),
        (curve(0.9, 0.88, 0.9, 0.9), "-1pt", 0),
        (curve(0.9, 0.893, 0.888, 0.9), "-1%", 1),
        (curve(0.9, 0.9, 0.9), "-0pt", 2),
        (curve(0.1, 0.101, 0.103, loss=True), "-2%", 1),
        (curve(0.1, math.nan, 0.1, loss=True), "-2%", 0),
    ],
    ids=["to the rim", "not beyond a dip", "not at all", "relative", "nothing is lost", "loss", "not a number"],
)
def test_the_floor_is_read_up_to_the_first_point_below_it(given, floor, removed):
    assert held(given, floor).removed == removed


LOW, HIGH = Judged("RMSE", False, False), Judged("PSNR", True, False)


def test_a_metric_may_be_better_where_it_is_low():
    low = replace(curve(2.0, 2.03, 2.05, 1.9), by=LOW)
    assert low.drops == pytest.approx((0.0, 0.03, 0.05, -0.1))
    assert held(low, "-2%").removed == 1
    high = replace(curve(-2.0, -2.03, -2.05), by=HIGH)
    assert held(high, "-2%").removed == 1
    assert held(replace(curve(0.9, 0.895, 0.88), by=replace(HIGH, name="F1")), "-1pt").removed == 1


@pytest.mark.parametrize(("by", "verb"), [(LOW, "lets the RMSE rise by 2%"), (HIGH, "lets the PSNR fall by 2%")])
def test_points_are_of_shares(by, verb):
    message = f"floor: -1pt is of accuracy, and the file has {by.name}, which is no share"
    with pytest.raises(PassError, match=message) as caught:
        held(replace(curve(31.0, 30.0), by=by), "-1pt")
    assert caught.value.hint == f"-2% {verb}"


def test_another_metric_is_written_and_read(tmp_path):
    file = tmp_path / "s.csv"
    write_curves(file, [replace(curve(2.0, 2.1), by=LOW)], {"criterion": "l1"})
    first, second, _ = file.read_text().splitlines()
    assert first == "group,units,ratio,removed,metric,loss,name,better,criterion"
    assert second == "g,10,0,0,2.0,nan,RMSE,lower,l1"
    (found,) = read_curves(file)
    assert (found.by, [point.metric for point in found.points]) == (LOW, [2.0, 2.1])
    file.write_text(first.replace(",better", "") + "\n")
    with pytest.raises(PassError, match="missing column 'better'"):
        read_curves(file)
    file.write_text(f"{first}\ng,10,0,0,2.0,1.0,RMSE,up,l1\n")
    with pytest.raises(PassError, match=r"s\.csv:2:23: better must be higher or lower, got 'up'"):
        read_curves(file)


def test_points_of_accuracy_need_accuracy():
    with pytest.raises(PassError, match=r"floor: -1pt is of accuracy, and the file has losses alone"):
        held(curve(0.1, 0.2, loss=True), "-1pt")


CSV = "group,units,ratio,removed,accuracy,loss\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CSV.replace("ratio", "share"), "s.csv:1:1: missing column 'ratio'"),
        ("", "s.csv:1:1: missing column 'group'"),
        (CSV + "conv1,32,0,0,0.9\n", "s.csv:2:1: expected 6 columns, got 5"),
        (CSV + "conv1,32,0,0,high,1\n", "s.csv:2:14: accuracy must be a number, got 'high'"),
        (CSV + "conv1,32,2,0,0.9,1\n", "s.csv:2:10: ratio must be between 0 and 1, got '2'"),
        (CSV + "conv1,nan,0,0,0.9,1\n", "s.csv:2:7: units must be a whole number, got 'nan'"),
        (CSV + "conv1,32,0,33,0.9,1\n", "s.csv:2:12: removed must be at most the group's 32 units"),
        (CSV + "conv1,32,0,0,0.9,1\n\nconv1,32,0,0,0.9,1\n", "s.csv:4:10: 'conv1' has the ratio 0 twice"),
        (CSV + "conv1,32,0,0,0.9,1\nconv1,31,0.1,0,0.9,1\n", "s.csv:3:7: 'conv1' had 32 units above"),
        (CSV + "convl,32,0,0,0.9,1\n", "s.csv:2:1: the model has no group 'convl'\n"),
        (CSV + "conv1,64,0,0,0.9,1\n", "s.csv:2:7: 'conv1' has 64 units in the file, 32 in the model"),
        (CSV + "conv1,32,0.1,0,0.9,1\n", "s.csv:2:10: 'conv1' has no row of ratio 0, the whole model"),
    ],
    ids=lambda value: value.partition(": ")[2] if value.startswith("s.csv") else "",
)
def test_a_file_that_is_wrong_is_told_by_line_and_column(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    Path("s.csv").write_text(text)
    with pytest.raises(PassError) as caught:
        kept_within(Path("s.csv"), "-1pt", {"conv1": Group("conv1", 0, 32, ("",) * 32, (), None)}, ["conv1"])
    assert str(caught.value).startswith(expected)


def test_a_file_without_curves_is_refused(tmp_path):
    file = tmp_path / "curves.csv"
    file.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(PassError, match="holds the names of columns, and no curve"):
        read_curves(file)
