"""ncnn."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class Ncnn(Target):
    """Packs channels (`elempack`) where their count is a multiple: of 4 with NEON, SSE and Vulkan, of 8 with AVX, of 16
    with AVX-512. What isn't a multiple of 4 runs unpacked. 8 serves all but the last."""

    name = "ncnn"
    multiple = 8
