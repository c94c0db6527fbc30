"""Passes that a pass holds: what loads, what is refused and where, how they are written, and their schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from fake_passes import FAKES, Idle, Pick, Tidy, Trim, point
from pydantic import ValidationInfo, model_validator

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.entries import INSIDE, Passes
from prunec.compiler.plan.plan import Plan, schema
from prunec.compiler.plan.schema import PlanPath
from prunec.compiler.plan.source import PlanErrors


class Hold(Idle):
    """Holds passes."""

    name = "hold"
    shorthand: ClassVar[str | None] = "passes"
    passes: Passes
    times: int = 1


class Reads(Idle):
    """Reads a file."""

    name = "reads"
    file: PlanPath | None = None


class Inside(Idle):
    """Has to say what it wants, except inside another pass."""

    name = "inside"
    wants: str | None = None

    @model_validator(mode="after")
    def _says(self, info: ValidationInfo) -> Inside:
        if self.wants is None and not (info.context or {}).get(INSIDE):
            raise ValueError("must say what it wants")
        return self


@pytest.fixture(autouse=True)
def more(install):
    for cls in (Hold, Reads, Inside):
        setattr(sys.modules["fakes"], cls.__name__, cls)
    known = {**FAKES, "hold": "Hold", "reads": "Reads", "inside": "Inside"}
    install(*(point(name, f"fakes:{cls}") for name, cls in known.items()))


NESTED = """\
plan: 1
passes:
  - hold:
      times: 2
      passes:
        - pick: {ratio: 25%, protect: ["head.*"]}
        - trim: 0.5
        - tidy
        - hold: [tidy]
"""


def test_a_pass_holds_passes(load):
    held = load(NESTED).passes[0].pass_
    assert held.times == 2
    made = [entry.pass_ for entry in held.passes]
    assert made[:3] == [Pick(ratio=0.25, protect=("head.*",)), Trim(ratio=0.5), Tidy()]
    assert [entry.pass_ for entry in made[3].passes] == [Tidy()]
    assert [entry.options for entry in held.passes[:2]] == [{"ratio": "25%", "protect": ["head.*"]}, {"ratio": 0.5}]


@pytest.mark.parametrize("folder", [None, "elsewhere"], ids=["absolute paths", "relative paths"])
def test_what_is_held_is_written_as_it_was(load, files, folder):
    plan = load(NESTED + "        - reads: {file: w.safetensors}\n")
    written = json.loads(json.dumps(plan.to_dict(folder)))
    inside = written["passes"][0]["hold"]["passes"]
    picked = {"pick": {"ratio": "25%", "protect": ["head.*"]}}
    assert inside[:4] == [picked, {"trim": {"ratio": 0.5}}, "tidy", {"hold": {"passes": ["tidy"]}}]
    assert (Path(folder or ".").resolve() / inside[4]["reads"]["file"]).resolve() == files / "w.safetensors"
    assert Path(inside[4]["reads"]["file"]).is_absolute() is (folder is None)
    assert Plan.from_dict(written, folder or ".") == plan


def test_overrides_reach_inside(load):
    held = load(NESTED, "passes.0.hold.passes.1.trim=0.75").passes[0].pass_
    assert held.passes[1].pass_ == Trim(ratio=0.75)


REFUSED = {
    "an unknown pass": ("        - tdiy\n", "plan.yaml:10:11: unknown pass 'tdiy'", "hint: did you mean 'tidy'?"),
    "an unknown key": ("        - pick: {ratoi: 1}\n", "plan.yaml:10:18: unknown key 'ratoi'", "did you mean 'ratio'?"),
    "a wrong value": ("        - pick: {ratio: 1.5}\n", "plan.yaml:10:25: ratio must be between 0 and 1", "got 1.5"),
    "a missing key": ("        - trim\n", "plan.yaml:10:11: missing key 'ratio'", ""),
    "deeper still": ("        - hold: [{hold: [tdiy]}]\n", "plan.yaml:10:26: unknown pass 'tdiy'", ""),
    "no name": ("        - [tidy]\n", "plan.yaml:10:11: passes[4] must be a name, or a name with its options", ""),
    "two names": ("        - {tidy: null, trim: 1}\n", "one entry names one pass, this one has the keys", ""),
    "no list": ("        - hold: tidy\n", "plan.yaml:10:17: passes must be a list, got 'tidy'", ""),
    "nothing": ("        - hold: []\n", "plan.yaml:10:11: passes must name at least one pass", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_inside_is_told_where_it_stands(load, name):
    line, *words = REFUSED[name]
    with pytest.raises(PlanError) as caught:
        load(NESTED + line)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).splitlines()[1].strip() == line.strip()


def test_every_fault_is_told_at_once(load):
    with pytest.raises(PlanErrors) as caught:
        load(NESTED.replace("times: 2", "times: two").replace("25%", "250%") + "        - tdiy\n  - hold\n")
    places = [(error.at.line, error.at.column) for error in caught.value.errors]
    assert places == [(4, 14), (6, 25), (10, 11), (11, 5)]


def test_without_a_file_the_keys_lead_there():
    entries = [{"hold": {"passes": ["tidy", {"pick": {"ratio": 7}}]}}]
    with pytest.raises(PlanError, match=r"passes.0.hold.passes.1.pick.ratio: ratio must be between 0 and 1"):
        Plan.from_dict({"plan": 1, "passes": entries})


def test_a_pass_knows_that_it_stands_inside_another():
    Plan.from_dict({"plan": 1, "passes": [{"hold": ["inside"]}]})
    with pytest.raises(PlanError, match="inside must say what it wants"):
        Plan.from_dict({"plan": 1, "passes": ["inside"]})


def test_the_schema_describes_what_is_held():
    rules = schema()
    held = rules["$defs"]["Hold"]["properties"]["passes"]
    assert held["items"] == {"$ref": "#/$defs/pass"}
    assert rules["$defs"]["pass"] == rules["properties"]["passes"]["items"]
    json.dumps(rules)
