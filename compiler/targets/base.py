"""Runtimes that a program may be meant for, and the channel counts that they like: `multiple_of: ncnn`.

A target is a class, registered in the entry-point group `prunec.targets`; another package adds one in the same way.
"""

from __future__ import annotations

from typing import ClassVar, Final

from prunec.compiler.plugins import Registry


class Target:
    """A runtime."""

    name: ClassVar[str]
    multiple: ClassVar[int]
    """Channel counts that are multiples of this are computed without waste on the processors that the runtime is mostly
    used on; what isn't is filled up, or computed by a slower kernel."""


class OnnxRuntime(Target):
    """MLAS, its CPU kernels, keep channels in blocks (NCHWc) and fill up the last: of 8 with AVX, of 16 with AVX-512
    (`MlasNchwcGetBlockSize`). A grouped convolution with less than a block to a group isn't blocked at all."""

    name = "onnxruntime"
    multiple = 16


class ExecuTorch(Target):
    """Runs on XNNPACK, whose matrix kernels take output channels in tiles: 8 floats on ARM (`4x8`, `6x8`), 16 in half
    precision there and with AVX-512 (`7x16`)."""

    name = "executorch"
    multiple = 8


class LiteRT(Target):
    """Runs on XNNPACK by default, as ExecuTorch does."""

    name = "litert"
    multiple = 8


class Ncnn(Target):
    """Packs channels (`elempack`) where their count is a multiple: of 4 with NEON, SSE and Vulkan, of 8 with AVX, of 16
    with AVX-512. What isn't a multiple of 4 runs unpacked. 8 serves all but the last."""

    name = "ncnn"
    multiple = 8


class Mnn(Target):
    """Keeps feature maps as NC4HW4: four channels lie together, and the last four are filled up."""

    name = "mnn"
    multiple = 4


class CoreML(Target):
    """Apple names no number of channels that its neural engine likes: this is the SIMD width of a CPU, two vectors of
    8 numbers in half precision."""

    name = "coreml"
    multiple = 16


class OpenVino(Target):
    """Its CPU plugin runs oneDNN, whose blocked layouts hold 8 channels with AVX2 (`nChw8c`) and 16 with AVX-512
    (`nChw16c`); the last block is filled up with zeros."""

    name = "openvino"
    multiple = 16


TARGETS: Final = Registry("prunec.targets", "target", Target)
