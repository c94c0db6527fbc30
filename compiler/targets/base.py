"""Runtimes that a program may be meant for: what every one of them is asked, and where they are found.

    class Ncnn(Target):                             compiler/targets/ncnn.py, or a file of another package
        name = "ncnn"                               as a plan says it: `export: [ncnn]`, `multiple_of: ncnn`
        multiple = 16                               it prefers channel counts that are multiples of 16
        suffixes = (".ncnn.param", ".ncnn.bin")     its files: model.ncnn.param and model.ncnn.bin
        extra = "ncnn"                              pip install 'prunec[ncnn]'
        needs = ("ncnn>=1.0", "pnnx>=1.0")          brings these
        only_one = True                             its files take one sample at a time

        def convert(self, program, path, options): ...
        def load(self, path, threads): ...

A target is a class, registered in the entry-point group `prunec.targets`. It says how a file is made and run;
`targets/exporting.py` does the rest for all of them alike: parity with the module, latency, sizes, and failures. What a
target can't do (yet) it doesn't override: without `suffixes` there is no export, without `quantize` no int8, and
`meter` raises an error that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Protocol

import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from prunec.compiler.errors import PrunecError, TargetError
from prunec.compiler.ir.program import Program
from prunec.compiler.plugins import Registry

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
"""A model's inputs, by name."""


@dataclass(frozen=True)
class NodeTime:
    """One node of a model as the runtime runs it, after the runtime's own rewriting."""

    op: str
    """What it computes, by ONNX's name of it where there is one."""
    elements: int
    """How many elements its outputs have."""
    seconds: float
    name: str = ""
    """What the runtime calls the node; where it has rewritten one of the program's, that name is part of this."""


BETWEEN: Final = "between"
"""The operation of a `NodeTime` of no elements that tells what goes by between the nodes, in the same runs."""

Profile = tuple[NodeTime, ...]
"""All nodes of one model."""


class Meter(Protocol):
    """Measures programs in a runtime, on this machine and with one thread."""

    name: str
    """The runtime with its version, the processor and the threads: a time holds for these."""
    layout: frozenset[str]
    """Operations that convert to the runtime's own memory layout and back, which a layer alone pays for and a network
    doesn't."""

    def profile(self, program: Program, seconds: float) -> Profile:
        """The program's nodes with their times, of runs that take about `seconds` in all."""

    def loaded(self, program: Program) -> Callable[[], object]:
        """The program converted and loaded: a call runs it once, as an app does."""


class Session(Protocol):
    """A file that is loaded in its runtime, ready to run."""

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """The output tensors, for the input tensors; both in the order in which the module has them."""


class Int8(BaseModel):
    """How a file in int8 is made, beside that in float32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: Annotated[StrictInt, Field(ge=1)] = 128
    """How many samples of the plan's data calibrate the ranges of activations."""
    per_channel: StrictBool = True
    """Whether each channel of a weight has a scale of its own, where the runtime knows such."""


def yes_or_options(value: Any) -> Any:
    """`int8: true` is `int8: {}`, and `int8: false` is none."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class ExportOptions(BaseModel):
    """What a plan may say of an export; a target with more to say has a subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shorthand: ClassVar[str | None] = None

    int8: Annotated[Int8 | None, BeforeValidator(yes_or_options)] = None
    """Make a file in int8 as well, calibrated on the plan's data."""


@dataclass(frozen=True)
class Converted:
    """What a converter tells of the file that it wrote."""

    batch: int | None
    """The batch size that the file is fixed at; None where it takes any."""
    note: str = ""
    """What a person should know: such as why the batch is fixed."""
    details: Any = None
    """What the converter's own report says, for whoever knows the target."""
    alike: Callable[[Program, Path], Path] | None = None
    """Writes the original's files at a path as these were written, to be weighed and timed, and gives the path of the
    slim files whose times compare with theirs; None where `convert` writes it, and these files are timed."""


