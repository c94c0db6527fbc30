"""The oracle: the loss of the network without a unit."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from calibrating import DATA, scores


def test_the_oracle_is_the_loss_of_the_network_without_the_channel(chain, program):
    with torch.no_grad():
        z = chain.read(DATA.inputs)
        base = F.cross_entropy(chain.head(z), DATA.labels)
        gates = 1 - torch.eye(5, dtype=torch.float64)
        losses = [F.cross_entropy(chain.head(z * gate.view(1, 5, 1, 1)), DATA.labels) for gate in gates]
    signed = scores(program, {"oracle": {"signed": True}}, DATA)
    np.testing.assert_allclose(signed["conv1"], torch.stack(losses) - base, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(scores(program, "oracle", DATA)["conv1"], np.abs(signed["conv1"]))
