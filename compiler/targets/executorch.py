"""ExecuTorch, PyTorch's runtime for phones and microcontrollers: a target for `multiple_of` alone."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class ExecuTorch(Target):
    """Runs on XNNPACK, whose matrix kernels compute output channels in tiles: of 8 in float32 on ARM (`4x8`, `6x8`), of
    16 in half precision there and with AVX-512 (`7x16`)."""

    name = "executorch"
    multiple = 8
