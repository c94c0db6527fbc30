"""Runtimes that a program may be meant for: what every one of them is asked, and where they are found.

    class Ncnn(Target):                 compiler/targets/ncnn.py, or a file of another package
        name = "ncnn"                   as a plan says it: `multiple_of: ncnn`
        multiple = 8                    it prefers channel counts that are multiples of 8

A target is a class, registered in the entry-point group `prunec.targets`. What it can't do (yet) it doesn't override:
then `exports` is False, and `export` and `meter` raise an error that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy.typing as npt

from prunec.compiler.errors import PrunecError
from prunec.compiler.ir.program import Program
from prunec.compiler.plugins import Registry

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
"""A model's inputs, by name."""


@dataclass(frozen=True)
class NodeTime:
    """One node of a model as the runtime runs it, after the runtime's own rewriting."""

    op: str
    elements: int
    """How many elements its outputs have."""
    seconds: float
    name: str = ""
    """What the runtime calls the node."""


Profile = tuple[NodeTime, ...]
"""All nodes of one model."""


class Meter(Protocol):
    """Measures ONNX models, given as bytes, in a runtime; it knows nothing of layers or programs."""

    name: str
    """The runtime with its version, the processor and the threads: a time holds for these."""
    layout: frozenset[str]
    """Operations that convert to the runtime's own memory layout and back, which a layer alone pays for and a network
    doesn't."""

    def profile(self, models: Sequence[bytes], feeds: Sequence[Feed], rounds: int) -> Sequence[Profile]:
        """Every model's nodes with their seconds; the models take turns, `rounds` times."""

    def seconds(self, model: bytes, feed: Feed) -> float:
        """The seconds of one whole run."""


class Target:
    """A runtime; a subclass overrides what it can do."""

    name: ClassVar[str]
    multiple: ClassVar[int]
    """The preferred divisor of channel counts on the processors that the runtime is mostly used on: other counts are
    padded, or computed by a slower kernel."""
    exports: ClassVar[bool] = False
    """Whether `export` writes a file of the runtime's."""

    def export(self, program: Program, path: Path, **options: Any) -> Any:
        """Write the program as the runtime's file at `path`, run it there, and compare it with the module.

        Gives what the report says of it. Raises `ModelError` where the runtime has no form of an operation, and
        `VerifyError` where its results differ.
        """
        raise PrunecError(f"there is no export to {self.name}")

    def meter(self) -> Meter:
        """What measures models in the runtime on this machine. Raises `PrunecError` where it can't be run here."""
        raise PrunecError(f"times can't be taken in {self.name}", hint="they can in onnxruntime")


TARGETS: Final = Registry("prunec.targets", "target", Target)
"""The runtimes that are installed, by name."""
