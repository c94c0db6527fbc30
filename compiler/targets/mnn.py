"""MNN."""

from __future__ import annotations

from prunec.compiler.targets.base import Target


class Mnn(Target):
    """Keeps feature maps as NC4HW4: four channels lie together, and the last four are filled up."""

    name = "mnn"
    multiple = 4
