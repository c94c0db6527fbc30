"""The classes that a plan keeps, as checked values."""

from __future__ import annotations

import pytest

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.classes import ClassSpec
from prunec.compiler.plan.plan import Plan


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([1, 4], ClassSpec(keep=(1, 4))),
        (["cat", 3], ClassSpec(keep=("cat", 3))),
        ({"keep": [0, 1], "names": ["a", "b", "c"]}, ClassSpec(keep=(0, 1), names=("a", "b", "c"))),
        ({"keep": ["a", "b"], "names": {"3": "a", "5": "b"}}, ClassSpec(keep=("a", "b"), names={3: "a", 5: "b"})),
        ({"keep": [0, 1], "outputs": ["kind"]}, ClassSpec(keep=(0, 1), outputs=("kind",))),
    ],
    ids=str,
)
def test_forms(said, expected):
    plan = Plan.from_dict({"plan": 1, "classes": said})
    assert plan.classes == expected
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_file_of_names_is_found_from_the_plan(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    plan = Plan.from_dict({"plan": 1, "classes": {"keep": ["a", "b"], "names": "names.txt"}}, tmp_path)
    assert plan.classes is not None
    assert plan.classes.names == tmp_path / "names.txt"
    assert plan.to_dict(relative_to=tmp_path / "out")["classes"]["names"] == "../names.txt"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("[]", "plan.yaml:2:.*must list at least two classes"),
        ("[cat]", "must list at least two classes"),
        ("[cat, dog, cat]", "must not list 'cat' twice"),
        ("[cat, true]", "must be a class's name, or its position from 0; got true"),
        ("[1, -1]", "must be a class's name, or its position from 0; got -1"),
        ("[1, 2.5]", "must be a class's name, or its position from 0; got 2.5"),
        ("cat", "must be a list of classes or a mapping with the key 'keep'"),
        ("{names: [a, b]}", "missing key 'keep'"),
        ("{keep: [a, b], names: nmaes.txt}", "no file .*nmaes.txt"),
        ("{keep: [a, b], names: 3}", "must be a list of all names, a mapping"),
        ("{keep: [a, b], names: {a: 3}}", "must be a list of all names, a mapping"),
        ("{keep: [a, b], outputs: []}", "outputs must be a list of at least 1"),
        ("{keep: [a, b], name: x.txt}", "unknown key 'name'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, said, message):
    (tmp_path / "plan.yaml").write_text(f"plan: 1\nclasses: {said}\n")
    (tmp_path / "names.txt").write_text("a\n")
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "plan.yaml")
