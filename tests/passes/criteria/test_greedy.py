"""Greedy norms: later layers are scored without what earlier ones lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import by_loop, images, lively, program_of, scores
from torch import nn

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse


class Deep(nn.Module):
    """Three layers, of which the second is grouped."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 5, 1)
        self.d = nn.Conv2d(5, 3, 1)

    def forward(self, x):
        return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))


def test_greedy_is_independent_for_the_first_layer_and_without_cuts(program):
    independent, none = scores(program, "l1"), scores(program, {"greedy_l1": {"ratio": 0}})
    half = scores(program, {"greedy_l1": {"ratio": "40%"}})
    np.testing.assert_allclose(none["conv2"], independent["conv2"])
    np.testing.assert_allclose(half["conv1"], independent["conv1"])
    kept = np.argsort(independent["conv1"])[2:]
    weight = program.tensors["conv2.weight"].detach()
    np.testing.assert_allclose(half["conv2"], by_loop(weight[:, np.sort(kept)], lambda row: sum(map(abs, row))))


def test_greedy_takes_a_selection_for_what_is_lost(program):
    chosen = program.with_facts(selection={"conv1": np.array([0, 3])})
    weight = program.tensors["conv2.weight"].detach()
    got = scores(chosen, "greedy_l1")["conv2"]
    np.testing.assert_allclose(got, by_loop(weight[:, [1, 2, 4]], lambda row: sum(map(abs, row))))


def test_greedy_goes_through_grouped_convolutions():
    deep = program_of(lively(Deep()), images())
    found = scores(deep, {"greedy_l1": {"ratio": {"a": 0.3}}})
    lost = np.argsort(scores(deep, "l1")["a"])[:1]
    group = analyse(deep).groups["a"]
    positions = [p for member in group.writers for p in member.positions[np.isin(member.units, lost)]]
    weight = deep.tensors["b.weight"].detach().clone()  # [4, 3]: rows 0, 1 read inputs 0 to 2, rows 2, 3 inputs 3 to 5
    for position in positions:
        weight[2 * (position // 3) : 2 * (position // 3) + 2, position % 3] = 0
    writers = [m for m in analyse(deep).groups["b"].writers if m.axis.tensor == "b.weight"]
    rows = np.array(by_loop(weight, lambda row: sum(map(abs, row))))
    sums = np.bincount(writers[0].units, rows[writers[0].positions]) / np.bincount(writers[0].units)
    np.testing.assert_allclose(found["b"], sums)


def test_greedy_without_anything_to_go_by_is_refused(program):
    with pytest.raises(PassError, match="needs to know what earlier layers lose"):
        scores(program, "greedy_l1")
    with pytest.raises(PassError, match="no group is called 'conv9'"):
        scores(program, {"greedy_l1": {"ratio": {"conv9": 0.5}}})
