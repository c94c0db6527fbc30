"""A plan's text: what YAML means, where things stand, and what is laid over it."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.plan import Plan


def test_json_is_read_like_yaml(load):
    plan = load('{\n\t"plan": 1,\n\t"passes": [{"trim": 5e-1}]\n}\n', file="plan.lock.json")
    assert plan == Plan.from_dict({"plan": 1, "passes": [{"trim": {"ratio": 0.5}}]})
    assert str(plan.passes[0].at) == "plan.lock.json:3:14"


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
