"""`repeat`: passes in rounds, each of which removes a part of what is to go.

    - repeat:
        steps: 8                                  eight rounds,
        to: {macs: 40%}                           until so much is left,
        schedule: cubic                           much in the first rounds, little in the last;
        floor: -2pt                               no further than the last round that loses at most two points
        passes: [score, select, shrink]

    - repeat:                                     one unit at a time, scored anew each time
        each: 1
        to: {macs: 40%}
        passes: [{score: taylor}, select, shrink]

A `select` inside that says nothing of how much goes takes the budget of its round; its other options count in every
round. One that says it itself is left alone. Every amount is a share of the model as it was traced, so that rounds
don't compound: after the last one `to` is left, however many there are. Without `to`, the passes run `steps` times.

The rounds end when what `to` says is reached; when the metric falls below `floor`, which is measured on the split val
after each round: then the last round that held it is kept; and when nothing more may go, which is told.

steps   `schedule` says what each round may leave: linear takes the same amount in each round, geometric the same share
        of what is left, cubic (Zhu & Gupta, 2017) much at first and little at the end
each    a round removes so many units, those with the lowest scores of all groups, and as many rounds are run as it
        takes; the last one only what the budget asks (Molchanov et al., 2017, with each: 1). Widths are what comes out:
        `multiple_of` in `select` keeps them to multiples
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field, replace
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from prunec.compiler.cost.model import cost
from prunec.compiler.driver.steps import Composite, CompositeResult, Outcome, Run
from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Allowance, Context, Pass, Round
from prunec.compiler.plan.entries import PlanPass
from prunec.compiler.plan.options import told, wrong
from prunec.compiler.plan.source import Fault
from prunec.compiler.report.report import Record, RoundFigures, Rounds
from prunec.passes.rounds.floors import Floor
from prunec.passes.rounds.schedules import allowed, in_words, used
from prunec.passes.rounds.watch import Watch, ready
from prunec.passes.selection.amounts import Budgets, fits
from prunec.passes.selection.budgets import met

Count = Annotated[int, Field(ge=1)]
ALL: Final = "all rounds are run"
"""Why rounds end that nothing stops."""
_SOME: Final = {"macs": 0.5}
"""Any budget, to find out which passes take one."""


class Repeat(Composite):
    """Run passes in rounds, towards a budget or as often as is said."""

    name: ClassVar[str] = "repeat"

    steps: Count | None = Field(default=None, description="how many rounds there are")
    each: Count | None = Field(
        default=None, description="how many units a round removes; there are as many rounds as that takes"
    )
    to: Budgets | None = Field(
        default=None,
        min_length=1,
        description="what may be left after the last round: a share of the traced model's, or an amount, by resource",
        examples=[{"macs": "40%"}],
    )
    schedule: Literal["linear", "geometric", "cubic"] = Field(
        default="cubic", description="`steps`: how much of it goes in which round"
    )

    floor: Floor | None = Field(
        default=None,
        description="what the metric may not fall below: a loss such as -2pt or -5% against the traced model, or a "
        "value; the rounds end before",
        examples=["-2pt"],
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Repeat:
        if (self.steps is None) == (self.each is None):
            raise wrong("must have one of the keys 'steps' and 'each', and not both", hint="for example: steps: 8")
        if self.each is not None and self.to is None:
            raise wrong("must have the key 'to' beside 'each'", hint="for example: to: {macs: 40%}")
        if "schedule" in self.model_fields_set and (self.each is not None or self.to is None):
            raise wrong("must not have the key 'schedule' without 'steps' and 'to'")
        for name, text in (self.to or {}).items():
            fits(name, text)
        self._check_passes()
        return self

    def _check_passes(self) -> None:
        faults = [fault for i, entry in enumerate(self.passes) for fault in _faults(i, entry, self.each)]
        if faults:
            raise told(faults)
        takes = any(entry.pass_.in_round(Allowance(_SOME)) is not entry.pass_ for entry in self.passes)
        if takes and self.to is None:
            raise wrong("must have the key 'to': a pass inside leaves it open how much goes", hint="to: {macs: 40%}")
        if self.to is not None and not takes:
            hint = "write 'select' without an amount of its own"
            raise wrong("must hold a pass that takes the budget of a round", hint=hint)
        if self.to is not None and not any(entry.pass_.rewrites for entry in self.passes):
            raise wrong("must hold a pass that removes what is selected", hint="put 'shrink' behind 'select'")

    @property
    def again(self) -> bool:
        """Whether there may be a second round."""
        return self.steps != 1

    def first_round(self, program: Program, context: Context) -> tuple[Pass, ...]:
        """The passes as the first round runs them."""
        return self._passes(self._allowance(0, used(program, self.to or {}, context)))

    def last_round(self) -> tuple[Pass, ...]:
        """The passes as one round would run them."""
        return self._passes(Allowance(self.to, self.each) if self.to else None)

    def _allowance(self, index: int, start: Mapping[str, float]) -> Allowance | None:
        if self.to is None:
            return None
        if self.steps is None:
            return Allowance(self.to, self.each)
        return Allowance(allowed(self.schedule, start, self.to, index, self.steps))

    def _passes(self, allowance: Allowance | None) -> tuple[Pass, ...]:
        passes = (entry.pass_ for entry in self.passes)
        return tuple(pass_ if allowance is None else pass_.in_round(allowance) for pass_ in passes)

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` where there is a floor, and nothing to measure it on."""
        ready(self.floor, context)

    def run_inside(self, program: Program, context: Context, run: Run) -> CompositeResult:
        """Run round after round, until there is a reason to end.

        Raises `PassError` where the metric can't be measured that the floor is about, or misses it in the first round.
        """
        watch = Watch(context, self.floor)
        rounds = _Rounds(program, watch.measured(program))
        start = used(program, self.to or {}, context)
        while not (ends := self._ends(rounds, context)):
            allowance = self._allowance(rounds.count, start)
            inside = replace(context, round=Round(rounds.count, self.steps))
            outcome = run(rounds.program, self._passes(allowance), inside)
            value = watch.measured(outcome.program)
            stuck = allowance is not None and _is_stuck(rounds.program, outcome, allowance, context)
            held = watch.holds(value)
            rounds.add(outcome, value, held=held)
            if not held:
                return self._missed(rounds, watch, value)
            if stuck:
                result = rounds.result(watch, "nothing more may go, and the budget isn't met")
                return replace(result, warnings=(self._told(rounds.program, outcome, context),))
        return rounds.result(watch, ends)

    def _ends(self, rounds: _Rounds, context: Context) -> str:
        """Why there is no further round; empty where there is one."""
        if rounds.count == self.steps:
            return ALL
        return "the budget is met" if self.to and met(self.to, rounds.program, context) else ""

    def _told(self, program: Program, outcome: Outcome, context: Context) -> str:
        """The warning that the budget isn't met."""
        assert self.to is not None, "it is what isn't met"
        left = ", ".join(in_words(name, program, context) for name in self.to)
        asked = ", ".join(f"{name} {_written(text)}" for name, text in self.to.items())
        hints = [record.details["falls_short"] for record in outcome.records if "falls_short" in record.details]
        return "; ".join([f"repeat: the budget isn't met: {left} left, where {asked} was asked for", *hints[:1]])

    def _missed(self, rounds: _Rounds, watch: Watch, value: float | None) -> CompositeResult:
        """The result of the rounds before the last one, which missed the floor. Raises `PassError` where there are
        none."""
        assert watch.bound is not None, "only a floor is missed"
        got = "can't be measured" if value is None else f"is {watch.told(value)}"
        least = watch.told(watch.bound.value)
        side = "below" if watch.bound.higher_is_better else "above"
        if rounds.count == 1:
            message = f"floor: after the first round {watch.metric} {got}, {side} the floor of {least}"
            hint = "let a round take less, train in each round, or lower the floor"
            raise PassError(message, keys=("floor",), hint=hint)
        return rounds.result(watch, f"{watch.metric} {got}, {side} the floor of {least}: it is given up")


