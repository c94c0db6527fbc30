"""Amounts as a plan writes them, and the limits that they mean."""

from __future__ import annotations

import json

import pytest
from selecting import selected

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.plan import Plan
from prunec.passes.select import Select
from prunec.passes.selection.amounts import amount


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (1, (1.0, "share")),
        ("1", (1.0, "share")),
        ("0.5", (0.5, "share")),
        ("100%", (1.0, "share")),
        ("2", (2.0, "")),
        ("0.0005k", (0.5, "")),
        ("0.5k", (500.0, "")),
        ("1B", (1.0, "B")),
        ("500us", (5e-4, "s")),
    ],
    ids=str,
)
def test_what_amounts_mean(text, means):
    name = {"B": "file_size", "s": "latency"}.get(means[1], "macs")
    chosen = Select(budget={name: text})
    assert amount(chosen.budget[name]).unit == means[1]
    assert amount(chosen.budget[name]).value == pytest.approx(means[0])


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ({"params": "0.5k"}, 500),
        ({"file_size": "4KiB"}, 4096),
        ({"memory": 200}, 200),
        ({"memory": "2400B"}, 300),
        ({"macs": "20k"}, 20000),
    ],
    ids=str,
)
def test_amounts(budget, limit):
    (reached,) = selected("chain", budget=budget).details["budget"].values()
    assert reached["limit"] == limit >= reached["reached"]


def plan_with(budget, **options):
    passes = [{"score": "l1"}, {"select": {"budget": budget, **options}}, "shrink"]
    return Plan.from_dict({"plan": 1, "inputs": [[1, 3, 8, 8]], "passes": passes})


@pytest.mark.parametrize(
    ("said", "name", "value"),
    [
        ({"ncnn": "5ms"}, "latency in ncnn", "5ms"),
        ({"ncnn": "50%"}, "latency in ncnn", 0.5),
        ({"torch": 0.25}, "latency in torch", 0.25),
        ({"onnxruntime": "50%"}, "latency", 0.5),
        ({"onnx": "50%"}, "latency", 0.5),
        ({"ort": "50%"}, "latency", 0.5),
        ("50%", "latency", 0.5),
    ],
    ids=str,
)
def test_latency_in_a_runtime(said, name, value):
    plan = plan_with({"latency": said, "macs": "60%"})
    chosen = plan.passes[1].pass_
    assert chosen.budget == {name: value, "macs": 0.6}
    assert chosen.resources() == {name, "macs"}
    assert Plan.from_dict(plan.to_dict()).passes[1].pass_ == chosen
    assert json.loads(json.dumps(plan.to_dict()))["passes"][1] == plan.to_dict()["passes"][1]


def test_a_price_of_latency_in_a_runtime():
    plan = plan_with({"macs": "60%"}, method="greedy", cost_weight={"latency": {"mnn": 0.5}, "macs": 1})
    assert plan.passes[1].pass_.cost_weight == {"latency in mnn": 0.5, "macs": 1.0}
    assert Plan.from_dict(plan.to_dict()).passes[1].pass_ == plan.passes[1].pass_


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ({"nccn": "5ms"}, "unknown runtime 'nccn'; there are coreml, ", "did you mean 'ncnn'?"),
        ({"ncnn": "5ms", "mnn": "6ms"}, "latency must name one runtime, got ncnn and mnn", "for example: {ncnn: 5ms}"),
        ({}, "latency must name one runtime, got none", "for example: {ncnn: 5ms}"),
        ({"ncnn": "5MB"}, "must name for latency in ncnn a share, or a time such as 5ms; it says 5MB", None),
        ({"ncnn": "fast"}, "must be a share such as 50%", None),
        ({"ncnn": {"mnn": "5ms"}}, "must be a share such as 50%", None),
    ],
    ids=str,
)
def test_faults_in_the_name_of_a_runtime(said, message, hint):
    with pytest.raises(PlanError) as caught:
        plan_with({"latency": said})
    assert message in caught.value.message
    assert hint is None or caught.value.hint == hint


def test_a_runtime_is_named_as_plans_name_it():
    with pytest.raises(PlanError) as caught:
        plan_with({"latency in ncnn": "5ms"})
    assert "unknown resource 'latency in ncnn'" in caught.value.message
    assert caught.value.hint == "latency in a runtime is written {latency: {ncnn: 50%}}"
