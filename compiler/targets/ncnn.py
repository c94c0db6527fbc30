"""ncnn, Tencent's runtime for phones: a target for `multiple_of` alone."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class Ncnn(Target):
    """Packs channels (`elempack`) where their count is a multiple: of 4 with NEON, SSE and Vulkan, of 8 with AVX, of 16
    with AVX-512. Counts that are no multiple of 4 run unpacked. 8 serves all but AVX-512."""

    name = "ncnn"
    multiple = 8
