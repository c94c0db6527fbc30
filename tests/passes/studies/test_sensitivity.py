"""Sensitivity curves: measured as the shrunk network would be, written and read back, and obeyed by `select`."""

from __future__ import annotations

import base64
import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler.cli import main as cli
from prunec.compiler.data import Data
from prunec.compiler.driver.compile import compile, load_program
from prunec.compiler.driver.evaluation import evaluate
from prunec.compiler.errors import DataError, PlanError
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.plan import Plan
from prunec.compiler.task.losses import LOSSES
from prunec.compiler.task.metrics import Accuracy, known_metric
from prunec.models import digits
from prunec.models.data import digits as digit_images
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.selection.curves import Curve, Judged, Point, read_curves, write_curves
from prunec.passes.shrink import Shrink
from prunec.passes.studies.sensitivity import measured
from prunec.passes.studies.subject import said

WEIGHTS = digits.WEIGHTS / "digits_resnet.safetensors"
HEAD = f"""\
plan: 1
model: {{factory: prunec.models.digits:resnet, weights: {WEIGHTS}}}
inputs: [[1, 1, 8, 8]]
data: prunec.models.data:digits
"""
RATIOS = (0.0, 0.1, 0.3, 0.6)
CSV = "group,units,ratio,removed,accuracy,loss\n"
DATA = digit_images()


