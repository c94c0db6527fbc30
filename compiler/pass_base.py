"""The pass contract: a small frozen object made from a plan entry, that takes a program and gives a new one.

    class Halve(Pass):
        \"\"\"Cut every group in half.\"\"\"
        name = "halve"
        gives = frozenset({"selection"})
        keep_first: bool = True                      # an option: a typed field, checked when the plan is loaded

        def run(self, program: Program, context: Context) -> PassResult: ...

Options are pydantic fields: `prunec passes halve`, the JSON schema and the plan's error messages come from them.
A pass that changes what is computed sets `rewrites = True`; then the pass manager compares the new program with
`reference(before, after)` and stops the compile when they differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import nn

from prunec.compiler.data import Data
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.plugins import Registry
from prunec.compiler.task.kept_classes import KeptClasses
from prunec.compiler.task.losses import DEFAULT, Loss
from prunec.compiler.task.metrics import ACCURACY, Metric
from prunec.compiler.train_spec import TrainSpec
from prunec.compiler.verify.reference import Reference, Same

Kept = TypeVar("Kept")


class Progress(Protocol):
    """Where long work reports to; the command line draws bars or writes lines, the API is silent."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of `what` are finished; `note` says how it stands, such as a loss."""


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """A `Progress` that says nothing."""


class Keeper(Protocol):
    """Where a training pass leaves its checkpoints, and finds the one that a killed compile has left."""

    @property
    def place(self) -> str:
        """The folder, for messages; empty where nothing is kept."""

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""

    def save(self, write: Callable[[Path], Any]) -> None:
        """Have `write` make the file of a checkpoint, which takes the place of the last one when it is whole."""

    def load(self) -> Path | None:
        """The checkpoint of this very training, if one was left."""


