"""First order on weights: what gates say, where no batch norm stands between."""

from __future__ import annotations

import numpy as np
from calibrating import DATA, EXACT, scores


def test_gates_equal_weights_without_batch_norm(program):
    gate, weight = scores(program, "gate", DATA), scores(program, "taylor_weight", DATA)
    for group in ("conv1", "conv2"):
        np.testing.assert_allclose(gate[group], weight[group], **EXACT)
