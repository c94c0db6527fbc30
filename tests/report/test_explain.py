"""`explain` says in words what the groups are, and what is pinned."""

from __future__ import annotations

import io
import json

import pytest
import torch
from nets import program_of
from rich.console import Console
from torch import nn

from prunec.compiler.errors import PlanError
from prunec.compiler.report.explain import explain, explanation
from prunec.compiler.tracing.trace import trace


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
    text = shown(explain(program_of("one_channel_piece"), group).shown)
    assert "picks a single channel" in text
    assert "a.weight[0]" in text
    assert ("8 of 13 units in 3 groups may be removed" in text) == (group is None)


class Coupled(nn.Module):
    """A depthwise convolution between two others, an activation, a skip, and a layer that nothing calls."""

    def __init__(self):
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.bn, self.act, self.back = nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)
        self.fc, self.spare = nn.Linear(8, 4), nn.Linear(3, 3)

    def forward(self, x):
        y = self.stem(x)
        return self.fc((y + self.back(self.act(self.bn(self.dw(y))))).mean((2, 3)))


@pytest.fixture(scope="module")
def coupled():
    return trace(Coupled(), (torch.zeros(2, 3, 6, 6),))


@pytest.mark.parametrize(
    ("name", "groups", "said"),
    [
        ("dw", ("stem",), "dw is a Conv2d. Of the group stem it carries the channels on (dw.weight[0], dw.bias[0])"),
        ("dw.weight[1]", ("stem",), "an axis of 8 positions. Of the group stem it reads the channels (dw.weight[1])."),
        ("act", ("stem",), "act is a ReLU. The channels of the group stem run through it."),
        ("b*", ("stem",), "bn is a BatchNorm2d."),
        ("fc.weight", ("stem", "fc"), "fc.weight is a parameter of [4, 8]."),
        ("fc", ("fc",), "fc: 4 units, none of which may be removed."),
        ("fc", ("fc",), "All 4 units are pinned, because each reaches the model's output."),
        ("stem", ("stem",), "A unit of it is written by stem and back, carried on by dw and bn, read by back and fc"),
        ("stem", ("stem",), "Its writers are tied to each other at add (test_explain.py:"),
        ("stem.weight[1]", (), "it belongs to no group: what it meets is the model's input, or constants"),
        ("x", (), "x is an input of the model"),
    ],
)
def test_a_name_is_led_to_its_groups(coupled, name, groups, said):
    answer = explain(coupled, name)
    assert set(answer.groups) == set(groups)
    assert said in " ".join(shown(answer.shown).split())


def test_what_the_forward_does_not_use_belongs_to_no_group(coupled):
    answer = explain(coupled, "spare", lambda: {"spare": "a Linear"})
    assert shown(answer.shown) == "spare is a Linear that the traced forward doesn't use, so it belongs to no group.\n"
    assert answer.groups == ()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stemm", "did you mean 'stem'?"),
        ("DW", "the nearest names: dw, dw.bias, dw.weight"),
        ("spar", "did you mean 'spare'?"),
        ("zzzzzz", "valid: fc, stem"),
    ],
)
def test_a_name_of_nothing_is_told_the_nearest_ones(coupled, name, hint):
    with pytest.raises(PlanError, match=f"nothing in Coupled is called '{name}'") as caught:
        explain(coupled, name, lambda: {"spare": "a Linear"})
    assert caught.value.hint == hint
