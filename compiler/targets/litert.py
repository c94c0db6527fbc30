"""LiteRT, once TensorFlow Lite: a target for `multiple_of` alone."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class LiteRT(Target):
    """Runs on XNNPACK by default, as ExecuTorch does: output channels in tiles of 8."""

    name = "litert"
    multiple = 8
