"""`explain` says in words what the groups are, and what is pinned."""

from __future__ import annotations

import io
import json

import pytest
from nets import program_of
from rich.console import Console

from prunec.compiler.errors import PlanError
from prunec.compiler.report.explain import explain, explanation


def shown(renderable):
    console = Console(width=200, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_explanation_of_all_groups():
    found = explanation(program_of("concat_image"))
    assert json.loads(json.dumps(found)) == found
    assert [(g["name"], g["units"], g["free"]) for g in found["groups"]] == [("a", 8, 8), ("b", 5, 5), ("fc", 4, 0)]
    assert found["groups"][2]["pinned"] == [{"reason": "reaches the model's output", "units": 4}]
    assert found["groups"][0]["readers"] == ["b.weight[1]"]
    assert found["totals"] == {"groups": 3, "units": 17, "free": 13, "channels": 17, "free_channels": 13}


def test_explanation_of_one_group():
    group = explanation(program_of("grouped"), "a")["group"]
    members = {member["axis"]: member for member in group["members"]}
    assert members["a.weight[0]"] == {
        "axis": "a.weight[0]", "role": "writer", "cause": "a", "positions": 8, "positions_per_unit": 2.0
    }  # fmt: skip
    assert members["g.weight[1]"]["role"] == "reader"


@pytest.mark.parametrize("group", [None, "a"])
def test_tables(group):
    text = shown(explain(program_of("one_channel_piece"), group))
    assert "picks a single channel" in text
    assert "a.weight[0]" in text
    assert ("8 of 13 units in 3 groups may be removed" in text) == (group is None)


def test_a_group_that_isnt_there():
    with pytest.raises(PlanError, match="no group 'aa'") as caught:
        explain(program_of("chain"), "aa")
    assert "valid: a, b, fc" in caught.value.hint or "did you mean" in caught.value.hint
