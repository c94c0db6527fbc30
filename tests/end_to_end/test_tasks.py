"""Whatever a model is for is said once in its plan: the loss and the metric of a segmentation, a regression, of two
outputs, and what users bring along."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from prunec.compiler.cli import main as cli
from prunec.compiler.driver.compile import compile

TASK = '''
import torch
import torch.nn.functional as F
from torch import nn


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lraspp():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def scenes():
    x, t = random(6, 3, 32, 32), torch.randint(0, 3, (6, 32, 32), generator=torch.Generator().manual_seed(1))
    t[:, :4] = 255
    batches = [(x[:4], t[:4]), (x[4:], t[4:])]
    return {"train": batches, "val": batches, "test": batches}


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 1)

    def forward(self, x):
        return self.b(self.a(x).relu())


def numbers(column=False):
    x = random(24, 4)
    t = x.sum(1, keepdim=column)
    return {"train": [(x, t)], "val": [(x, t)], "test": [(x[:16], t[:16]), (x[16:], t[16:])]}


class Two(nn.Module):
    def __init__(self, named=True):
        super().__init__()
        self.a, self.kind, self.depth, self.named = nn.Linear(4, 12), nn.Linear(12, 3), nn.Linear(12, 1), named

    def forward(self, x):
        h = self.a(x).relu()
        return {"kind": self.kind(h), "depth": self.depth(h)} if self.named else (self.kind(h), self.depth(h))


def both(named=True):
    x = random(24, 4)
    t = {"kind": x[:, :3].argmax(1), "depth": x.sum(1)}
    return [(x, t if named else (t["kind"], t["depth"]))]


def multitask(outputs, labels):
    depth = F.mse_loss(outputs["depth"][:, 0], labels["depth"], reduction="none")
    return F.cross_entropy(outputs["kind"], labels["kind"], reduction="none") + depth


def batch_mean(outputs, labels):
    return multitask(outputs, labels).mean()


def close(outputs, labels, by=1.0):
    return ((outputs["depth"][:, 0] - labels["depth"]).abs() < by).float()


class Worst:
    """The largest error."""

    higher_is_better = False

    def __init__(self):
        self.found = 0.0

    def update(self, outputs, labels):
        self.found = max(self.found, float((outputs["depth"][:, 0] - labels["depth"]).abs().max()))

    def compute(self):
        return self.found


def broken(outputs, labels):
    raise KeyError("depht")
'''
PASSES = ["score", {"select": "50%"}, "shrink"]
TAYLOR = [{"score": "taylor"}, {"select": "50%"}, "shrink"]
TRAINED = [*TAYLOR, {"finetune": {"epochs": 2, "lr": 0.01, "keep": "best"}}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    torch.manual_seed(0)


def compiled(model: str, data: str, shape: list[int], passes=PASSES, **said):
    plan = {"plan": 1, "model": f"task.py:{model}", "inputs": [shape], "data": data, "passes": passes}
    return compile(None, plan | said)


def test_a_segmentation():
    void = {"args": {"ignore_index": 255}}
    result = compiled(
        "lraspp",
        "task.py:scenes",
        [1, 3, 32, 32],
        TRAINED,
        loss={"name": "cross_entropy", **void},
        metric={"name": "mean_iou", **void},
    )
    found = result.report["metric"]
    assert (found["name"], found["higher_is_better"]) == ("mean IoU", True)
    assert "accuracy" not in result.report
    scores = torch.cat([result.module(x)["out"] for x, _ in scenes()]).argmax(1)
    labels = torch.cat([t for _, t in scenes()])
    seen = labels != 255
    by_hand = [
        float(((scores == k) & (labels == k)).sum() / (((scores == k) | (labels == k)) & seen).sum()) for k in range(3)
    ]
    assert found["after"] == pytest.approx(sum(by_hand) / 3, abs=1e-6)


def scenes():
    names: dict = {}
    exec(TASK, names)
    return names["scenes"]()["test"]


@pytest.mark.parametrize("column", [True, False])
def test_a_regression(column):
    data = {"factory": "task.py:numbers", "args": {"column": column}}
    result = compiled("Mlp", data, [1, 4], TRAINED, loss="mse", metric="rmse")
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = float(F.mse_loss(result.module(x)[:, 0], x.sum(1))) ** 0.5
    found = result.report["metric"]
    assert found["after"] == pytest.approx(wanted, rel=1e-5)
    assert (found["name"], found["higher_is_better"]) == ("RMSE", False)
    untrained = compiled("Mlp", data, [1, 4], TAYLOR, loss="mse", metric="rmse").report["metric"]
    assert found["after"] < untrained["after"]


def test_the_loss_is_measured_where_the_plan_names_it_and_accuracy_cannot_be():
    result = compiled("Mlp", "task.py:numbers", [1, 4], loss="mse")
    assert result.report["metric"]["name"] == "loss (mse)"
    assert compiled("Mlp", "task.py:numbers", [1, 4], loss="mse", metric="mae").report["metric"]["name"] == "MAE"


METRICS = {
    "kind": "accuracy of kind",
    "depth": "RMSE of depth",
    "f1": "MulticlassF1Score of kind",
    "close": "close",
    "worst": "Worst",
}
SAID = {
    "kind": {"name": "accuracy", "output": "kind"},
    "depth": {"name": "rmse", "output": "depth"},
    "f1": {"name": "MulticlassF1Score", "args": {"num_classes": 3}, "output": "kind"},
    "close": {"name": "task.py:close", "args": {"by": 2.0}, "better": "higher"},
    "worst": "task.py:Worst",
}


@pytest.mark.parametrize("name", METRICS)
def test_two_outputs(name):
    result = compiled("Two", "task.py:both", [1, 4], TRAINED, loss="task.py:multitask", metric=SAID[name])
    found = result.report["metric"]
    assert found["name"] == METRICS[name]
    assert found["higher_is_better"] is (name not in ("depth", "worst"))
    assert 0 <= found["after"] < 10
    result.save("out")  # beside it, the paths of the loss and the metric are other ones
    again = compile(None, Path("out/plan.lock.json"))
    assert again.lock["hashes"] == result.lock["hashes"]
    assert again.report["metric"] == found
    assert again.findings.warnings == result.findings.warnings


def test_two_outputs_by_position():
    data = {"factory": "task.py:both", "args": {"named": False}}
    model = {"factory": "task.py:Two", "args": {"named": False}}
    plan = {"plan": 1, "model": model, "inputs": [[1, 4]], "data": data, "passes": PASSES}
    report = compile(None, plan | {"metric": {"name": "mae", "output": 1}}).report
    assert report["metric"]["name"] == "MAE of output 1"


REFUSED = {
    "which of two": ({"metric": "rmse"}, "2 outputs have labels: 'output' says which is meant, of kind, depth"),
    "no such output": (
        {"metric": {"name": "rmse", "output": "dept"}},
        "the model has no output 'dept': it gives kind, depth\n(.|\n)*did you mean 'depth'",
    ),
    "no classes": (
        {"metric": {"name": "accuracy", "output": "depth"}},
        r"the metric accuracy can't be measured: .*the model gives \[24, 1\]",
    ),
    "which way is up": (
        {"metric": "task.py:close"},
        "nobody says whether more or less of task.py:close is better\n(.|\n)*better: higher",
    ),
    "their own error": (
        {"metric": {"name": "task.py:broken", "better": "lower"}},
        r"the metric task.py:broken failed: KeyError: 'depht' \(.*task.py:\d+, in broken\)",
    ),
    "an error in the loss": (
        {"loss": "task.py:broken"},
        r"the loss task.py:broken failed: KeyError: 'depht' \(.*task.py:\d+, in broken\)",
    ),
    "one number": (
        {"loss": "task.py:batch_mean"},
        r"the loss task.py:batch_mean gives one number for 24 samples, and the criterion taylor needs that of each",
    ),
    "no such name": (
        {"metric": "MulticlassF1Scor"},
        "torchmetrics has no class 'MulticlassF1Scor'\n(.|\n)*did you mean 'MulticlassF1Score'",
    ),
    "without its argument": ({"metric": "MulticlassF1Score"}, "MulticlassF1Score needs the argument 'num_classes'"),
    "with another": (
        {"metric": {"name": "R2Score", "args": {"classes": 3}}},
        "R2Score failed: ValueError: Unexpected keyword arguments: `classes`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_told_at_its_place_before_any_work(name, capsys):
    said, message = REFUSED[name]
    plan = {"plan": 1, "model": "task.py:Two", "inputs": [[1, 4]], "data": "task.py:both", "passes": TAYLOR}
    Path("plan.yaml").write_text(json.dumps({"loss": "task.py:multitask", **plan, **said}, indent=1))
    for command in (["compile", "plan.yaml", "-o", "out"], ["check", "plan.yaml"]):
        assert cli.run(command) == 1
        error = capsys.readouterr().err
        assert error.startswith("plan.yaml:"), error
        assert re.search(message, error), error
    assert not Path("out").exists()


def test_a_loss_of_one_number_serves_who_needs_the_sum(capsys):
    passes = [{"score": "taylor_signed"}, {"select": "50%"}, "shrink"]
    mean = compiled("Two", "task.py:both", [1, 4], passes, loss="task.py:batch_mean")
    each = compiled("Two", "task.py:both", [1, 4], passes, loss="task.py:multitask")
    assert mean.lock["removed"] == each.lock["removed"]


def test_without_a_word_it_is_left_out_and_the_key_is_named(capsys):
    plan = {"plan": 1, "model": "task.py:Two", "inputs": [[1, 4]], "data": "task.py:both", "passes": PASSES}
    Path("plan.yaml").write_text(json.dumps(plan))
    assert cli.run(["compile", "plan.yaml", "-o", "out", "-q", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "accuracy: not measured: it needs one output [samples, classes]" in out
    assert "\nhint: say what is measured, for example metric: rmse" in out
    assert "hint: say what is measured" in Path("out/report.html").read_text()
    assert "metric" not in json.loads(Path("out/report.json").read_text())


@pytest.mark.parametrize("said", [{}, {"metric": "rmse"}], ids=["the loss", "a metric where less is better"])
def test_the_best_epoch_goes_by_what_is_measured(said):
    found = {}
    for keep in ("best", "last"):
        trained = [*TAYLOR, {"finetune": {"epochs": 6, "lr": 0.6, "schedule": "constant", "keep": keep}}]
        found[keep] = compiled("Mlp", "task.py:numbers", [1, 4], trained, loss="mse", **said).report["metric"]
    assert found["best"]["name"] == ("RMSE" if said else "loss (mse)")
    assert found["best"]["after"] < found["last"]["after"]


def test_a_metric_and_no_data_is_said():
    plan = {"plan": 1, "model": "task.py:Mlp", "inputs": [[1, 4]], "passes": PASSES, "metric": "rmse"}
    assert "the plan names the metric rmse, and no data to measure it on" in compile(None, plan).report["warnings"]


def test_sensitivity_by_the_plans_metric(capsys):
    plan = {"plan": 1, "model": "task.py:Mlp", "inputs": [[1, 4]], "data": "task.py:numbers", "passes": PASSES}
    Path("plan.yaml").write_text(json.dumps({**plan, "loss": "mse", "metric": "rmse"}))
    assert cli.run(["sensitivity", "plan.yaml", "--split", "test", "--ratios", "25%,50%", "-q"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Mlp: RMSE ")
    assert "RMSE risen by" in out
    assert "RMSE within 2%" in out
    header = Path("sensitivity/sensitivity.csv").read_text().splitlines()[0]
    assert header.startswith("group,units,ratio,removed,metric,loss,name,better,")
    held = {"select": {"from": "sensitivity/sensitivity.csv", "floor": "-50%"}}
    assert cli.run(["compile", "plan.yaml", "-o", "out", "-q", "--quick", "--set", f"passes.1={json.dumps(held)}"]) == 0
