"""A plan's passes as steps, which know where they stand in its file; and passes that hold others.

    passes:
      - fold_bn                                 Step(FoldBN)
      - repeat:                                 Step(Repeat)
          steps: 3
          passes: [score, select, shrink]         .inside(...): Step(Score), Step(Select), Step(Shrink)

A composite pass says what its rounds are, and what it makes of them; the pass manager runs them, as it runs a plan.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from prunec.compiler.errors import Span
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import DEFAULTS, Context, Pass, PassResult
from prunec.compiler.plan.entries import Passes
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import Record, Rounds


@dataclass(frozen=True)
class Step:
    """A pass, and where the plan's file names it; `locate` finds one of its options there."""

    pass_: Pass
    at: Span | None = None
    locate: Callable[..., Span | None] = lambda *keys, on_key=False: None
    implied: bool = False
    """Whether the plan has the pass without naming it; then it is told only where it has done something."""

    def inside(self, passes: Iterable[Pass]) -> list[Step]:
        """The passes that this one holds, each made from the plan's entry of the same number, with their places."""
        return [
            Step(each, self.locate("passes", i, each.name, on_key=True), partial(self.locate, "passes", i, each.name))
            for i, each in enumerate(passes)
        ]


@dataclass(frozen=True)
class Outcome:
    """The last program, a record for each pass, and the passes that give the same result without deciding anew."""

    program: Program
    records: tuple[Record, ...]
    resolved: tuple[Pass, ...]
    resources: frozenset[str] = frozenset()
    """What the passes looked at: those that had a budget."""


Run = Callable[[Program, Sequence[Pass], Context], Outcome]
"""Runs passes on a program: with checks, verification and records, as a plan's passes are run."""


@dataclass(frozen=True)
class CompositeResult(PassResult):
    """What a composite pass gives: one of the programs that its rounds gave, or that it was given itself."""

    records: tuple[Record, ...] = ()
    """Those of its rounds."""
    resolved: tuple[Pass, ...] = ()
    """Passes that give the same result without deciding anything."""
    rounds: Rounds | None = None
    """How the rounds went on, where there were any."""


class Composite(Pass):
    """A pass that runs other passes, once or in rounds."""

    passes: Passes

    @abstractmethod
    def run_inside(self, program: Program, context: Context, run: Run) -> CompositeResult:
        """Give one of the programs that `run` gave, with its records and what it resolved to."""

    @abstractmethod
    def first_round(self, program: Program, context: Context) -> tuple[Pass, ...]:
        """The passes as the first round runs them, in the order of `passes`."""

    def last_round(self) -> tuple[Pass, ...]:
        """The passes as they would run if one round did it all: whose options are checked before anything is run."""
        return tuple(entry.pass_ for entry in self.passes)

    @property
    def again(self) -> bool:
        """Whether there may be a second round."""
        return True

    def run(self, program: Program, context: Context) -> PassResult:
        """A composite pass is run by the pass manager alone."""
        raise NotImplementedError("the pass manager calls run_inside")

    def resources(self) -> frozenset[str]:
        """The resources that the passes look at."""
        return frozenset[str]().union(*(each.resources() for each in self.last_round()))

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """What the rounds resolved to, one behind the other."""
        assert isinstance(result, CompositeResult), "the pass manager takes what run_inside gives"
        return result.resolved


def steps_of(plan: Plan) -> list[Step]:
    """The plan's passes with their places in its file."""
    return [
        Step(entry.pass_, entry.at, partial(plan.at, "passes", index, entry.name))
        for index, entry in enumerate(plan.passes)
    ]


def with_defaults(plan: Plan, steps: Sequence[Step]) -> list[Step]:
    """The plan's steps, and behind them those that every plan has. A lock says itself all that is done, and what is
    known of eval mode isn't of train mode."""
    if plan.hashes or plan.mode == "train":
        return [*steps]
    passes = [step.pass_ for step in unfolded(steps)]
    made = (each.by_default(passes, plan.runtime) for each in DEFAULTS.all().values())
    return [*steps, *(Step(pass_, implied=True) for pass_ in made if pass_ is not None)]


def unfolded(steps: Sequence[Step]) -> list[Step]:
    """The steps, each composite one followed by those that it holds, as one round runs them."""
    return [each for step in steps for each in (step, *inner(step))]


def inner(step: Step) -> list[Step]:
    """What a composite step holds, as one round runs it; nothing of any other step."""
    return unfolded(step.inside(step.pass_.last_round())) if isinstance(step.pass_, Composite) else []


def before_first(steps: Sequence[Step], wanted: Callable[[Pass], bool]) -> list[Step]:
    """The steps before the first that is wanted; where a composite one holds that, of its first round those before
    it."""
    return list(_before_first(steps, wanted))


def _before_first(steps: Sequence[Step], wanted: Callable[[Pass], bool]) -> Iterator[Step]:
    for step in steps:
        if wanted(step.pass_):
            return
        held = inner(step)
        if any(wanted(each.pass_) for each in held):
            yield from _before_first(held, wanted)
            return
        yield step
