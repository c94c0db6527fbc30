"""MNN, Alibaba's runtime for phones: a target for `multiple_of` alone."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class Mnn(Target):
    """Keeps feature maps as NC4HW4: four channels lie together, and the last four are padded."""

    name = "mnn"
    multiple = 4
