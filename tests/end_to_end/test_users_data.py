"""Data as users write them, from a plan to its report: what is refused and when, what is left out, what warns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunec.compiler.cli import main as cli
from prunec.compiler.driver.compile import compile
from prunec.compiler.errors import DataError, PassError, PrunecError
from prunec.compiler.plan.plan import Plan
from prunec.passes.score import Score
from prunec.passes.shrink import Shrink

NETS = """\
import torch
from torch import nn

X, Y = torch.linspace(-1, 1, 8 * 3 * 36).view(8, 3, 6, 6), torch.arange(8) % 4

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))

def good():
    return [(X, Y)]

def other():
    return [(X + 1, Y)]

def without_labels():
    return [X, X]

def float_labels():
    return [(X, Y.float())]

def fewer():
    return [(X, Y), (X, Y[:7])]

def three():
    return {"train": [(X, Y, Y)]}

def out_of_range():
    return [(X, Y), (X, Y + 1)]

class Failing:
    def train(self):
        yield X, Y
        raise SystemExit("no data set: run prepare.py first")
    val = test = train

class Nothing:
    def test(self):
        return None

def generator():
    yield X, Y
"""
PLAN = """\
plan: 1
model: nets.py:net
inputs: [[1, 3, 6, 6]]
data: nets.py:good
passes:
  - score: l1
  - select: 25%
  - shrink
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    return tmp_path


def run(command: str, data: str, score: str = "l1") -> int:
    Path("plan.yaml").write_text(PLAN.replace("good", data).replace("score: l1", f"score: {score}"))
    return cli.run([command, "plan.yaml"])


FAULTS = {
    "raises": ("Failing", "l1", "the data's test() failed at batch 1: SystemExit: no data set: run prepare.py first"),
    "no split": ("Nothing", "l1", "the data's test() gave None"),
    "read once": ("generator", "l1", "nets.py:generator gave a 'generator', which can be read once"),
    "labels": ("fewer", "l1", "batch 1 of the data: it has 8 inputs and 7 labels"),
    "label": ("out_of_range", "l1", "batch 1 of the data: it has the label 4, and the model gives 4 classes"),
    "three": ("three", "l1", "batch 0 of the data's train(): it must be (inputs, labels), got 3 values"),
    "no labels": ("without_labels", "taylor", "batch 0 of the data: the loss cross_entropy needs labels"),
    "no classes": ("float_labels", "class_maps", "one class a sample is needed as label; the labels are float32 [8]"),
    "no such split": ("Nothing", "taylor", "the data have no split 'train'"),
    "loss": ("float_labels", "taylor", "batch 0 of the data: the loss cross_entropy can't take outputs [8, 4]"),
}


