"""ExecuTorch."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class ExecuTorch(Target):
    """Runs on XNNPACK, whose matrix kernels take output channels in tiles: 8 floats on ARM (`4x8`, `6x8`), 16 in half
    precision there and with AVX-512 (`7x16`)."""

    name = "executorch"
    multiple = 8