class Journal(Protocol):
    """What a compile takes down of its passes, so that a later one goes on where it was killed."""

    def recall(self, what: str, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, a plain JSON value; or what it gave at this place in a compile that was killed.

        For what decides how a compile goes on and isn't a pass of its own, such as a metric between rounds.
        """

    def replay(self, pass_: Pass, program: Program, context: Context) -> tuple[PassResult, Any] | None:
        """The result and the record of a pass that was done before; None for one that has to run."""

    def add(self, pass_: Pass, result: PassResult, record: Any) -> None:
        """Take down a pass that is done, with its record."""

    def keeper(self) -> Keeper:
        """Where the training that comes next keeps its checkpoints."""


class NoJournal:
    """A `Journal` that takes nothing down."""

    def recall(self, what: str, make: Callable[[], Kept]) -> Kept:
        """What `make` gives."""
        return make()

    def replay(self, pass_: Pass, program: Program, context: Context) -> tuple[PassResult, Any] | None:
        """Nothing was done before."""
        return None

    def add(self, pass_: Pass, result: PassResult, record: Any) -> None:
        """Take nothing down."""

    def keeper(self) -> Keeper:
        """One that keeps nothing."""
        return NoKeeper()


class NoKeeper:
    """A `Keeper` that keeps nothing."""

    place = ""

    def due(self) -> bool:
        """Never."""
        return False

    def save(self, write: Callable[[Path], Any]) -> None:
        """Keep nothing."""

    def load(self) -> Path | None:
        """Nothing was left."""
        return None


@dataclass(frozen=True)
class Round:
    """Which of its rounds a pass runs that holds other passes."""

    index: int
    """Counted from 0."""
    total: int | None = None
    """None where that isn't known beforehand."""

    def __str__(self) -> str:
        return f"round {self.index + 1}" + (f" of {self.total}" if self.total else "")


@dataclass(frozen=True)
class Allowance:
    """What a round may leave, for the passes inside that choose how much goes."""

    left: Mapping[str, float | str]
    """Resource -> an amount, or a share of what the traced model uses; where it can't be met, all goes that may."""
    at_most: int | None = None
    """So many units go in one round, and no more."""


@dataclass(frozen=True)
class Context:
    """What a pass may use besides its program: data, seeded randomness, and progress."""

    seed: int = 0
    data: Data | None = None
    progress: Progress = silent
    traced: Program | None = None
    """The model as it was traced: a share such as `50%` of a budget is one of what this uses."""
    runtime: str | None = None
    """The target that the slim model is meant for; None where nobody has said: then no width is better than another."""
    loss: Loss = DEFAULT
    """What the model was trained by: whose change counts, and what a training pass goes by."""
    metric: Metric = ACCURACY
    """What the model is judged by."""
    whole: Callable[[Program], nn.Module] = attrgetter("module")
    """The model that a program is the slim form of: where regions are compiled, the whole one with them in their
    places."""
    inputs: Any = None
    """The example inputs of that model; None where they are the program's."""
    round: Round | None = None
    """There for passes that another pass runs in rounds."""
    train: TrainSpec | None = None
    """What training runs on; None for the defaults."""
    keeper: Keeper = field(default_factory=NoKeeper)
    """For a pass that trains."""
    journal: Journal = field(default_factory=NoJournal)
    kept: KeptClasses | None = None
    """The classes that the plan keeps; None where it keeps all."""
    complete: Program | None = None
    """Where the plan keeps some classes alone, the traced model with all of them."""
    structural: bool = False
    """Whether values don't matter, since others are put in their place: then nothing is refused for what they are."""

    def rng(self, *key: str) -> np.random.Generator:
        """A generator that depends on the seed and the key alone, so that passes don't disturb each other."""
        return np.random.default_rng([self.seed, *(b for part in key for b in part.encode())])


@dataclass(frozen=True)
class Attachment:
    """A file that a pass adds to the output folder; a picture or a table that has a title stands on the report's page,
    too."""

    file: str
    """Its name; where several attachments have the same, the later ones get a number."""
    content: bytes = field(repr=False)
    title: str = ""
    """The heading of a PNG picture or of a CSV table on the page."""
    caption: str = ""
    """A sentence below the heading."""


@dataclass(frozen=True)
class PassResult:
    """The new program, and what was left alone and why."""

    program: Program
    notes: tuple[Note, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    """Figures for the report: plain JSON values."""
    warnings: tuple[str, ...] = ()
    """What the user must see: the console prints them under the table."""
    history: tuple[Mapping[str, float | int], ...] = ()
    """The lines of a training's table, one an epoch."""
    attachments: tuple[Attachment, ...] = ()


class Pass(BaseModel, ABC):
    """The base of every pass; see the module's text."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    name: ClassVar[str]
    rewrites: ClassVar[bool] = False
    """Whether the pass changes the graph or the parameters, so that its result is verified."""
    removes: ClassVar[bool] = False
    """Whether a pass that rewrites takes units out, and does nothing else: the groups before it are those behind it."""
    trains: ClassVar[bool] = False
    """Whether the pass changes values alone: the same graph, names and shapes, so that facts about structure hold."""
    keeps: ClassVar[bool] = False
    """Whether a pass takes so long that a compile which was killed goes on inside it; one that trains does anyway."""
    refits: ClassVar[bool] = False
    """Whether a pass that trains gives values in closed form, so that its result is verified by `reference`, too."""
    drops: ClassVar[frozenset[str]] = frozenset()
    """Facts that don't hold behind a pass that trains."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Facts that an earlier pass must have given."""
    gives: ClassVar[frozenset[str]] = frozenset()
    """Facts that the pass adds to the program."""
    shorthand: ClassVar[str | None] = None
    """The option that a bare value in the plan stands for: `- prune: 0.5`."""

    @abstractmethod
    def run(self, program: Program, context: Context) -> PassResult:
        """Give the new program; raise `PassError` where the options can't be met on this program."""

    def check(self, program: Program) -> None:
        """Raise `PassError` for options that name what the program doesn't have; nothing is run."""
        return

    def ready(self, program: Program, context: Context) -> None:
        """Raise what `run` would raise for want of something: data, labels, a package.

        All passes are asked before the first one runs, on the traced program, so that no work is lost.
        """
        return

    def check_later(self, program: Program) -> None:
        """As `check`, for a pass behind others that only take units out: `program` is the one before all of them.

        Raise only what no removal can mend. How much may be gone by then is the program's fact `expected_left`.
        """
        return

    def remarks(self, program: Program) -> Iterable[Note]:
        """Notes for `prunec check`, without running anything: options that are legal but probably not meant.

        Such is one about something that the program doesn't have.
        """
        return ()

    def foreseen(self, program: Program) -> Program:
        """The program on which `prunec check` checks the options of later passes, without running this one."""
        return program

    def expected(self, program: Program) -> Mapping[str, Any]:
        """What the checks of later passes may know of this one's result: facts called `expected_...`.

        By default, nothing is known of the facts that it gives.
        """
        return {f"expected_{fact}": None for fact in self.given()}

    def resources(self) -> frozenset[str]:
        """The resources (`latency`, ...) that this pass looks at, given its options: the report tells how they fare."""
        return frozenset()

    def required(self) -> frozenset[str]:
        """The facts that this pass needs, given its options."""
        return self.needs

    def given(self) -> frozenset[str]:
        """The facts that this pass adds, given its options."""
        return self.gives

    def in_round(self, allowance: Allowance) -> Pass:
        """The pass as a round runs it that may leave so much: itself, unless it is one that leaves the amount open."""
        return self

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """What the lock records for this pass: passes that give the same result without deciding anything."""
        return (self,)

    def audit(self, program: Program, result: PassResult, context: Context) -> None:
        """Raise `VerifyError` where new weights aren't what the pass claims, which `reference` takes for granted.

        `program` is the one that the pass was given; it has been verified by then.
        """
        return

    @classmethod
    def by_default(cls, passes: Sequence[Pass], runtime: str) -> Pass | None:
        """The pass as it runs behind the last one of every plan, if it is an entry point of `prunec.defaults`; None
        where a plan with these passes, those that others hold among them, doesn't want it."""
        return None

    def reference(self, before: Program, after: Program) -> Reference:
        """What the rewritten program must compute; by default, what the old one computed."""
        return Same(before)


PASSES: Final = Registry("prunec.passes", "pass", Pass)  # type: ignore[type-abstract]
"""The passes that are installed: the entry-point group `prunec.passes`; see `compiler.plugins`."""

DEFAULTS: Final = Registry("prunec.defaults", "pass", Pass)  # type: ignore[type-abstract]
"""Passes that every plan has behind its last one: the entry-point group `prunec.defaults`; see `Pass.by_default`."""