def _faults(index: int, entry: PlanPass, each: int | None) -> Iterator[Fault]:
    """What is wrong with a pass inside, for what the rounds ask of it."""
    keys = ("passes", index, entry.name)
    if isinstance(entry.pass_, Composite):
        yield Fault(keys, f"{entry.name} can't stand inside repeat: rounds hold no rounds", on_key=True)
        return
    try:
        entry.pass_.in_round(Allowance(_SOME, each))
    except PydanticCustomError as error:
        yield Fault(keys, f"{entry.name} {error.message()}", on_key=True)


def _written(text: float | str) -> str:
    """An amount as a plan has it."""
    return f"{text:.1%}" if isinstance(text, float) and text <= 1 else str(text)


def _is_stuck(before: Program, outcome: Outcome, allowance: Allowance, context: Context) -> bool:
    """Whether a round has left more than it might, since nothing more may go."""
    if any("falls_short" in record.details for record in outcome.records):
        return True
    # what is measured, such as latency, differs from one program to the next of the same widths
    return cost(outcome.program) == cost(before) and not met(allowance.left, outcome.program, context)


@dataclass
class _Rounds:
    """What the rounds have given so far."""

    program: Program
    """What the last round gave that is kept."""
    metric: InitVar[float | None]
    count: int = 0
    records: list[Record] = field(default_factory=list)
    resolved: list[Pass] = field(default_factory=list)
    rows: list[RoundFigures] = field(default_factory=list)

    def __post_init__(self, metric: float | None) -> None:
        """Note what there is before the first round."""
        self.rows.append(RoundFigures(0, cost(self.program), metric))

    def add(self, outcome: Outcome, metric: float | None, *, held: bool) -> None:
        """Note a round; its program is the last one's from now on, if it `held` the floor."""
        self.count += 1
        self.records += outcome.records
        self.rows.append(RoundFigures(self.count, cost(outcome.program), metric, held))
        if held:
            self.program = outcome.program
            self.resolved += outcome.resolved

    def result(self, watch: Watch, ends: str) -> CompositeResult:
        """The last program that is kept, and why there was no further round."""
        rounds = Rounds(ends, tuple(self.rows))
        if self.rows[0].metric is not None:
            rounds = replace(rounds, metric=watch.metric, share=watch.context.metric.share)
        if watch.bound is not None:
            rounds = replace(rounds, floor=watch.bound.value)
        notes = () if ends == ALL else (Note(f"round {self.count}" if self.count else "no round", ends),)
        return CompositeResult(
            self.program, notes, records=tuple(self.records), resolved=tuple(self.resolved), rounds=rounds
        )
