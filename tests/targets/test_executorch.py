"""Programs share ExecuTorch's one pool of threads: those of different numbers of threads may run in turns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Made
from torch import nn

from prunec.compiler.targets.base import ExportOptions
from prunec.compiler.targets.executorch import ExecuTorch
from prunec.compiler.targets.exporting import missing
from prunec.compiler.tracing.trace import trace

TARGET = ExecuTorch()
if (_lacking := missing(TARGET)) is not None:
    pytest.skip(_lacking.message, allow_module_level=True)


def test_sessions_of_one_and_two_threads_run_in_turns(tmp_path):
    made = trace(Made({"conv": nn.Conv2d(3, 8, 3)}, lambda m, x: m.conv(x).relu()).eval(), (torch.randn(1, 3, 32, 32),))
    path = tmp_path / "model.pte"
    TARGET.convert(made, path, ExportOptions())
    x = torch.randn(1, 3, 32, 32)
    expected = made.module(x).detach().numpy()
    one, two = TARGET.load(path, 1), TARGET.load(path, 2)
    for _ in range(3):
        for session in (one, two):
            assert np.allclose(session.run([x.numpy()])[0], expected, atol=1e-5)
