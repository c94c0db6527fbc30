"""Exports in a plan: which targets it may name, what is said of them, and what is wrong with an entry."""

from __future__ import annotations

import importlib.metadata
from functools import cache

import pytest
from pydantic import ValidationError

from prunec.compiler import plugins
from prunec.compiler.errors import PlanError, PrunecError
from prunec.compiler.plan.exports import EXPORTING, PlanExport, all_options
from prunec.compiler.plan.plan import Plan
from prunec.compiler.targets.onnx_file import OnnxOptions, OrtInt8


def of(*exports):
    return Plan.from_dict({"plan": 1, "passes": [], "export": list(exports)})


def test_options_do_not_change_and_know_their_keys():
    export = OnnxOptions()
    with pytest.raises(ValidationError, match="frozen"):
        export.opset = 21
    for wrong in ({"opset": 17}, {"dynamic": ["depth"]}, {"name": "x"}, {"int8": {"mode": "both"}}):
        with pytest.raises(ValidationError):
            OnnxOptions.model_validate(wrong)


def test_an_entry_is_a_target_with_its_options():
    first, second, third = of("ort", {"onnx": {"int8": True}}, {"openvino": None}).export
    assert (first.name, first.target.name) == ("ort", "ort")
    assert second.options.int8 == OrtInt8()
    assert third.options.int8 is None
    assert second.to_dict() == {
        "onnx": {"opset": 20, "dynamic": ["batch"], "int8": {"samples": 128, "per_channel": True, "mode": "static"}}
    }
    assert Plan.from_dict(of("ort", {"onnx": {"int8": True}}).to_dict()).export == (first, second)


@pytest.mark.parametrize(
    ("exports", "runtime"),
    [((), "torch"), (("onnx", "openvino"), "onnxruntime"), (("ort",), "onnxruntime"), (("openvino",), "openvino")],
)
def test_widths_are_those_of_the_first_exports_runtime(exports, runtime):
    assert of(*exports).runtime == runtime


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("onxx", "unknown export 'onxx'"),
        ("torch", "unknown export 'torch'"),
        ({"ort": {"style": "small"}}, "'fixed' or 'runtime'"),
        ({"openvino": {"opset": 20}}, "opset"),
        ({"openvino": {"int8": 3}}, "int8"),
    ],
)
def test_what_is_wrong_is_told(entry, words):
    with pytest.raises(PlanError) as caught:
        of(entry)
    assert words in str(caught.value)


def test_names_are_those_of_targets_that_write_files(monkeypatch):
    names = list(EXPORTING)
    assert {"onnx", "ort", "openvino"} <= set(names) == set(all_options())
    assert "torch" not in EXPORTING
    assert "onnxruntime" not in names
    assert len(EXPORTING) == len(names)


def test_a_package_that_can_not_be_imported_harms_its_own_target_alone(monkeypatch):
    entry = importlib.metadata.EntryPoint("broken", "no_such_module:Broken", "prunec.targets")
    known = dict(plugins._found("prunec.targets"))
    monkeypatch.setattr(plugins, "_found", cache(lambda group: known | {"broken": (entry,)}))
    assert "broken" not in list(EXPORTING)
    with pytest.raises(PlanError, match="unknown export 'onxx'"):
        of("onxx")
    with pytest.raises(PrunecError, match="can't be imported"):
        of("broken")


def test_an_entry_is_equal_wherever_it_stands():
    assert PlanExport("onnx", OnnxOptions()) == of("onnx").export[0]