@pytest.mark.parametrize(("data", "score", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_data_is_told_with_its_line_before_any_pass_runs(monkeypatch, capsys, data, score, message):
    monkeypatch.setattr(Shrink, "run", lambda *_: pytest.fail("a pass ran"))
    assert run("compile", data, score) == 1
    out, err = capsys.readouterr()
    first, second = err.splitlines()[:2]
    assert first.startswith("plan.yaml:4:7: ")
    assert message in first
    assert second.strip() == f"data: nets.py:{data}"
    assert out == ""
    assert not Path("out").exists()


CHECKED = {name: fault for name, fault in FAULTS.items() if name not in ("raises", "labels", "label")}
"""`check` reads the first batch alone."""


@pytest.mark.parametrize(("data", "score", "message"), CHECKED.values(), ids=CHECKED)
def test_check_says_what_a_compile_would(capsys, data, score, message):
    assert run("check", data, score) == 1
    assert message in capsys.readouterr().err


def test_no_data_for_a_criterion_that_needs_some(capsys):
    Path("plan.yaml").write_text(PLAN.replace("data: nets.py:good\n", "").replace("l1", "taylor"))
    expected = (
        "plan.yaml:5:12: calibration needs data, and the plan has none\n    - score: taylor\n             ^^^^^^\n"
        "hint: name a data factory, for example data: prunec.models.data:digits\n"
    )
    for command in ("check", "compile"):
        assert cli.run([command, "plan.yaml"]) == 1
        assert capsys.readouterr().err == expected


NEEDS = {
    "memory": ("{criterion: taylor, memory: 1B}", "one sample needs"),
    "a class that isn't there": ("{class_maps: {classes: [1, 9]}}", "there is no class 9: the model knows 4"),
    "an unknown group": ("{greedy_l1: {ratio: {nosuch: 50%}}}", "no group is called 'nosuch'"),
    "what goes": ("greedy_l1", "pass 'score' needs selection"),
    "a split": ("{criterion: taylor, split: val}", "the data have no split 'val'"),
}


@pytest.mark.parametrize(("score", "message"), NEEDS.values(), ids=NEEDS)
def test_check_says_what_a_criterion_needs(capsys, score, message):
    Path("nets.py").write_text(NETS.replace("return [(X, Y)]", "return {'train': [(X, Y)]}"))
    told = []
    for command in ("check", "compile"):
        score_entry = score if "criterion" in score else f"{{criterion: {score}}}"
        assert run(command, "good", score_entry) == 1
        told.append(capsys.readouterr().err)
    assert message in told[0]
    assert told[0].startswith("plan.yaml:")
    assert told[0] == told[1]


ASKED = {
    "a unit": ("{units: {'0': [99]}}", "the selection names unit 99 of '0', which has units 0 to 7"),
    "a group": ("{units: {nosuch: [0]}}", "the selection names group 'nosuch', which isn't there"),
    "a pinned unit": ("{units: {'4': [0]}}", "unit 0 of '4' may not be removed"),
    "every unit": ("{units: {'0': [0, 1, 2, 3, 4, 5, 6, 7]}}", "removes all 8 units of '0'"),
    "a pinned group": ("{ratio: {'4': 50%}}", "group '4' can't be cut: reaches the model's output"),
    "too wide": ("{widths: {'0': 99}}", "'0' asks for 99 channels of '0', which can have at most 8"),
    "a budget": ("{budget: {macs: 1%}}", "the budget can't be met"),
    "two budgets": ("{budget: {latency: 50%, params: 1%}}", "the budget can't be met: params"),
}


@pytest.mark.parametrize(("select", "message"), ASKED.values(), ids=ASKED)
def test_what_no_scores_can_give_is_refused_before_any_pass_runs(monkeypatch, capsys, select, message):
    monkeypatch.setattr(Score, "run", lambda *_: pytest.fail("a pass ran"))
    Path("plan.yaml").write_text(PLAN.replace("25%", select))
    told = []
    for command in ("check", "compile"):
        assert cli.run([command, "plan.yaml"]) == 1
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert told[0].startswith("plan.yaml:7:")
    assert message in told[0]


def test_a_budget_of_latency_alone_is_left_to_the_measurement(capsys):
    Path("plan.yaml").write_text(PLAN.replace("25%", "{budget: {latency: 90%}}"))
    assert cli.run(["check", "plan.yaml"]) == 0
    assert "not checked: the budget of latency, which has to be measured\n" in capsys.readouterr().out


def test_check_says_what_an_export_needs(capsys):
    assert run("check", "good") == 0
    Path("plan.yaml").write_text(PLAN + "export: [{onnx: {opset: 99}}]\n")
    assert cli.run(["check", "plan.yaml"]) == 1
    assert "opset 99 can't be exported" in capsys.readouterr().err
    Path("plan.yaml").write_text(PLAN + "export: [onnx]\n")
    assert cli.run(["check", "plan.yaml"]) == 0
    assert "export: onnx: the original can be exported\n" in capsys.readouterr().out


def test_a_second_round_that_needs_what_there_is_not_is_refused_before_the_first(monkeypatch):
    monkeypatch.setattr(Shrink, "run", lambda *_: pytest.fail("a pass ran"))
    plan = {
        "plan": 1,
        "passes": ["score", {"select": "25%"}, "shrink", {"score": "taylor"}, {"select": "25%"}, "shrink"],
    }
    with pytest.raises(PassError, match="calibration needs data"):
        compile(nets()["net"](), plan, (torch.ones(1, 3, 6, 6),))


# -- what is left out, and what warns ------------------------------------------------------------------------------


def nets() -> dict:
    made: dict = {}
    exec(NETS, made)
    return made


def test_what_cannot_be_measured_is_left_out_and_said(capsys):
    assert run("compile", "without_labels", "activation_mean") == 0
    why = "it needs one output [samples, classes] and the class of every sample; the data have no labels"
    assert f"accuracy: not measured: {why}\n" in capsys.readouterr().out
    report = json.loads(Path("out/report.json").read_text())
    assert "accuracy" not in report
    assert report["evaluation"] == {"split": "test", "samples": 8, "left_out": why}
    assert f"accuracy: not measured: {why}" in Path("out/report.html").read_text()
    assert run("check", "without_labels") == 0
    assert f"note: no accuracy will be measured: {why}\n" in capsys.readouterr().out


class Heads(nn.Module):
    """Two outputs, by position or by name."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.body, self.named = nn.Conv2d(3, 8, 3), named
        self.kind, self.box = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.body(x)).mean((2, 3))
        outputs = {"kind": self.kind(x), "box": self.box(x)}
        return outputs if self.named else tuple(outputs.values())


def pixels(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, width, 1))


def numbers(width: int) -> nn.Module:
    return nn.Sequential(pixels(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, width))


X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 2
FORMS = {
    "segmentation": (pixels(2), torch.ones(8, 6, 6, dtype=torch.long), "cross_entropy"),
    "heat maps": (pixels(2), torch.rand(8, 2, 6, 6), "mse"),
    "several outputs": (Heads(False), Y, "cross_entropy"),
    "named outputs": (Heads(True), Y, "cross_entropy"),
    "labels by position": (Heads(False), (torch.rand(8, 4), torch.rand(8, 2)), "mse"),
    "labels by name": (Heads(True), {"box": torch.rand(8, 2)}, "mse"),
    "regression": (numbers(2), torch.rand(8, 2), "mse"),
    "one number": (numbers(1), torch.rand(8), "mse"),
    "one number in a column": (numbers(1), torch.rand(8, 1), "mse"),
    "one logit": (numbers(1), Y, "binary_cross_entropy"),
    "multi-label": (numbers(4), torch.eye(4)[Y] > 0, "binary_cross_entropy"),
    "shares of classes": (numbers(4), torch.eye(4)[Y], "cross_entropy"),
}


@pytest.mark.parametrize("criterion", ["taylor", "obd_fisher", "oracle"])
@pytest.mark.parametrize(("model", "labels", "loss"), FORMS.values(), ids=FORMS)
def test_scores_work_for_every_form_of_outputs(model, labels, loss, criterion):
    plan = {"plan": 1, "passes": [{"score": {"criterion": criterion, "loss": loss}}, {"select": "25%"}, "shrink"]}
    report = compile(model, plan, (X[:1],), data=[(X, labels)]).report
    assert "accuracy" not in report
    assert report["evaluation"]["left_out"]
    assert report["cost"]["after"]["params"] < report["cost"]["before"]["params"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("column", [False, True])
def test_classes_of_every_type(dtype, column):
    labels = Y.to(dtype)[:, None] if column else Y.to(dtype)
    plan = {"plan": 1, "passes": [{"score": "taylor"}, {"select": "25%"}, "shrink"]}
    report = compile(numbers(2), plan, (X[:1],), data=[(X, labels)]).report
    assert report["accuracy"]["before"] in [n / 8 for n in range(9)]


def test_a_loader_alone_serves_every_pass_and_the_same_plan_gives_the_same():
    plan = {"plan": 1, "passes": [{"score": "taylor"}, {"select": "25%"}, "shrink"]}
    model = nets()["net"]()
    loader = DataLoader(TensorDataset(torch.cat([X] * 4), torch.arange(32) % 4), 8, shuffle=True)
    first, second = (compile(model, plan, (X[:1],), data=loader) for _ in range(2))
    assert first.lock == second.lock
    assert first.report["evaluation"] == {"split": "test", "samples": 32}


def test_a_plan_that_reads_one_split_needs_no_other():
    plan = {"plan": 1, "passes": [{"score": {"criterion": "taylor", "split": "val"}}, {"select": "25%"}, "shrink"]}
    report = compile(nets()["net"](), plan, (X[:1],), data={"val": [(X, Y)]}).report
    assert report["evaluation"]["split"] == "val"


def test_batches_in_the_models_precision():
    model = nets()["net"]().double()
    report = compile(model, {"plan": 1}, (X[:1].double(),), data=[(X, Y)]).report
    assert set(report["accuracy"]) == {"before", "after"}


def test_a_lock_whose_data_changed_warns(capsys):
    assert run("compile", "good") == 0
    assert "WARNING" not in capsys.readouterr().out
    lock = "out/plan.lock.json"
    assert cli.run(["compile", lock, "-o", "again"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert (
        json.loads(Path("again/plan.lock.json").read_text())["hashes"] == json.loads(Path(lock).read_text())["hashes"]
    )
    assert cli.run(["compile", lock, "-o", "other", "--set", "data=../nets.py:other"]) == 0
    told = "the data have changed since the lock was made: what is measured is of other samples than the lock's"
    assert capsys.readouterr().out.endswith(f"\nWARNING: {told}\n")
    report = json.loads(Path("other/report.json").read_text())
    assert report["alarms"] == [told]
    assert told in report["warnings"]
    assert "alarm" in Path("other/report.html").read_text()


def test_data_that_differ_at_each_reading_warn_and_leave_no_hash():
    class Drawn:
        def test(self):
            rng = torch.Generator()
            rng.seed()
            return [(torch.randn(8, 3, 6, 6, generator=rng), Y)]

    result = compile(nets()["net"](), {"plan": 1}, (X[:1],), data=Drawn())
    assert result.report["alarms"] == [
        "the data's test split gives other samples at each reading, for each model its own"
    ]
    assert "data" not in result.lock["hashes"]


def test_an_accuracy_that_collapses_warns():
    plan = Plan.load(Path(__file__).parents[2] / "plans/digits.yaml", ["export=[]", "passes.1.select.budget.macs=3%"])
    report = compile(None, plan).report
    (alarm,) = report["alarms"]
    assert alarm.startswith("accuracy fell from 99.44% to ")
    assert report["warnings"][0] == alarm


def test_python_data_that_are_none():
    for given in ("prunec.models.data:digits", iter([(X, Y)]), (X, Y), torch.ones(3), nets()["Failing"]):
        with pytest.raises(DataError, match=r"^the data are "):
            compile(nets()["net"](), {"plan": 1}, (X[:1],), data=given)


def test_a_region_is_measured_with_the_whole_model_and_scored_with_its_own_data():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = pixels(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x * 2).mean((2, 3)))

    plan = {"plan": 1, "region": "body", "passes": ["score", {"select": "25%"}, "shrink"]}
    assert "accuracy" in compile(Whole(), plan, (X[:1],), data=[(X, Y)]).report
    with pytest.raises(PrunecError, match="the loss cross_entropy can't take"):
        compile(
            Whole(), {**plan, "passes": [{"score": "taylor"}, {"select": "25%"}, "shrink"]}, (X[:1],), data=[(X, Y)]
        )