class Target:
    """A runtime; a subclass overrides what it can do."""

    name: ClassVar[str]
    multiple: ClassVar[int]
    """The preferred divisor of channel counts: others are padded, or computed by a slower kernel. One that serves every
    processor: where the widest register holds 16 channels, those of 8 and of 4 divide it. It follows from what was
    measured (`benchmarks/results/widths.csv`), where the runtime runs here."""
    runtime: ClassVar[str] = ""
    """The target whose runtime executes the file, where that isn't the target itself."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files that an export writes, the one that is loaded first; empty where there is no export."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Of files that there may be besides."""
    aside: ClassVar[tuple[str, ...]] = ()
    """Of these, what an app doesn't ship: it doesn't count in sizes."""
    Options: ClassVar[type[ExportOptions]] = ExportOptions
    """What a plan may say of the export."""
    extra: ClassVar[str] = ""
    """The extra of this package that brings what is needed: `pip install 'prunec[ncnn]'`."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What must be installed, as requirements: `ncnn>=1.0`."""
    int8_needs: ClassVar[tuple[str, ...]] = ()
    """What must be installed for files in int8 besides; the same extra brings it."""
    without_int8: ClassVar[str] = ""
    """Why there are no files in int8, and what a user may do instead; empty where that isn't known."""
    only_one: ClassVar[bool] = False
    """Whether its files take a batch of one sample alone: it is handed a program of that batch, where there is one."""
    tolerance: ClassVar[float] = 1e-5
    """The largest relative difference from the module that rounding explains."""
    alone: ClassVar[bool] = False
    """Whether with one thread the thread that calls computes alone: then its own time counts, not what it waits."""

    def convert(self, program: Program, path: Path, options: Any) -> Converted:
        """Write the program's files: at `path`, and where there are more, at `beside(path)`.

        The program is in eval mode and on the CPU. `options` are of the class `Options`. Raises `TargetError` where
        the runtime can't take the program; any other exception is told as the converter's.
        """
        raise TargetError(f"there is no export to {self.name}")

    def label(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Put texts by their keys into the file at `path`, where its format has a place for them."""

    def load(self, path: Path, threads: int) -> Session:
        """The files at `path`, ready to run in float32 with so many threads on this machine's CPU."""
        raise TargetError(f"{self.name} can't run here")

    def load_for(self, path: Path, threads: int, inputs: Sequence[Any]) -> Session:
        """`load`, for runs on inputs of these shapes alone: sizes that the file leaves open may be fixed."""
        return self.load(path, threads)

    def unrunnable(self) -> str:
        """Why files can be written, but not run on this machine; empty where they can."""
        return ""

    def describe(self) -> str:
        """The runtime with its version, as it stands in reports."""
        return self.name

    def quantize(
        self, program: Program, path: Path, to: Path, options: Any, samples: Sequence[Sequence[Array]]
    ) -> None:
        """Write the files in int8 at `to`, of the program and of its float32 files at `path`.

        `options.int8` says how. `samples` calibrate it: the input tensors of one run each, of the batch size that the
        file has.
        """
        raise TargetError(self.without_int8 or f"{self.name} has no int8 yet")

    @classmethod
    def beside(cls, path: Path) -> tuple[Path, ...]:
        """All files of an export whose first is at `path`."""
        stem = path.name.removesuffix(cls.suffixes[0])
        more = (path.with_name(stem + suffix) for suffix in cls.optional)
        return (*(path.with_name(stem + suffix) for suffix in cls.suffixes), *(each for each in more if each.exists()))

    @classmethod
    def quantizes(cls) -> bool:
        """Whether files in int8 can be made."""
        return cls.quantize is not Target.quantize

    def meter(self) -> Meter:
        """What measures models in the runtime on this machine. Raises `PrunecError` where it can't be run here."""
        raise PrunecError(f"times can't be taken in {self.name}", hint="they can in onnxruntime")


TARGETS: Final = Registry("prunec.targets", "target", Target)
"""The runtimes that are installed, by name."""
