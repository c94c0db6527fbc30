"""Statistics of activations, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calibrating import DATA, Chain, Samples, lively, program_of, scores
from sklearn.metrics import mutual_info_score

from prunec.compiler.errors import DataError
from prunec.passes.criteria.activations import mutual_information


def test_statistics_by_hand(chain, program):
    with torch.no_grad():
        z = chain.read(DATA.inputs)  # [20, 5, 3, 3]
    by_hand = {
        "activation_mean": z.mean((0, 2, 3)),
        "activation_std": z.std((0, 2, 3), unbiased=False),
        "apoz": (z != 0).double().mean((0, 2, 3)),
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(scores(program, name, DATA)["conv1"], expected, rtol=1e-9, err_msg=name)


def test_a_spread_far_from_zero_keeps_its_digits(chain):
    model = lively(Chain())
    model.conv1.bias.data += 1e5
    with torch.no_grad():
        expected = model.read(DATA.inputs).std((0, 2, 3), unbiased=False)
    found = scores(program_of(model, DATA), "activation_std", DATA)["conv1"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_mutual_information_is_that_of_the_binned_values():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    values = np.stack([labels + 0.1 * rng.standard_normal(200), rng.standard_normal(200), np.ones(200)], 1)
    found = mutual_information(values, labels, bins=4)
    for column, value in enumerate(found):
        edges = np.quantile(values[:, column], [0.25, 0.5, 0.75])
        binned = np.searchsorted(edges, values[:, column], side="left")
        assert value == pytest.approx(mutual_info_score(labels, binned), abs=1e-12)
    assert found[0] > 1 > 0.2 > found[1] > found[2] == 0


def test_labels_that_are_no_classes(program):
    data = Samples(DATA.inputs, DATA.labels.double())
    with pytest.raises(DataError, match="one class a sample is needed"):
        scores(program, "mutual_information", data)
