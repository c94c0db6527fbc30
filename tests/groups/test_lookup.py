"""Names of a model are led to their groups: layers, parameters, axes, operations, patterns, and Python's spelling."""

from __future__ import annotations

import pytest
import torch
from nets import program_of
from torch import nn

from prunec.compiler.groups.lookup import article, find, near
from prunec.compiler.tracing.trace import trace


class Block(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(6, inner), nn.Linear(inner, 6), nn.GELU()
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layers, self.fc = nn.Linear(3, 6), nn.Sequential(Block(5), Block(4)), nn.Linear(6, 1)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.fc(self.layers(self.embed(x)) * self.scale)


@pytest.fixture(scope="module")
def program():
    return trace(Net(), (torch.zeros(2, 3),))


def groups_of(program, name):
    return {group for part in find(program, name) for group in part.groups}


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("embed", {"embed"}),
        ("layers", {"embed", "layers.0.up", "layers.1.up"}),
        ("layers.0", {"embed", "layers.0.up"}),
        ("layers[0].up", {"embed", "layers.0.up"}),
        ("self.layers.1.down", {"embed", "layers.1.up"}),
        ("layers.1.down.weight[1]", {"layers.1.up"}),
        ("layers.*.up.weight[0]", {"layers.0.up", "layers.1.up"}),
        ("layers.*.act", {"layers.0.up", "layers.1.up"}),
        ("layers.0.act", {"layers.0.up"}),
        ("layers_1_up", {"layers.1.up"}),
        ("scale", {"embed"}),
        ("kind:linear", {"embed", "layers.0.up", "layers.1.up"}),
        ("*", {"embed", "layers.0.up", "layers.1.up"}),
        ("output", set()),
        ("nowhere.*", set()),
        ("", set()),
    ],
)
def test_groups_of_a_name(program, name, groups):
    assert groups_of(program, name) == groups


def test_a_pattern_names_layers_before_their_parameters(program):
    assert [part.name for part in find(program, "layers.*.up")] == ["layers.0.up", "layers.1.up"]
    assert [part.name for part in find(program, "layers.0.*.bias")] == ["layers.0.up.bias", "layers.0.down.bias"]


@pytest.mark.parametrize(
    ("name", "what", "lacks"),
    [
        ("x", "an input of the model", "what the model is given keeps its size"),
        ("embed.weight[1]", "an axis of 3 positions", "what it meets is the model's input, or constants"),
        ("fc.weight[0]", "an axis of 1 positions", "it has a single channel, which has to stay"),
        ("embed.weight[5]", "an axis", "embed.weight has 2 dimensions, counted from 0"),
    ],
)
def test_what_has_no_group_says_why(program, name, what, lacks):
    (part,) = find(program, name)
    assert (part.what, part.groups) == (what, {})
    assert part.lacks.startswith(lacks)


def test_roles_of_a_layer():
    (part,) = find(program_of("grouped"), "g")
    roles = {str(member.axis): member.role for members in part.groups.values() for member in members}
    assert roles["g.weight[0]"] == "writer"
    assert roles["g.weight[1]"] == "reader"


@pytest.mark.parametrize(
    ("name", "first"),
    [("embd", "embed"), ("EMBED", "embed"), ("layers.0.upp", "layers.0.up"), ("down", "layers.0.down")],
)
def test_the_nearest_names(program, name, first):
    assert near(program, name)[0] == first
    assert near(program, "qqqqqqqq") == []


@pytest.mark.parametrize("name", ["a Linear", "an Embedding", "an LSTM", "a ReLU", "a GRU", "an RMSNorm", "a Unit"])
def test_articles(name):
    assert article(name.split()[1]) == name


def test_names_beside_the_programs_are_near_too(program):
    assert near(program, "heads", ["head"])[0] == "head"
