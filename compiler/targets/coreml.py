"""Core ML, the runtime of Apple's devices: a target for `multiple_of` alone."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class CoreML(Target):
    """Apple names no number of channels that its neural engine prefers. 16 is two SIMD vectors in half precision."""

    name = "coreml"
    multiple = 16
