"""The plan language: what loads, what is refused and in which words, and the JSON schema."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fake_passes import Pick, Tidy, Trim, point

from prunec.compiler.errors import PlanError
from prunec.compiler.pass_base import PASSES
from prunec.compiler.plan.exports import all_options
from prunec.compiler.plan.plan import Plan, schema
from prunec.compiler.plan.source import PlanErrors

FULL = """\
plan: 1
model: {factory: nets:small, args: {classes: 10}, weights: w.safetensors}
inputs:
  - [1, 3, 32, 32]
  - {shape: [1, 7], dtype: int64, high: 100}
data: {factory: sets.py:digits}
passes:
  - pick: {ratio: 25%, protect: ["head.*"]}
  - trim: 0.5
  - tidy
export:
  - onnx: {opset: 21}
  - onnx
seed: 3
"""


def test_a_full_plan_loads(load, files):
    plan = load(FULL)
    assert plan.model is not None
    assert plan.data is not None
    assert (str(plan.model.factory), plan.model.args) == ("nets:small", {"classes": 10})
    assert plan.model.weights is not None
    assert plan.model.weights.file == files / "w.safetensors"
    assert str(plan.data.factory) == f"{files / 'sets.py'}:digits"
    assert [(spec.shape, spec.dtype, spec.high) for spec in plan.inputs] == [
        ((1, 3, 32, 32), "float32", None),
        ((1, 7), "int64", 100),
    ]
    assert [entry.pass_ for entry in plan.passes] == [Pick(ratio=0.25, protect=("head.*",)), Trim(ratio=0.5), Tidy()]
    assert [str(entry.at) for entry in plan.passes] == ["plan.yaml:8:5", "plan.yaml:9:5", "plan.yaml:10:5"]
    assert plan.passes[1].options == {"ratio": 0.5}
    assert [(export.name, export.options.opset) for export in plan.export] == [("onnx", 21), ("onnx", 20)]
    assert plan.seed == 3


def test_defaults(load):
    plan = load("plan: 1\n")
    assert (plan.model, plan.inputs, plan.data, plan.passes, plan.export, plan.seed) == (None, (), None, (), (), 0)


def test_a_plan_does_not_change(load):
    with pytest.raises(ValueError, match="frozen"):
        load("plan: 1\n").seed = 4


@pytest.mark.parametrize("folder", [None, "elsewhere"], ids=["absolute paths", "relative paths"])
def test_to_dict_loads_again(load, files, folder):
    plan = load(FULL)
    written = json.loads(json.dumps(plan.to_dict(folder)))
    assert Plan.from_dict(written, folder or ".") == plan
    assert Plan.from_dict({**written, "seed": 4}, folder or ".") != plan
    assert written["model"]["weights"] == ("../w.safetensors" if folder else str(files / "w.safetensors"))


def test_to_dict_spells_out_the_defaults(load):
    assert load("plan: 1\nmodel: nets:small\nexport: [onnx]\npasses: [tidy]\n").to_dict() == {
        "plan": 1,
        "model": {"factory": "nets:small", "args": {}},
        "inputs": [],
        "mode": "eval",
        "device": "auto",
        "passes": ["tidy"],
        "export": [{"onnx": {"opset": 20, "dynamic": ["batch"]}}],
        "seed": 0,
    }


def test_of_takes_whatever_names_a_plan(load, tmp_path):
    plan = load("plan: 1\nseed: 5\n")
    path = tmp_path / "plan.yaml"
    assert Plan.of(plan) is plan
    assert Plan.of({"plan": 1, "seed": 5}) == Plan.of(path) == Plan.of(str(path)) == plan


def read_cases(path: Path) -> list[Any]:
    """The cases of a file: `[case NAME]`, a plan, `[out]`, the whole error that it gives."""
    blocks = re.findall(
        r"^\[case (.+)\]\n((?s:.*?))^\[out\]\n((?s:.*?))(?=^\[case |\Z)", path.read_text(), re.MULTILINE
    )
    assert blocks, f"no cases in {path}"
    return [pytest.param(text, expected.strip("\n"), id=name) for name, text, expected in blocks]


CASES = read_cases(Path(__file__).with_name("plan_errors.txt"))
HOSTILE = [
    pytest.param("plan: \x01\n", "plan.yaml:1:7: the character U+0001 may not stand in a plan", id="control character"),
    pytest.param("[" * 200_000 + "]" * 200_000, "plan.yaml:1:101: nested deeper than 100 levels", id="endless nesting"),
]


@pytest.mark.parametrize(("text", "expected"), [*CASES, *HOSTILE])
def test_a_fault_is_shown_where_it_stands(load, tmp_path, text, expected):
    with pytest.raises(PlanError) as caught:
        load(text)
    assert str(caught.value).replace(str(tmp_path), "FOLDER") == expected
    assert caught.value.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"plan.yaml"}, "loading a plan ran something"


def test_all_faults_are_shown_in_order(load):
    with pytest.raises(PlanErrors) as caught:
        load("plan: 1\nsed: 1\npasses:\n  - pick: {keep: x, ratoi: 1}\n  - tdiy\n  - trim: 2\n", "seed=x")
    expected = """\
        plan.yaml:2:1: unknown key 'sed'
            sed: 1
            ^^^
        hint: did you mean 'seed'?
        plan.yaml:4:18: keep must be a whole number, got 'x'
            - pick: {keep: x, ratoi: 1}
                           ^
        plan.yaml:4:21: unknown key 'ratoi'
            - pick: {keep: x, ratoi: 1}
                              ^^^^^
        hint: did you mean 'ratio'?
        plan.yaml:5:5: unknown pass 'tdiy'
            - tdiy
              ^^^^
        hint: did you mean 'tidy'?
        plan.yaml:6:11: ratio must be between 0 and 1, or a percentage; got 2
            - trim: 2
                    ^
        hint: did you mean '2%'?
        --set:1:6: seed must be a whole number, got 'x'
            seed=x
                 ^
        6 errors"""
    assert str(caught.value) == textwrap.dedent(expected)
    assert caught.value.at == caught.value.errors[0].at


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (
            {"plan": 1, "passes": ["tidy", {"pick": {"ratio": 1.5}}]},
            "passes.1.pick.ratio: ratio must be between 0 and 1, or a percentage; got 1.5",
        ),
        ({"plan": 1, "sed": 0}, "sed: unknown key 'sed'\nhint: did you mean 'seed'?"),
        ({"plan": 1, "seed": object()}, "seed: expected a plain value, got one of type object"),
        ({"plan": 1, 2: 3}, "the plan: a key must be text, got 2"),
        ({}, "missing key 'plan', the version of the plan language\nhint: write plan: 1"),
    ],
    ids=["option", "key", "object", "number for a key", "empty"],
)
def test_a_fault_of_a_dict_names_its_place(plan, expected):
    with pytest.raises(PlanError) as caught:
        Plan.from_dict(plan)
    assert str(caught.value) == expected


def test_another_package_adds_a_pass(install, load):
    assert PASSES.names() == ("pick", "tidy", "trim")
    install(point("trim", "fakes:Trim", "other"))
    assert dict(PASSES.all()) == {"trim": Trim}
    assert load("plan: 1\npasses: [trim: 10%]\n").passes[0].pass_ == Trim(ratio=0.1)


KINDS = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "null": lambda value: value is None,
}
"""JSON schema's types, as far as a plan's schema uses them."""


def accepts(rule: dict[str, Any], value: Any, definitions: dict[str, Any]) -> bool:
    """Does a value fit a JSON schema? Knows the keywords that a plan's schema uses, and no other."""
    checks = {
        "$ref": lambda ref: accepts(definitions[ref.removeprefix("#/$defs/")], value, definitions),
        "oneOf": lambda rules: sum(accepts(inner, value, definitions) for inner in rules) == 1,
        "anyOf": lambda rules: any(accepts(inner, value, definitions) for inner in rules),
        "const": lambda const: value == const,
        "enum": lambda values: value in values,
        "type": lambda kind: KINDS[kind](value),
        "minimum": lambda bound: not KINDS["number"](value) or value >= bound,
        "maximum": lambda bound: not KINDS["number"](value) or value <= bound,
        "exclusiveMaximum": lambda bound: not KINDS["number"](value) or value < bound,
        "pattern": lambda pattern: not isinstance(value, str) or re.search(pattern, value) is not None,
        "minLength": lambda length: not isinstance(value, str) or len(value) >= length,
        "minItems": lambda length: not isinstance(value, list) or len(value) >= length,
        "items": lambda inner: not isinstance(value, list) or all(accepts(inner, v, definitions) for v in value),
        "required": lambda keys: not isinstance(value, dict) or all(key in value for key in keys),
        "properties": lambda known: (
            not isinstance(value, dict) or all(accepts(known[k], value[k], definitions) for k in known if k in value)
        ),
        "additionalProperties": lambda other: (
            other is True
            or not isinstance(value, dict)
            or all(other and accepts(other, value[k], definitions) for k in value.keys() - rule.get("properties", {}))
        ),
    }
    silent = {"$schema", "$defs", "title", "description", "default", "examples"}
    return all(checks[key](argument) for key, argument in rule.items() if key not in silent)


