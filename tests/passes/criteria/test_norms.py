"""Norms of weights against loops, seeded scores, and which evidence is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import Chain, Stream, by_loop, images, lively, program_of, scores
from torch import nn

from prunec.compiler.pass_base import Context
from prunec.passes.score import Score


@pytest.mark.parametrize(
    ("criterion", "figure"),
    [("l1", lambda row: sum(map(abs, row))), ("l2", lambda row: sum(w * w for w in row) ** 0.5)],
)
def test_norms_are_those_of_a_loop(program, criterion, figure):
    found = scores(program, criterion)
    for name in ("conv1", "conv2"):
        np.testing.assert_allclose(found[name], by_loop(program.tensors[f"{name}.weight"], figure))


def test_geometric_median_sums_distances(program):
    weight = program.tensors["conv1.weight"].detach().flatten(1)
    expected = [sum(float((weight[i] - weight[j]).norm()) for j in range(5)) for i in range(5)]
    np.testing.assert_allclose(scores(program, "fpgm")["conv1"], expected)


def test_random_is_seeded_and_differs_between_groups(program):
    found = [Score(criterion="random").run(program, Context(seed=s)).program.facts["scores"] for s in (1, 1, 2)]
    assert found[0]["conv1"].tolist() == found[1]["conv1"].tolist() != found[2]["conv1"].tolist()
    assert found[0]["conv1"][:4].tolist() != found[0]["conv2"].tolist()


def test_first_is_the_pacesetter():
    program = program_of(lively(Stream()), images())
    found = scores(program, "l1", aggregate="first")["stem"]
    np.testing.assert_allclose(found, program.tensors["stem.weight"].detach().abs().sum((1, 2, 3)))


class Projected(nn.Module):
    """A chain of two convolutions beside a projection, which comes last and has nothing before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.side = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(2, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc((self.b(self.a(x).relu()) + self.side(x)).mean((2, 3)))


def test_first_is_the_pacesetter_though_it_comes_last():
    program = program_of(lively(Projected()), images())
    found = scores(program, "l1", aggregate="first")["b"]
    np.testing.assert_allclose(found, program.tensors["side.weight"].detach().abs().sum((1, 2, 3)))


def test_readers_columns(program):
    found = scores(program, "l1", axes="readers")["conv1"]
    np.testing.assert_allclose(found, program.tensors["conv2.weight"].detach().abs().sum((0, 2, 3)))


def test_scaling_changes_weight_norms():
    model = lively(Chain())
    before = scores(program_of(model, images()), "l1")["conv1"]
    with torch.no_grad():
        model.conv1.weight[1] *= 3
    after = scores(program_of(model, images()), "l1")["conv1"]
    np.testing.assert_allclose(after / before, [1, 3, 1, 1, 1])
