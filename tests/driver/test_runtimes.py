"""A budget of latency names the runtime that counts: one for a plan, and one that can be timed here."""

from __future__ import annotations

import pytest
import torch
from nets import Made
from torch import nn

from prunec.compiler.cost.latency import table as latency_table
from prunec.compiler.driver.compile import compile
from prunec.compiler.driver.runtimes import runtime_among, runtime_of_plan
from prunec.compiler.errors import PassError, PrunecError
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.figures import foretold
from prunec.compiler.targets.base import TARGETS
from prunec.compiler.targets.exporting import missing
from prunec.models.digits import cnn


def select(latency, **more):
    return {"select": {"budget": {"latency": latency}, **more}}


def plan(*passes):
    return {"plan": 1, "inputs": [[1, 3, 8, 8]], "passes": [{"score": "l1"}, *passes, "shrink"]}


def net(width=8):
    return Made({"a": nn.Conv2d(3, width, 3), "b": nn.Conv2d(width, 8, 3)}, lambda m, x: m.b(m.a(x))).eval()


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


@pytest.mark.parametrize("runtime", ["torch", "ncnn", "mnn", "openvino", "executorch", "litert"])
def test_a_budget_in_a_named_runtime_is_met_and_told(runtime, tmp_path, monkeypatch):
    if (lacking := missing(TARGETS.named(runtime)())) is not None:
        pytest.skip(lacking.message)
    monkeypatch.setenv("PRUNEC_CACHE_DIR", str(tmp_path / "times"))
    for name, value in {"SWEEPS": 1, "NETWORK_SWEEPS": 1, "LAYER_SECONDS": 0.05, "NETWORK_SECONDS": 0.05}.items():
        monkeypatch.setattr(latency_table, name, value)
    torch.manual_seed(0)
    result = compile(net(128), {**plan(select({runtime: "90%"})), "inputs": [[1, 3, 32, 32]]})
    (reached,) = [p["details"]["budget"] for p in result.report["passes"] if "budget" in p["details"]]
    assert 0 < reached[f"latency in {runtime}"]["share"] <= 0.9
    report = result.write(tmp_path / "out")
    assert report.latency.runtime == runtime
    predicted, measured = report.latency.predicted, report.latency.measured
    assert predicted.after <= 0.9 * predicted.before * (1 + 1e-9)
    assert min(measured.before, measured.after) > 0
    assert report.to_dict()["latency"]["runtime"] == runtime
    assert foretold(report).startswith(f"latency in {runtime}: predicted ")
