"""LiteRT's files in int8 keep the biases of channels whose weights are next to nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunec.compiler.targets.base import ExportOptions, Int8
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.exporting import missing
from prunec.compiler.targets.litert import LiteRT
from prunec.compiler.tracing.trace import trace

TARGET = LiteRT()
if (_lacking := missing(TARGET)) is not None:
    pytest.skip(_lacking.message, allow_module_level=True)

LAYERS = {
    "convolution": (nn.Conv2d(4, 4, 3), (2, 4, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8)),
    "linear": (nn.Linear(4, 4), (2, 4)),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_bias_beside_tiny_weights_stays(kind, per_channel, tmp_path):
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    layer.weight.data.normal_()
    layer.weight.data[1] *= 1e-9
    layer.weight.data[2] = 0
    layer.bias.data = torch.tensor([0.5, 2.0, -3.0, 0.25])
    program = trace(layer.eval(), (torch.randn(shape),))
    files = tmp_path / "model.tflite", tmp_path / "model.int8.tflite"
    options = ExportOptions(int8=Int8(per_channel=per_channel))
    x = torch.randn(shape)
    with captured():
        TARGET.convert(program, files[0], options)
        TARGET.quantize(program, *files, options, [[x.numpy()]])
        exact, rounded = (TARGET.load(path, 1).run([x.numpy()])[0] for path in files)
    assert np.allclose(exact[:, 1:3], exact[:1, 1:3], atol=1e-6), "the bias alone is left"
    assert np.abs(rounded - exact).max() < 0.03 * np.abs(exact).max()
