"""Core ML."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class CoreML(Target):
    """Apple names no number of channels that its neural engine likes: this is the SIMD width of a CPU, two vectors of
    8 numbers in half precision."""

    name = "coreml"
    multiple = 16
