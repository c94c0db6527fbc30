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


def test_squares_are_the_norms_without_the_root(program):
    plain, squared = scores(program, "l2"), scores(program, {"l2": {"squared": True}})
    for name, found in plain.items():
        np.testing.assert_allclose(squared[name], found**2)


def test_norms_are_of_readers_by_default(program):
    for criterion in ("l1", "l2"):
        found, readers = (scores(program, criterion, axes=axes) for axes in ("auto", "readers"))
        np.testing.assert_array_equal(found["conv1"], readers["conv1"])
    np.testing.assert_allclose(
        readers["conv1"], program.tensors["conv2.weight"].detach().square().sum((0, 2, 3)).sqrt()
    )


@pytest.mark.parametrize("criterion", ["l1", "l2", {"l2": {"squared": True}}])
def test_what_nothing_writes_is_worth_nothing(criterion):
    """Filters that a mask of torch's pruning has closed, whatever reads them."""
    model = lively(Chain())
    model.conv1.weight.data[[1, 3]] = 0
    model.conv2.weight.data[:, [1, 3]] *= 100
    found = scores(program_of(model, images()), criterion, axes="auto")["conv1"]
    assert found[[1, 3]].tolist() == [0, 0]
    assert (found[[0, 2, 4]] > 0).all()


class Attention(nn.Module):
    """Queries and keys meet each other, and no weight reads them."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return self.o((self.q(x) @ self.k(x).transpose(1, 2)).softmax(2) @ self.v(x)).mean(1)


@pytest.mark.parametrize("criterion", ["l1", "l2", "obd", "obd_fisher", "obs"])
def test_writers_stand_in_where_no_weight_reads(criterion):
    program = program_of(lively(Attention()), images(4, (5, 6)))
    found = scores(program, criterion, images(4, (5, 6)) if "ob" in criterion else None, axes="auto")
    assert set(found) == {"q", "v"}
    if criterion == "l1":
        both = [program.tensors[f"{name}.weight"].detach().abs().sum(1) for name in ("q", "k")]
        np.testing.assert_allclose(found["q"], torch.stack(both).mean(0))
        np.testing.assert_allclose(found["v"], program.tensors["o.weight"].detach().abs().sum(0))


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
