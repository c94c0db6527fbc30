"""Greedy selection: the ranking where costs weigh nothing, and costly layers first where they do."""

from __future__ import annotations

import numpy as np
import pytest
from selecting import bare, kept_of, selected


@pytest.mark.parametrize("name", ["chain", "resnet18"])
def test_without_weights_greedy_is_the_ranking(name):
    for options in ({}, {"cost_weight": {"macs": 0.0}}):
        greedy = selected(name, budget={"macs": 0.5}, method="greedy", **options)
        ranking = selected(name, budget={"macs": 0.5})
        np.testing.assert_array_equal(kept_of(bare(name), greedy), kept_of(bare(name), ranking))


def test_larger_weights_take_costlier_layers_first():
    def score_given_up(weight):
        chosen = selected("resnet18", budget={"macs": 0.5}, method="greedy", cost_weight={"macs": weight})
        return sum(units.size for units in chosen.program.facts["selection"].values())

    counts = [score_given_up(weight) for weight in (0.0, 0.1, 1.0, 100.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1], "fewer, costlier units meet the budget"