SCHEMA_CASES = [
    ({"plan": 1}, True),
    ({"plan": 2}, False),
    ({}, False),
    ({"plan": 1, "sed": 3}, False),
    ({"plan": 1, "seed": 3}, True),
    ({"plan": 1, "model": "a:b", "inputs": [[1, 2], {"shape": [1], "dtype": "int64", "high": 3}]}, True),
    ({"plan": 1, "inputs": [1, 2]}, False),
    ({"plan": 1, "passes": ["tidy", "pick", {"pick": {"ratio": "50%"}}, {"trim": 0.5}, {"tidy": None}]}, True),
    ({"plan": 1, "passes": ["trim"]}, False),
    ({"plan": 1, "passes": ["tdiy"]}, False),
    ({"plan": 1, "passes": [{"pick": {"ratoi": 0.5}}]}, False),
    ({"plan": 1, "passes": [{"pick": {"ratio": 1.5}}]}, False),
    ({"plan": 1, "passes": [{"pick": {"budget": {"macs": "50%"}}}]}, True),
    ({"plan": 1, "passes": [{"pick": {"norm": "l3"}}]}, False),
    ({"plan": 1, "export": ["onnx", {"onnx": {"opset": 20}}]}, True),
    ({"plan": 1, "export": [{"onnx": {"opset": 17}}]}, False),
]


@pytest.mark.parametrize(("plan", "good"), SCHEMA_CASES, ids=[json.dumps(plan) for plan, _ in SCHEMA_CASES])
def test_the_schema_and_the_loader_agree(plan, good):
    rules = json.loads(json.dumps(schema()))
    assert accepts(rules, plan, rules["$defs"]) is good
    if good:
        Plan.from_dict(plan)
    else:
        with pytest.raises(PlanError):
            Plan.from_dict(plan)


def test_the_schema_describes_passes():
    rules = schema()
    assert rules["$defs"]["Pick"]["description"] == "Choose what to remove."
    assert set(rules["$defs"]["Pick"]["properties"]) == {"ratio", "budget", "keep", "norm", "protect"}
    exports = {made.__name__ for made in all_options().values()}
    assert {"OnnxOptions", "OrtOptions"} <= exports
    assert {name for name in rules["$defs"] if not name.endswith("Int8")} == exports | {
        *("Budget", "ClassSpec", "Factory", "InputItems", "InputSpec", "InputValue", "JsonValue", "LossSpec"),
        *("MetricSpec", "ModelSpec", "Pick", "PlanTrain", "Postprocess", "Preprocess", "Tidy", "Trim"),
        *("WeightsSpec", "pass"),
    }
