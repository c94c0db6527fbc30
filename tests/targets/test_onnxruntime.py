"""Times from the real runtime: nothing is asked of them but that they make sense."""

from __future__ import annotations

from dataclasses import replace

import torch
from timing import CONV

from prunec.compiler.cost.latency.table import Measured
from prunec.compiler.targets.onnxruntime import OnnxRuntimeMeter
from prunec.compiler.tracing.trace import trace
from prunec.models.digits import cnn


def test_a_layer_is_really_measured():
    meter = Measured(OnnxRuntimeMeter())
    small, large = meter.layer(replace(CONV, inner=64, outer=64, sizes=(24, 24)), [(4, 4), (64, 64)])
    assert 0 < small < large < 1


def test_a_network_is_really_measured():
    program = trace(cnn().eval(), (torch.zeros(1, 1, 8, 8),))
    found = Measured(OnnxRuntimeMeter()).network(program)
    assert 0 < found.seconds < 1
    assert {"Conv", "Gemm"} <= {node.op for node in found.nodes}
    assert all(node.elements > 0 and node.seconds >= 0 for node in found.nodes)
