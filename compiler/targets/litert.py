"""LiteRT, once TensorFlow Lite."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class LiteRT(Target):
    """Runs on XNNPACK by default, as ExecuTorch does."""

    name = "litert"
    multiple = 8
