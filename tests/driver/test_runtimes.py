"""A budget of latency names the runtime that counts: one for a plan, and one that can be timed here."""

from __future__ import annotations

import pytest
import torch
from nets import Made
from torch import nn

from prunec.compiler.driver.compile import compile
from prunec.compiler.driver.runtimes import runtime_among, runtime_of_plan
from prunec.compiler.errors import PassError, PrunecError
from prunec.compiler.plan.plan import Plan
from prunec.compiler.targets.base import TARGETS
from prunec.models.digits import cnn


def select(latency, **more):
    return {"select": {"budget": {"latency": latency}, **more}}


def plan(*passes):
    return {"plan": 1, "inputs": [[1, 3, 8, 8]], "passes": [{"score": "l1"}, *passes, "shrink"]}


def net():
    return Made({"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 8, 3)}, lambda m, x: m.b(m.a(x))).eval()


@pytest.fixture
def never_measured(monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing is measured before the plan is checked")

    monkeypatch.setattr("prunec.compiler.cost.latency.model.latency_model", refuse)


FAULTS = {
    "a runtime that only runs elsewhere": (
        [select({"coreml": "5ms"})],
        "times can't be taken in coreml: Core ML runs on macOS alone",
    ),
    "two runtimes in two passes": (
        [select({"torch": "90%"}), "shrink", {"score": "l1"}, select("50%")],
        "budgets of latency are in one runtime, and these in torch and in onnxruntime",
    ),
    "not installed": ([select({"mnn": "50%"})], "mnn needs no-such-package, which isn't installed"),
}


@pytest.mark.parametrize(("passes", "message"), FAULTS.values(), ids=FAULTS)
def test_what_can_not_be_measured_is_told_before(passes, message, monkeypatch, never_measured):
    if "mnn" in message:
        monkeypatch.setattr(TARGETS.named("mnn"), "needs", ("no-such-package>=1",))
    if "coreml" in message:
        monkeypatch.setattr(TARGETS.named("coreml"), "needs", ())
        monkeypatch.setattr(TARGETS.named("coreml"), "unrunnable", lambda self: "Core ML runs on macOS alone")
    with pytest.raises(PassError) as caught:
        compile(net(), plan(*passes))
    assert caught.value.message == message
    assert caught.value.hint


def test_the_place_of_the_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(TARGETS.named("mnn"), "needs", ("no-such-package>=1",))
    path = tmp_path / "plan.yaml"
    path.write_text(
        "plan: 1\nmodel: {factory: prunec.models.digits:cnn}\ninputs: [[1, 1, 8, 8]]\n"
        "passes:\n- score: l1\n- select: {budget: {latency: {mnn: 50%}}}\n- shrink\n"
    )
    with pytest.raises(PrunecError) as caught:
        compile(cnn().eval(), path)
    assert caught.value.at.line == 6
    assert "pip install 'prunec[mnn]'" in caught.value.hint


def test_the_runtime_of_resources_and_of_plans():
    assert runtime_among({"macs", "latency"}) == "onnxruntime"
    assert runtime_among({"macs", "latency in ncnn"}) == "ncnn"
    assert runtime_among({"macs"}) is None
    assert runtime_of_plan(Plan.of(plan(select({"ncnn": "50%"})))) == "ncnn"
    assert runtime_of_plan(Plan.of(plan({"select": "50%"}))) == "onnxruntime"


def test_a_budget_in_a_named_runtime_is_met_and_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEC_CACHE_DIR", str(tmp_path / "times"))
    torch.manual_seed(0)
    model = Made(
        {"a": nn.Conv2d(3, 64, 3, padding=1), "b": nn.Conv2d(64, 64, 3, padding=1), "c": nn.Conv2d(64, 4, 1)},
        lambda m, x: m.c(m.b(m.a(x))),
    ).eval()
    given = {**plan(select({"torch": "60%"})), "inputs": [[1, 3, 24, 24]]}
    result = compile(model, given)
    (reached,) = [p["details"]["budget"] for p in result.report["passes"] if "budget" in p["details"]]
    assert reached["latency in torch"]["share"] <= 0.6
    report = result.write(tmp_path / "out")
    assert report.latency.runtime == "torch"
    predicted, measured = report.latency.predicted, report.latency.measured
    assert predicted.after <= 0.6 * predicted.before * (1 + 1e-9)
    assert measured.after < measured.before
    assert report.to_dict()["latency"]["runtime"] == "torch"
