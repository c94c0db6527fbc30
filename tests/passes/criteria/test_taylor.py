"""First order: exact where the loss is linear in the gate."""

from __future__ import annotations

import numpy as np
from calibrating import DATA, EXACT, flat, images, lively, program_of, scores
from torch import Tensor, nn


def test_absolute_values_of_samples_are_at_least_that_of_the_mean(program):
    taylor, signed = scores(program, "taylor", DATA), scores(program, "taylor_signed", DATA)
    assert (flat(taylor) >= flat(signed) - 1e-15).all()
    assert (flat(taylor) > flat(signed) * 1.01).any()


class Linear(nn.Module):
    """Nothing but linear layers: the loss `-y[label]` is linear in every gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_taylor_is_exact_where_the_loss_is_linear_in_the_gate():
    data = images(shape=(6,))
    program = program_of(lively(Linear()), data)
    oracle = scores(program, "oracle", data, loss="nll")
    np.testing.assert_allclose(scores(program, "taylor_signed", data, loss="nll")["a"], oracle["a"], **EXACT)
