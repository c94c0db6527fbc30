"""Runtimes that a program may be meant for, and the channel counts that they like: `multiple_of: ncnn`.

A target is a class, registered in the entry-point group `prunec.targets`; another package adds one in the same way.
"""

from __future__ import annotations

from typing import ClassVar, Final

from prunec.compiler.extensions import Registry


class Target:
    """A runtime."""

    name: ClassVar[str]
    multiple: ClassVar[int]
    """Channel counts that are multiples of this are computed without waste."""


class OnnxRuntime(Target):
    """Its CPU kernels block channels (NCHWc) by the vector's width: 8 floats with AVX2, 16 with AVX-512."""

    name = "onnxruntime"
    multiple = 8


class ExecuTorch(Target):
    """Runs on XNNPACK, whose kernels take output channels in tiles of 8 and multiples of it."""

    name = "executorch"
    multiple = 8


class LiteRT(Target):
    """Runs on XNNPACK by default, as ExecuTorch does."""

    name = "litert"
    multiple = 8


class Ncnn(Target):
    """Packs 4 channels to an element (NEON, SSE), 8 with AVX: what isn't a multiple runs unpacked."""

    name = "ncnn"
    multiple = 8


class Mnn(Target):
    """Keeps feature maps as NC4HW4, so that channels are filled up to a multiple of 4."""

    name = "mnn"
    multiple = 4


class CoreML(Target):
    """Nothing is documented for the neural engine: the width of a NEON register pair in half precision."""

    name = "coreml"
    multiple = 16


class OpenVino(Target):
    """Its CPU plugin blocks channels by the vector's width (nChw8c with AVX2, nChw16c with AVX-512)."""

    name = "openvino"
    multiple = 8


TARGETS: Final = Registry("prunec.targets", "target", Target)
