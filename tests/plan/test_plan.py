"""The plan language: what loads, what is refused and in which words, overrides, the registry, the JSON schema."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from prunec.compiler import plugins
from prunec.compiler.errors import PlanError, PrunecError
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import PASSES, Context, Pass, PassResult
from prunec.compiler.plan.options import Fraction01
from prunec.compiler.plan.plan import Plan, schema
from prunec.compiler.plan.source import PlanErrors


class Idle(Pass):
    """A pass that is only loaded."""

    def run(self, program: Program, context: Context) -> PassResult:
        return PassResult(program)


class Budget(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    macs: Fraction01


class Pick(Idle):
    """Choose what to remove."""

    name = "pick"
    ratio: Fraction01 = 0.5
    budget: Budget | Fraction01 | None = None
    keep: int = Field(1, ge=1)
    norm: Literal["none", "l1", "l2"] = "none"
    protect: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_aim(self) -> Pick:
        if self.budget is not None and "ratio" in self.model_fields_set:
            raise ValueError("must not have both 'ratio' and 'budget'")
        return self


class Trim(Idle):
    """Takes its one option bare."""

    name = "trim"
    shorthand: ClassVar[str | None] = "ratio"
    ratio: Fraction01


class Tidy(Idle):
    """Has no options."""

    name = "tidy"


FAKES = {"pick": "Pick", "trim": "Trim", "tidy": "Tidy"}


@pytest.fixture(autouse=True)
def install(monkeypatch):
    """Pretends that just the given entry points are installed; by default, the three passes above."""
    module = ModuleType("fakes")
    for cls in (Pick, Trim, Tidy, Budget):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "fakes", module)

    def install(*points: EntryPoint) -> None:
        found = {"prunec.passes": points}
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: found.get(group, ()))
        plugins.refresh()

    install(*(point(name, f"fakes:{cls}") for name, cls in FAKES.items()))
    yield install
    plugins.refresh()


def point(name: str, value: str, package: str = "") -> EntryPoint:
    entry = EntryPoint(name, value, "prunec.passes")
    if package:
        vars(entry)["dist"] = SimpleNamespace(name=package)
    return entry


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a plan from text, as the file `plan.yaml` of the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str, file: str = "plan.yaml") -> Plan:
        Path(file).write_text(text, encoding="utf-8")
        return Plan.load(file, overrides)

    return load


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


@pytest.fixture
def files(tmp_path):
    """What the full plan names."""
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "sets.py").touch()
    return tmp_path


def test_a_full_plan_loads(load, files):
    plan = load(FULL)
    assert plan.model is not None
    assert plan.data is not None
    assert (str(plan.model.factory), plan.model.args) == ("nets:small", {"classes": 10})
    assert plan.model.weights == files / "w.safetensors"
    assert str(plan.data.factory) == f"{files / 'sets.py'}:digits"
    assert [(spec.shape, spec.dtype, spec.high) for spec in plan.inputs] == [
        ((1, 3, 32, 32), "float32", None),
        ((1, 7), "int64", 100),
    ]
    assert [entry.pass_ for entry in plan.passes] == [Pick(ratio=0.25, protect=("head.*",)), Trim(ratio=0.5), Tidy()]
    assert [str(entry.at) for entry in plan.passes] == ["plan.yaml:8:5", "plan.yaml:9:5", "plan.yaml:10:5"]
    assert plan.passes[1].options == {"ratio": 0.5}
    assert [(export.name, export.opset) for export in plan.export] == [("onnx", 21), ("onnx", 20)]
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
        "passes": ["tidy"],
        "export": [{"onnx": {"opset": 20, "dynamic": ["batch"]}}],
        "seed": 0,
    }


def test_json_is_read_like_yaml(load):
    plan = load('{\n\t"plan": 1,\n\t"passes": [{"trim": 5e-1}]\n}\n', file="plan.lock.json")
    assert plan == Plan.from_dict({"plan": 1, "passes": [{"trim": {"ratio": 0.5}}]})
    assert str(plan.passes[0].at) == "plan.lock.json:3:14"


def test_of_takes_whatever_names_a_plan(load, tmp_path):
    plan = load("plan: 1\nseed: 5\n")
    path = tmp_path / "plan.yaml"
    assert Plan.of(plan) is plan
    assert Plan.of({"plan": 1, "seed": 5}) == Plan.of(path) == Plan.of(str(path)) == plan


def test_anchors_and_merges(load):
    text = "plan: 1\npasses:\n  - pick: &base {ratio: 10%, keep: 2}\n  - pick: {<<: *base, keep: 3}\n  - pick: *base\n"
    options = [dict(entry.options) for entry in load(text).passes]
    assert options == [{"ratio": "10%", "keep": 2}, {"keep": 3, "ratio": "10%"}, {"ratio": "10%", "keep": 2}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("010", 10),
        ("~", None),
        (".5", 0.5),
    ],
)
def test_scalars_are_those_of_yaml_1_2(load, text, value):
    plan = load(f"plan: 1\nmodel: {{factory: a:b, args: {{x: {text}}}}}\n")
    assert plan.model is not None
    assert plan.model.args == {"x": value}


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


def test_tabs_are_named(load):
    with pytest.raises(PlanError) as caught:
        load("plan: 1\ndata:\n\targs: {}\n")
    assert str(caught.value.at) == "plan.yaml:3:1"
    assert caught.value.hint == "YAML is indented with spaces, not tabs"


def test_aliases_cannot_exhaust_memory(load, monkeypatch):
    monkeypatch.setattr("prunec.compiler.plan.source.MAX_VALUES", 1000)
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(PlanError, match="more than 1,000 values"):
        load("\n".join(rows))


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


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "No such file"), (b"\xff\xfe", "isn't UTF-8")], ids=["missing", "binary"]
)
def test_an_unreadable_file(tmp_path, content, expected):
    path = tmp_path / "plan.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=expected):
        Plan.load(path)


BASE = "plan: 1\nseed: 1\npasses:\n  - pick: {ratio: 0.5}\n  - trim: 0.5\n  - tidy\n  - pick\n"


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("passes.0.pick.ratio=30%", ("passes", 0, "pick", "ratio"), "30%"),
        ("passes.0.pick.keep=2", ("passes", 0, "pick"), {"ratio": 0.5, "keep": 2}),
        ("passes.0.pick={keep: 4}", ("passes", 0, "pick"), {"keep": 4}),
        ("passes.1.trim=0.25", ("passes", 1, "trim"), {"ratio": 0.25}),
        ("passes.2=trim: 0.1", ("passes", 2, "trim"), {"ratio": 0.1}),
        ("passes.3.pick.norm=l2", ("passes", 3, "pick"), {"norm": "l2"}),
        ("export=[onnx]", ("export",), [{"onnx": {"opset": 20, "dynamic": ["batch"]}}]),
        ("data.factory=a:b", ("data", "factory"), "a:b"),
        ("inputs=[[1, 2]]", ("inputs", 0, "shape"), [1, 2]),
    ],
)
def test_an_override(load, override, keys, value):
    found: Any = load(BASE, override).to_dict()
    for key in keys:
        found = found[key]
    assert found == value


def test_later_overrides_win(load):
    assert load(BASE, "seed=7", "passes.0.pick.keep=2", "seed=8").seed == 8


BAD_OVERRIDES = [
    (
        "unknown option",
        "passes.0.pick.ratoi=0.5",
        """\
        --set:1:15: unknown key 'ratoi'
            passes.0.pick.ratoi=0.5
                          ^^^^^
        hint: did you mean 'ratio'?""",
    ),
    (
        "wrong value",
        "passes.0.pick.ratio=1.5",
        """\
        --set:1:21: ratio must be between 0 and 1, or a percentage; got 1.5
            passes.0.pick.ratio=1.5
                                ^^^""",
    ),
    (
        "unknown key",
        "sed=2",
        """\
        --set:1:1: unknown key 'sed'
            sed=2
            ^^^
        hint: did you mean 'seed'?""",
    ),
    (
        "another pass",
        "passes.0.pik.ratio=0.5",
        """\
        --set:1:10: one entry names one pass, this one has the keys 'pick', 'pik'
            passes.0.pik.ratio=0.5
                     ^^^
        hint: did you mean 'pick'?""",
    ),
    (
        "no such entry",
        "passes.4.pick.ratio=0.5",
        """\
        --set:1:8: 'passes' has no entry 4
            passes.4.pick.ratio=0.5
                   ^
        hint: the entries are 0 to 3""",
    ),
    (
        "a name for a number",
        "passes.trim=0.5",
        """\
        --set:1:8: 'passes' is a list: expected the number of an entry, got 'trim'
            passes.trim=0.5
                   ^^^^
        hint: 'trim' is entry 1: passes.1""",
    ),
    (
        "below a scalar",
        "seed.x=1",
        """\
        --set:1:6: 'seed' is 1, it has no key 'x'
            seed.x=1
                 ^
        hint: set the whole of it: seed=VALUE""",
    ),
    (
        "no value",
        "seed",
        """\
        --set:1:1: expected KEY=VALUE, such as seed=1 or passes.0.score.criterion=l2
            seed
            ^^^^""",
    ),
    (
        "value that is no YAML",
        "seed='x",
        """\
        --set:1:6: not valid YAML: while scanning a quoted scalar, found unexpected end of stream
            seed='x
                 ^""",
    ),
]


@pytest.mark.parametrize(
    ("override", "expected"), [row[1:] for row in BAD_OVERRIDES], ids=[row[0] for row in BAD_OVERRIDES]
)
def test_a_bad_override_is_shown_as_typed(load, override, expected):
    with pytest.raises(PlanError) as caught:
        load(BASE, override)
    assert str(caught.value) == textwrap.dedent(expected)


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0.0), (1, 1.0), (0.25, 0.25), ("25%", 0.25), ("12.5 %", 0.125), ("100%", 1.0)]
)
def test_fractions(value, number):
    assert Trim(ratio=value).ratio == number


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), True, "0.5", "-5%", "%", "half", None, [0.5]], ids=repr)
def test_no_fractions(value):
    with pytest.raises(ValueError, match="must be between 0 and 1, or a percentage"):
        Trim(ratio=value)


def test_another_package_adds_a_pass(install, load):
    assert PASSES.names() == ("pick", "tidy", "trim")
    install(point("trim", "fakes:Trim", "other"))
    assert dict(PASSES.all()) == {"trim": Trim}
    assert load("plan: 1\npasses: [trim: 10%]\n").passes[0].pass_ == Trim(ratio=0.1)


def test_passes_are_imported_when_asked_for(install):
    install(point("tidy", "fakes:Tidy"), point("broken", "no_such_package.sub:X", "acme"))
    assert PASSES.names() == ("broken", "tidy")
    assert PASSES.named("tidy") is Tidy


BAD_PASSES = [
    (
        "not importable",
        [point("tidy", "no_such_package.sub:X", "acme")],
        "the pass 'tidy' of the package 'acme' (no_such_package.sub:X) can't be imported: "
        "ModuleNotFoundError: No module named 'no_such_package'",
    ),
    (
        "no such class",
        [point("tidy", "fakes:Gone", "acme")],
        "the pass 'tidy' of the package 'acme' (fakes:Gone) can't be imported: "
        "AttributeError: module 'fakes' has no attribute 'Gone'",
    ),
    (
        "no pass",
        [point("tidy", "fakes:Budget", "acme")],
        "the pass 'tidy' of the package 'acme' (fakes:Budget) is no subclass of prunec.compiler.pass_base.Pass",
    ),
    (
        "another name",
        [point("tidy", "fakes:Trim", "acme")],
        "the pass 'tidy' of the package 'acme' (fakes:Trim) is registered as 'tidy', but its class says 'trim'",
    ),
    (
        "registered twice",
        [point("tidy", "fakes:Tidy", "prunec"), point("tidy", "other:Tidy", "acme")],
        "the pass 'tidy' is registered by 'acme' (other:Tidy) and 'prunec' (fakes:Tidy)\nhint: uninstall one of them",
    ),
    ("unknown", [point("trim", "fakes:Trim")], "unknown pass 'tidy'\nhint: valid: trim"),
]


@pytest.mark.parametrize(("points", "expected"), [row[1:] for row in BAD_PASSES], ids=[row[0] for row in BAD_PASSES])
def test_a_bad_registration_names_the_package(install, points, expected):
    install(*points)
    with pytest.raises(PrunecError) as caught:
        PASSES.named("tidy")
    assert str(caught.value) == expected


def test_one_package_listed_twice_is_one(install):
    install(point("tidy", "fakes:Tidy", "acme"), point("tidy", "fakes:Tidy", "acme"))
    assert PASSES.named("tidy") is Tidy


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
    assert set(rules["$defs"]) == {
        *("Budget", "Factory", "InputItems", "InputSpec", "InputValue", "JsonValue", "ModelSpec", "OnnxExport"),
        *("Pick", "Tidy", "Trim"),
    }
