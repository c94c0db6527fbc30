"""OpenVINO, Intel's runtime: a target for `multiple_of` alone."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class OpenVino(Target):
    """Its CPU plugin runs oneDNN, whose blocked layouts hold 8 channels with AVX2 (`nChw8c`) and 16 with AVX-512
    (`nChw16c`); the last block is padded with zeros."""

    name = "openvino"
    multiple = 16