def plan_text(select: str = "50%") -> str:
    return HEAD + f"passes:\n  - score: l2\n  - select: {select}\n  - shrink\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A plan, and what `prunec sensitivity` wrote about it."""
    folder = tmp_path_factory.mktemp("plans")
    (folder / "plan.yaml").write_text(plan_text())
    arguments = ["sensitivity", str(folder / "plan.yaml"), "--ratios", "10%,30%,0.6", "-o", str(folder / "curves")]
    assert cli.run(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def curves(folder) -> list[Curve]:
    return read_curves(folder / "curves" / "sensitivity.csv")


@pytest.fixture(scope="module")
def scored():
    """The program with its scores."""
    model = {"factory": "prunec.models.digits:resnet", "weights": str(WEIGHTS)}
    program = load_program(Plan.from_dict({"plan": 1, "model": model, "inputs": [[1, 1, 8, 8]]}))
    return Score(criterion="l2").run(program, Context()).program


def accuracy(module, batches) -> float | None:
    return evaluate(module, Data.of(batches), torch.zeros(1)).value


def shrunk_accuracy(scored, ratio) -> float:
    program = Select(ratio=ratio).run(scored, Context()).program
    return accuracy(Shrink().run(program, Context()).program.module.eval(), DATA.val())


# -- measuring -----------------------------------------------------------------------------------------------------


def test_every_point_is_the_accuracy_of_the_shrunk_network(curves, scored):
    assert {curve.group for curve in curves} == set(scored.facts["scores"])
    whole = accuracy(scored.module.eval(), DATA.val())
    for curve in curves:
        assert tuple(point.ratio for point in curve.points) == RATIOS
        assert curve.points[0].metric == pytest.approx(whole, abs=1e-12)
        for point in curve.points[1:]:
            assert point.metric == pytest.approx(shrunk_accuracy(scored, {curve.group: point.ratio}), abs=1e-12)
            assert 0 < point.removed < curve.units
    assert any(curve.drops[-1] > 0.05 for curve in curves)


def test_ratios_that_take_the_same_units_are_the_same_point(scored):
    name = next(iter(scored.facts["scores"]))
    removed = {name: {0.1: _units(3), 0.2: _units(3), 0.9: _units(0)}}
    curves, whole, loss, samples = measured(scored, removed, Calibration(samples=50, split="val"), Context(data=DATA))
    points = curves[0].points
    assert [point.removed for point in points] == [0, 3, 3, 0]
    assert points[1].loss == points[2].loss != points[0].loss
    assert (points[3].metric, points[3].loss) == (whole, loss) == (points[0].metric, points[0].loss)
    assert samples == 50


def _units(count: int):
    return torch.arange(count).numpy()


def test_what_is_written(folder, curves):
    with (folder / "curves" / "sensitivity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["criterion"] for row in rows} == {"l2"}
    assert {(row["samples"], row["split"]) for row in rows} == {("180", "val")}
    assert len(rows) == len(RATIOS) * len(curves)
    page = (folder / "curves" / "sensitivity.html").read_text()
    assert all(curve.group in page for curve in curves)
    picture = base64.b64encode((folder / "curves" / "sensitivity.png").read_bytes()).decode()
    assert f'<img src="data:image/png;base64,{picture}"' in page
    assert (folder / "curves" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_the_file_holds_what_was_measured(tmp_path, curves):
    strange = Curve('a, "b"', 3, (Point(0.0, 0, math.nan, 0.25), Point(0.5, 2, math.nan, math.inf)))
    write_curves(tmp_path / "copy.csv", [*curves, strange], {"criterion": "l2"})
    *copy, last = read_curves(tmp_path / "copy.csv")
    assert copy == curves
    assert repr(last) == repr(strange)


def test_the_console_names_the_extremes(folder, tmp_path, capsys):
    again = ["--ratios", "50%", "--groups", "layer3.*", "--samples", "40", "-o", str(tmp_path / "out")]
    for _ in range(2):  # an earlier output is replaced
        assert cli.run(["sensitivity", str(folder / "plan.yaml"), "--criterion", "random", *again]) == 0
        out = capsys.readouterr().out
        assert "on 40 samples of val; units go by random" in out
        assert "the most sensitive first" in out
        assert "layer3.0.conv1" in out
        assert "layer1.0.conv1" not in out


# -- select: {from: ..., floor: ...} -------------------------------------------------------------------------------


def by_hand(path: Path, least) -> dict[str, int]:
    """Group -> removed units: the last row before the first one that is too bad."""
    found: dict[str, int] = {}
    stopped = set()
    with path.open() as file:
        for row in csv.DictReader(file):
            if float(row["accuracy"]) < least - 1e-9:
                stopped.add(row["group"])
            if row["group"] not in stopped:
                found[row["group"]] = int(row["removed"])
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize(("floor", "share"), [("-1pt", None), ("-5 pt", None), ("-10%", 0.1)])
def test_select_obeys_the_floor_group_by_group(folder, scored, monkeypatch, tmp_path, floor, share):
    text = plan_text(f"{{from: curves/sensitivity.csv, floor: {floor}}}")
    (folder / "from.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)  # the path is meant from the plan's folder
    result = compile(None, folder / "from.yaml")
    whole = accuracy(scored.module.eval(), DATA.val())
    least = whole * (1 - share) if share else whole - float(floor.split("pt")[0].strip(" -")) / 100
    expected = by_hand(folder / "curves" / "sensitivity.csv", least)
    assert expected, "the floor lets something go"
    (spelled,) = (entry["select"]["units"] for entry in result.lock["passes"] if "select" in entry)
    assert {name: len(units) for name, units in spelled.items()} == expected
    for name, units in spelled.items():
        alone = Select(units={name: units}).run(scored, Context()).program
        assert accuracy(Shrink().run(alone, Context()).program.module.eval(), DATA.val()) >= least - 1e-9


def test_limits_hold_beside_the_file(folder, scored):
    path = folder / "curves" / "sensitivity.csv"
    select = Select(**{"from": str(path), "floor": "-20%", "multiple_of": 4, "protect": ["layer3.*"]})
    widths = select.run(scored, Context()).details["widths"]
    assert any(after < before for before, after in widths.values())
    assert all(after % 4 == 0 for before, after in widths.values() if after < before)
    assert all(after == before for name, (before, after) in widths.items() if name.startswith("layer3"))


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Targets:
    def val(self):
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        return [(x[:12], x[:12, :2]), (x[12:], x[12:, :2])]

    train = test = val


def test_a_model_without_classes_has_losses(tmp_path):
    torch.manual_seed(0)
    model = Regression().eval()
    plan = Plan.from_dict({"plan": 1, "passes": ["score"]})
    program = load_program(plan, model, (torch.zeros(1, 4),))
    removed = {"a": {0.5: _units(3)}}
    curves, whole, loss, _ = measured(
        program, removed, Calibration(split="val", loss=LOSSES["mse"]), Context(data=Targets())
    )
    x = torch.cat([batch for batch, _ in Targets().val()])
    with torch.no_grad():
        assert loss == pytest.approx(float(((model(x) - x[:, :2]) ** 2).mean()), rel=1e-6)
        hidden = model.a(x).relu()
        hidden[:, :3] = 0
        assert curves[0].points[1].loss == pytest.approx(float(((model.b(hidden) - x[:, :2]) ** 2).mean()), rel=1e-6)
    assert math.isnan(whole)
    write_curves(tmp_path / "s.csv", curves, {})
    assert repr(read_curves(tmp_path / "s.csv")) == repr(curves)


def test_any_metric_has_curves():
    torch.manual_seed(0)
    model, x = Regression().eval(), torch.cat([batch for batch, _ in Targets().val()])
    program = load_program(Plan.from_dict({"plan": 1, "passes": ["score"]}), model, (torch.zeros(1, 4),))
    context = Context(data=Targets(), loss=LOSSES["mse"], metric=known_metric("mae", {}, None, None, LOSSES["mse"]))
    calibration = Calibration(split="val", loss=context.loss)
    curves, whole, _, _ = measured(program, {"a": {0.5: _units(3)}}, calibration, context)
    with torch.no_grad():
        hidden = model.a(x).relu()
        hidden[:, :3] = 0
        cut = float((model.b(hidden) - x[:, :2]).abs().mean())
        assert whole == pytest.approx(float((model(x) - x[:, :2]).abs().mean()), rel=1e-6)
    assert curves[0].points[1].metric == pytest.approx(cut, rel=1e-6)
    assert curves[0].judged == Judged("MAE", False, False)
    assert curves[0].drops[1] == pytest.approx(cut - whole, abs=1e-6)


def test_a_metric_that_was_asked_for_is_measured_or_refused():
    torch.manual_seed(0)
    model = Regression().eval()
    program = load_program(Plan.from_dict({"plan": 1, "passes": ["score"]}), model, (torch.zeros(1, 4),))
    context = Context(data=Targets(), loss=LOSSES["mse"], metric=Accuracy())
    with pytest.raises(DataError, match="the metric accuracy can't be measured"):
        measured(program, {"a": {0.5: _units(3)}}, Calibration(split="val", loss=context.loss), context)


@pytest.fixture
def plans(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(plan_text())
    Path("bare.yaml").write_text(plan_text().replace("data: prunec.models.data:digits\n", ""))
    Path("region.yaml").write_text(plan_text() + "region: layer1\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bare.yaml"], "the plan names no data to measure with\nhint: for example: data: prunec.models.data:digits\n"),
        (["region.yaml"], "region.yaml:9:9: the whole model is measured, and the plan names a region of it\n"),
        (
            ["plan.yaml", "--criterion", "taylr"],
            "--criterion:1:1: criterion must be the name of a criterion, got 'taylr'",
        ),
        (["plan.yaml", "--ratios", "10%,150%"], "--ratios:1:6: ratios[1] must be between 0 and 1, or a percentage"),
        (["plan.yaml", "--ratios", "[10%"], "--ratios:1:"),
        (["plan.yaml", "--split", "vall"], "--split:1:1: split must be 'train', 'val' or 'test'; got 'vall'"),
        (["plan.yaml", "--loss", "l1"], "--loss:1:1: loss must be "),
        (["plan.yaml", "--groups", "conv9"], "--groups: no group is called 'conv9'\nhint: did you mean 'conv1'?\n"),
        (
            ["plan.yaml", "--groups", "fc"],
            "the criterion l2 finds nothing that may go in the groups that were asked for",
        ),
        (
            ["plan.yaml", "-o", "mine"],
            "won't replace 'FOLDER/mine': it holds 'diary.txt', which no sensitivity wrote\n",
        ),
        (["nope.yaml"], "there is no 'nope.yaml'\nhint: did you mean 'plan.yaml'?\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told(plans, capsys, arguments, expected):
    assert cli.run(["sensitivity", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(expected.replace("FOLDER", str(plans)))
    assert not Path("sensitivity").exists()


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("{from: none.csv}", "plan.yaml:7:20: from: can't read the file FOLDER/none.csv: No such file or directory\n"),
        ("{from: other.csv}", "FOLDER/other.csv:2:1: the model has no group 'nothing'\n"),
        ("{from: none.csv, floor: 1pt}", "plan.yaml:7:37: floor must be a loss such as -1pt or -2%, got '1pt'\n"),
        ("{from: none.csv, floor: -0.01}", "plan.yaml:7:37: floor must be a loss such as -1pt or -2%, got -0.01\n"),
        ("{from: ''}", "plan.yaml:7:20: from must be a path, got ''\n"),
        (
            "{from: none.csv, ratio: 0.5}",
            "plan.yaml:7:5: select must say exactly one of ratio, widths, threshold, budget, from, units",
        ),
    ],
    ids=lambda value: value if value.startswith("{") else "",
)
@pytest.mark.parametrize("command", ["check", "compile"])
def test_a_plan_that_names_a_wrong_file_is_told(plans, capsys, command, select, expected):
    Path("plan.yaml").write_text(plan_text(select))
    Path("other.csv").write_text(CSV + "nothing,32,0,0,0.9,1\n")
    assert cli.run([command, "plan.yaml"]) == 1
    assert capsys.readouterr().err.startswith(expected.replace("FOLDER", str(plans)))


def test_the_plan_that_will_use_the_file_can_be_measured_first(plans, capsys):
    Path("plan.yaml").write_text(plan_text("{from: sensitivity/sensitivity.csv, floor: -1pt}"))
    assert (
        cli.run(["sensitivity", "plan.yaml", "--samples", "20", "--ratios", "50%", "--groups", "layer1.0.conv1"]) == 0
    )
    assert cli.run(["check", "plan.yaml"]) == 0


def test_a_plan_elsewhere_names_the_same_file(plans):
    plan = Plan.from_dict({"plan": 1, "passes": [{"select": {"from": "a/s.csv"}}]}, folder=plans)
    assert plan.to_dict()["passes"] == [{"select": {"from": str(plans / "a/s.csv")}}]
    there = plan.to_dict(relative_to=plans / "b")
    assert there["passes"] == [{"select": {"from": "../a/s.csv"}}]
    assert Plan.from_dict(there, folder=plans / "b") == plan
    assert json.loads(json.dumps(there)) == there


def test_there_is_a_limit_to_the_ratios():
    with pytest.raises(PlanError, match="1000"):
        said("ratios", ",".join(["10%"] * 1001))
