"""The report as a value: what `to_dict` gives for report.json, in which order, and that nothing in it changes."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from example_reports import BARE, FULL, rounds

from prunec.compiler.report.report import Change, GroupWidths, Latency, Measured

ALWAYS = [
    "prunec",
    "model",
    "inputs",
    "cost",
    "groups",
    "macs_by_node",
    "trace_seconds",
    "passes",
    "warnings",
    "alarms",
]
SECTIONS = ["origin", "latency", "region", "classes", "metric", "accuracy", "evaluation", "weights", "onnx"]
WHOLE = {"macs": 1000, "params": 200, "memory": 64}
SLIM = {"macs": 400, "params": 90, "memory": 48}


def same(found, expected) -> bool:
    """Whether two plain values are equal, the order of keys included; JSON alone takes numbers for texts as keys."""
    return found == expected and json.dumps(found) == json.dumps(expected)


def test_what_is_no_number_is_none_since_json_has_no_word_for_it():
    history = ({"epoch": 1, "loss": math.nan}, {"epoch": 2, "loss": math.inf})
    record = replace(FULL.passes[0], history=history, details={"best": {"value": -math.inf, "steps": (math.nan, 1.0)}})
    said = replace(FULL, passes=(record,)).to_dict()
    json.dumps(said, allow_nan=False)
    assert [row["loss"] for row in said["passes"][0]["history"]] == [None, None]
    assert said["passes"][0]["details"] == {"best": {"value": None, "steps": [None, 1.0]}}


def test_a_bare_report_has_no_key_for_what_was_not_measured():
    expected = {
        "prunec": "0.1.0",
        "model": "Net",
        "inputs": [[1, 3, 8, 8], [1, 5]],
        "cost": {"before": WHOLE, "after": SLIM},
        "groups": [
            {
                "name": "conv",
                "units": 8,
                "channels": {"before": 16, "after": 6},
                "pinned": {"is added to the input": 2},
            },
            {
                "name": "fc",
                "units": 10,
                "channels": {"before": 10, "after": 10},
                "pinned": {"reaches the model's output": 10},
            },
        ],
        "macs_by_node": {"before": {"conv": 900, "fc": 100}, "after": {"conv": 350, "fc": 50}},
        "trace_seconds": 0.0123,
        "passes": [
            {
                "pass": "score",
                "seconds": 0.0019,
                "verify_seconds": 0.0,
                "before": WHOLE,
                "after": WHOLE,
                "notes": [{"subject": "fc", "reason": "has no scale"}],
                "details": {},
                "verification": None,
            },
            {
                "pass": "shrink",
                "seconds": 0.1,
                "verify_seconds": 0.0165,
                "before": WHOLE,
                "after": SLIM,
                "notes": [],
                "details": {"removed_units": {"conv": 5}},
                "verification": {"difference": 9.7e-07, "dtype": "float32", "batches": [2, 3]},
            },
        ],
        "warnings": [],
        "alarms": [],
    }
    assert list(expected) == ALWAYS
    assert same(BARE.to_dict(), expected)


def test_a_full_report_has_its_sections_behind_the_rest():
    found = FULL.to_dict()
    assert list(found) == [*ALWAYS, *SECTIONS, "targets"]
    assert found["warnings"] == ["accuracy fell", "weights differ"]
    assert found["alarms"] == ["accuracy fell"]
    expected = {
        "origin": {
            "plan": "plans/small.yaml",
            "model": "nets:small",
            "weights": "small.safetensors",
            "weights_sha256": "ab" * 32,
            "data": "nets:images",
            "date": "2026-11-27T03:11:25+00:00",
            "seed": 3,
            "versions": {"prunec": "0.1.0", "torch": "2.9.0"},
            "use": ["from model import load", "model = load()", "outputs = model(x)"],
        },
        "latency": {
            "runtime": "onnxruntime",
            "predicted": {"before": 0.002, "after": 0.001},
            "measured": {"before": 0.004, "after": 0.0025},
        },
        "region": {
            "names": ["backbone"],
            "difference": 3e-07,
            "splice": ["from model import splice; splice(model)"],
        },
        "classes": {
            "kept": [3, 5],
            "of": 10,
            "names": ["cat", "dog"],
            "renormalised": True,
            "balanced_accuracy": {"before": 0.875, "after": 0.75},
            "samples": [8, 4],
            "accuracy": [{"before": 1.0, "after": 0.75}, {"before": 0.75, "after": 0.75}],
        },
        "metric": {"name": "accuracy", "higher_is_better": True, "before": 0.99, "after": 0.98},
        "accuracy": {"before": 0.99, "after": 0.98},
        "evaluation": {"split": "val", "samples": 1200},
        "weights": {"before": 117_912, "after": 58_600},
        "onnx": {
            "opset": 20,
            "ir_version": 10,
            "bytes": {"before": 120_000, "after": 60_000},
            "dynamic_batch": True,
            "static_reason": "",
            "differences": {"1": 2.5e-07, "3": 3.1e-07},
            "max_difference": 3.1e-07,
            "float64_note": "",
            "writer": "direct",
            "fallback": "",
            "latency": {"before": 0.00013, "after": 0.000065},
        },
    }
    assert same({name: found[name] for name in SECTIONS}, expected)


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "accuracy"])
def test_each_section_is_absent_by_itself(section):
    keys = ["metric", "accuracy"] if section == "metric" else [section]
    without = replace(FULL, **{section: None}).to_dict()
    assert list(without) == [*ALWAYS, *(name for name in SECTIONS if name not in keys), "targets"]
    alone = replace(BARE, **{section: getattr(FULL, section)}).to_dict()
    assert list(alone) == [*ALWAYS, *keys]


def test_what_was_exported_stands_behind_the_sections():
    (onnx, coreml, ncnn) = FULL.to_dict()["targets"]
    assert onnx["latency"] == [
        {"threads": 1, "slim": 0.000065, "dense": 0.00013},
        {"threads": 2, "slim": 0.00005, "dense": 0.0001},
    ]
    assert (onnx["int8"]["bytes"], onnx["int8"]["before"], onnx["int8"]["after"]) == (20_000, 0.98, 0.975)
    assert "error" not in onnx
    assert (coreml["unrunnable"], "difference" in coreml) == ("it runs on macOS alone", False)
    assert (ncnn["files"], ncnn["log"]) == ([], "ignore erfinv")
    assert "targets" not in BARE.to_dict()


def test_another_metric_is_no_accuracy():
    found = replace(BARE, metric=Measured("RMSE", False, False, Change(1.5, math.inf))).to_dict()
    assert found["metric"] == {"name": "RMSE", "higher_is_better": False, "before": 1.5, "after": None}
    assert "accuracy" not in found


def test_a_latency_that_was_only_predicted():
    assert Latency(Change(2.0, 1.0)).to_dict() == {
        "runtime": "onnxruntime",
        "predicted": {"before": 2.0, "after": 1.0},
    }


def test_every_field_is_a_key():
    noted = replace(FULL, notes=("the weights were in a checkpoint",), unmeasured=("the latency",)).to_dict()
    assert {field.name for field in fields(FULL)} | {"accuracy"} == set(noted)
    assert noted["notes"] == ["the weights were in a checkpoint"]


@pytest.mark.parametrize(
    "value",
    [FULL, FULL.cost, FULL.groups[0], FULL.passes[0], FULL.origin, FULL.latency, FULL.region, FULL.classes, FULL.onnx],
    ids=lambda value: type(value).__name__,
)
def test_nothing_in_it_can_be_set(value):
    name = fields(value)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)
    assert not hasattr(value, "__dict__")


def test_what_is_changed_in_the_plain_values_is_not_changed_in_the_report():
    before, plain = json.dumps(FULL.to_dict()), FULL.to_dict()
    plain["macs_by_node"]["before"].clear()
    plain["groups"][0]["pinned"].clear()
    plain["passes"][1]["details"].clear()
    plain["onnx"]["differences"].clear()
    plain["cost"]["after"]["macs"] = 0
    assert json.dumps(FULL.to_dict()) == before


def test_a_change_of_a_part():
    assert FULL.cost.each(lambda cost: cost.macs) == Change(1000, 400)
    assert FULL.onnx.bytes == Change(120_000, 60_000)


@pytest.mark.parametrize(
    ("pinned", "expected"),
    [({}, False), ({"a": 3}, False), ({"a": 3, "b": 1}, True)],
    ids=["free", "in part", "wholly"],
)
def test_a_group_is_pinned_if_all_its_units_are(pinned, expected):
    assert GroupWidths("g", 4, Change(4, 4), pinned).is_pinned is expected


def test_rounds_stand_in_their_passs_record_and_their_passes_behind_it():
    first, *rest = rounds(2).to_dict()["passes"]
    assert first["rounds"] == {
        "ends": "accuracy is 96.00%, below the floor of 97.00%: it is given up",
        "metric": "accuracy",
        "share": True,
        "floor": 0.97,
        "rows": [
            {"round": 0, "macs": 1000, "params": 200, "memory": 64, "metric": 0.99, "kept": True},
            {"round": 1, "macs": 700, "params": 200, "memory": 64, "metric": 0.98, "kept": True},
            {"round": 2, "macs": 400, "params": 200, "memory": 64, "metric": 0.97, "kept": False},
        ],
    }
    assert "round" not in first
    assert [(each["pass"], each.get("round")) for each in rest] == [
        ("score", 1),
        ("shrink", 1),
        ("score", 2),
        ("shrink", 2),
        ("shrink", None),
    ]
    assert not any("rounds" in each for each in rest)
