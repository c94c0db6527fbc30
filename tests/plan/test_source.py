"""A plan's text: what YAML means, where things stand, and what is laid over it."""

from __future__ import annotations

import os
import textwrap
import time
from typing import Any

import pytest

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.plan import Plan
from prunec.compiler.plan.source import parse, plain, read_text


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


def rows(first, row, count):
    """Lines of YAML: `row` is given its own number and that of the line before."""
    return "\n".join([first, *(row.format(i, i - 1) for i in range(1, count))])


BOMBS = {
    "lists": rows("a0: &a0 [1, 1, 1]", "a{0}: &a{0} [*a{1}, *a{1}, *a{1}]", 40),
    "mappings": rows("a0: &a0 {a: 1, b: 2}", "a{0}: &a{0} {{a: *a{1}, b: *a{1}}}", 60),
    "merges, all different": "a0: &a0 {k: 1}\n"
    + "\n".join(f"a{i}: &a{i} {{x{i}: 1, <<: [{', '.join(f'*a{j}' for j in range(i))}]}}" for i in range(1, 200)),
    "a merge in many places": f"a: &a {{{', '.join(f'k{i}: 1' for i in range(2000))}}}\n"
    f"b: [{', '.join(['{<<: *a}'] * 2000)}]",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_aliases_cannot_exhaust_memory_or_time(load, bomb):
    start = time.process_time()
    with pytest.raises(PlanError, match="aliases stand for more than 100,000 values"):
        load(f"plan: 1\n{BOMBS[bomb]}\n")
    assert time.process_time() - start < 5


def test_merges_of_merges_are_found_out_once(load):
    chain = rows("  a0: &a0 {x: 1}", "  a{0}: &a{0} {{<<: [*a{1}, *a{1}, *a{1}]}}", 90)
    with pytest.raises(PlanError, match="unknown key 'all'"):
        load(f"plan: 1\nall:\n{chain}\n")
    assert parse(f"all:\n{chain}\n", "p").data["all"]["a89"] == {"x": 1}


@pytest.mark.parametrize(
    "text",
    ["a: &a {<<: *a}", "b: {k: &a {<<: *a}, <<: *a}", "b: {k: &a {<<: &c {<<: *a}}, <<: *a}"],
    ids=["itself", "before it is seen", "through another"],
)
def test_a_mapping_cannot_merge_itself(text):
    with pytest.raises(PlanError, match="'<<' takes another mapping"):
        parse(text, "p")


DEEP = {
    "aliases": rows("a0: &a0 " + "[" * 60 + "]" * 60, "a{0}: &a{0} " + "[" * 60 + "*a{1}" + "]" * 60, 40),
    "merges": "q:\n" + rows("  a0: &a0 {k: 1}", "  a{0}: &a{0} {{<<: *a{1}}}", 2000) + "\n  <<: *a1999\n",
}


@pytest.mark.parametrize("text", DEEP)
def test_aliases_cannot_nest_deeper_than_brackets(text):
    with pytest.raises(PlanError, match="nested deeper than 100 levels"):
        parse(DEEP[text], "p")


def test_values_from_python_cannot_nest_forever():
    value: list[Any] = []
    value.append(value)
    with pytest.raises(PlanError, match="nested deeper than 100 levels"):
        plain({"a": value})


def test_of_very_many_faults_the_first_are_told(load):
    start = time.process_time()
    with pytest.raises(PlanError) as caught:
        load("plan: 1\n" + "".join(f"key{i}: 1\n" for i in range(20_000)))
    assert time.process_time() - start < 5
    lines = str(caught.value).splitlines()
    assert [line for line in lines if line.startswith("plan.yaml:")] == [
        f"plan.yaml:{i + 2}:1: unknown key 'key{i}'" for i in range(10)
    ]
    assert lines[-2:] == ["and 990 more", "1,000 errors, or more"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1" + "0" * 40, "'10000000000000000000000000000000000000000' is beyond the whole numbers of 64 bits"),
        ("seed: -9223372036854775809", "'-9223372036854775809' is beyond the whole numbers of 64 bits"),
        ("seed: 1e999", "'1e999' is beyond the floating-point numbers of 64 bits"),
    ],
    ids=["40 digits", "below", "float"],
)
def test_numbers_have_64_bits(load, text, message):
    with pytest.raises(PlanError) as caught:
        load(f"plan: 1\n{text}\n")
    assert caught.value.message == message
    assert str(caught.value.at) == "plan.yaml:2:7"


def test_numbers_from_python_have_64_bits():
    with pytest.raises(PlanError, match=r"^a\.0: '1000000000.*' is beyond the whole numbers of 64 bits$"):
        plain({"a": [10**40]})


def test_long_names_are_cut(load):
    for text in ("? {}\n: 1", "x: !<{}> 1", "? 1{}\n: 1", "passes: [{}]", "model: {{saved: {}}}", "model: {}.py:f"):
        with pytest.raises(PlanError) as caught:
            load("plan: 1\n" + text.format("1" * 5000 if "1{" in text else "a" * 5000) + "\n")
        assert len(str(caught.value)) < 500, text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "plan.yaml:1:1: can't read the plan: it isn't UTF-8 text (byte 0xff)"),
        (b"plan: 1\nseed: 1  # caf\xe9\n", "plan.yaml:2:15: can't read the plan: it isn't UTF-8 text (byte 0xe9)"),
        (b"plan: 1\r\n\r\nx: \xc3\xa9\xc3", "plan.yaml:3:5: can't read the plan: it isn't UTF-8 text (byte 0xc3)"),
    ],
    ids=["missing", "binary", "latin 1", "cut off"],
)
def test_an_unreadable_file(tmp_path, content, expected):
    path = tmp_path / "plan.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    assert expected in str(caught.value)


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


@pytest.mark.parametrize("keys", [("alpha",), ("model",), ("seed",), ("zeta", "inner")], ids=str)
def test_an_override_leaves_the_places_of_other_keys(keys):
    source = parse("alpha: {deep: 1}\nmodel: {args: {n: 1}}\nseed: 2\nzeta: {inner: {k: 3}}\n", "plan.yaml")
    before = source.locate(keys, on_key=True)
    assert before is not None
    assert source.with_override("model.args.n=4").locate(keys, on_key=True) == before


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


def test_overrides_are_bounded_like_plans(load):
    source = parse("plan: 1\npasses: [shrink]\n", "p")
    for text, message in (
        ("a." * 5000 + "b=1", "expected KEY=VALUE"),
        ("a" * 100_000, "expected KEY=VALUE"),
        ("passes." + "9" * 5000 + "=1", "expected the number of an entry"),
        ("passes.\u0661=1", "expected the number of an entry"),
        ("seed=" + "[" * 5000, "nested deeper than 100 levels"),
    ):
        with pytest.raises(PlanError, match=message):
            source.with_override(text)


def test_a_link_that_leads_to_itself_is_told_so(load, tmp_path):
    (tmp_path / "me.py").symlink_to("me.py")
    with pytest.raises(PlanError) as caught:
        Plan.from_dict({"plan": 1, "model": "me.py:f"}, folder=tmp_path)
    assert caught.value.hint == "it is a link that leads nowhere"


def test_a_pipe_that_nobody_writes_is_refused(tmp_path):
    os.mkfifo(tmp_path / "plan.yaml")
    with pytest.raises(PlanError, match="it is a pipe, which may wait for ever"):
        read_text(tmp_path / "plan.yaml", "the plan")
