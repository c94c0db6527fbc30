"""Running a plan's passes in order: facts are checked, rewrites are verified, and every pass leaves a record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from weakref import ref

from prunec.compiler.cost.model import cost
from prunec.compiler.driver.finite import check_stays_finite
from prunec.compiler.driver.runtimes import check_runtimes
from prunec.compiler.driver.steps import Composite, CompositeResult, Outcome, Step, inner, unfolded
from prunec.compiler.driver.trained import check_trained
from prunec.compiler.errors import DataError, PassError, PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import names_by_axis
from prunec.compiler.ir.aliasing import unwritten
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.report.report import Record
from prunec.compiler.user_code import running
from prunec.compiler.verify.verify import verify


def check_needs(steps: Sequence[Step]) -> None:
    """Every fact that a pass needs is given by an earlier one and not dropped by a rewrite in between, in a second
    round too."""
    known: set[str] = set()
    passed: list[Step] = []
    for step, again in _twice(steps):
        missing = sorted(step.pass_.required() - known)
        if missing:
            when = " in the same round" if again else ""
            raise PlanError(
                f"pass '{step.pass_.name}' needs {missing[0]}, which no pass before it gives{when}",
                at=step.at,
                hint=_giver(missing[0], passed),
            )
        known = (set() if step.pass_.rewrites else known - step.pass_.drops) | step.pass_.given()
        passed.append(step)


def _twice(steps: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
    """The steps as they follow each other, with a second round of what may have one; and whether they are of that."""
    for step in steps:
        yield step, False
        held = inner(step)
        yield from _twice(held)
        if isinstance(step.pass_, Composite) and step.pass_.again:
            yield from ((each, True) for each, _ in _twice(held))


def _giver(fact: str, before: Sequence[Step]) -> str:
    dropped = [s.pass_.name for s in before if s.pass_.rewrites or fact in s.pass_.drops]
    if any(fact in s.pass_.given() for s in before):
        return f"'{dropped[-1]}' changes the program, so {fact} has to be found again after it"
    return f"put a pass that gives {fact} before it"


def run_passes(program: Program, steps: Sequence[Step], context: Context, *, until: str | None = None) -> Outcome:
    """Run the passes in order; stop after the first one named `until`, also within the first round of another.

    Raises `PlanError` where a fact is missing, `PassError` (with its place in the plan) where a pass can't do what it
    is asked, and `VerifyError` where a rewrite changed the function.
    """
    check_needs(steps)
    return _run_passes(program, steps, context, until)


def _run_passes(program: Program, steps: Sequence[Step], context: Context, until: str | None = None) -> Outcome:
    context = context if context.traced else replace(context, traced=program)
    records: list[Record] = []
    resolved: list[Pass] = []
    resources: frozenset[str] = frozenset()
    named = sum(not step.implied for step in steps)
    for index, step in enumerate(steps):
        pass_ = step.pass_
        if pass_.name != until and until in {held.pass_.name for held in inner(step)}:
            assert isinstance(pass_, Composite), "it holds steps"
            held = step.inside(pass_.first_round(program, context))
            program = _run_passes(program, held, context, until).program
            break
        if step.implied:
            result, found = _run(program, step, context)
            if result.program is not program or result.notes:
                records += found
                resolved += pass_.resolved(result)
            program = result.program
            continue
        stage = str(context.round) if context.round else f"pass {index + 1} of {named}: {pass_.name}"
        total = len(steps) if context.round else 1
        done = index if context.round else 0
        context.progress(stage, done, total)
        result, found = _run(program, step, context)
        program = result.program
        records += found
        resolved += pass_.resolved(result)
        resources |= pass_.resources()
        context.progress(stage, done + 1, total)
        if pass_.name == until:
            break
    return Outcome(program, tuple(records), tuple(resolved), resources)


def check_options(program: Program, steps: Sequence[Step]) -> Sequence[Step]:
    """Hold the options against the traced program, as far as the first rewrite; give the steps that were checked.

    What a pass holds stands behind it. Those behind the first rewrite, as far as all rewrites only remove units, are
    asked what no removal can mend. Raises `PassError` with its place in the plan.
    """
    steps = unfolded(steps)
    first = next((index for index, step in enumerate(steps) if step.pass_.rewrites), len(steps))
    checked = steps[: first + 1]
    for step in checked:
        program = _check_options(step, program)
    for before, step in pairwise(steps[first:]):
        known = analyse(program)
        if before.pass_.rewrites and not before.pass_.removes:
            break
        program = _check_options(step, program, later=True)
        if analyse(program) is not known:  # units are numbered anew
            break
    return checked


def _check_options(step: Step, program: Program, *, later: bool = False) -> Program:
    """Check a step on a program; give the one that it leaves, so far as that is foreseen."""
    pass_ = step.pass_
    try:
        with running(f"the pass '{pass_.name}' failed", PassError, at=step.at, mixed=True):
            (pass_.check_later if later else pass_.check)(program)
            return pass_.foreseen(program).with_facts(**pass_.expected(program))
    except PassError as error:
        _locate(error, step, Context())
        raise


def check_ready(program: Program, steps: Sequence[Step], context: Context) -> None:
    """Ask every pass whether it has what it needs, before the first one runs; of equal passes, one.

    Raises what their `ready` raises, with its place in the plan.
    """
    asked: list[Pass] = []
    check_runtimes(unfolded(steps))
    for step in unfolded(steps):
        if step.pass_ in asked:
            continue
        asked.append(step.pass_)
        try:
            with running(f"the pass '{step.pass_.name}' failed", PassError, at=step.at, mixed=True), unwritten(program):
                step.pass_.ready(program, context)
        except (PassError, DataError) as error:
            _locate(error, step, context)
            raise


def _locate(error: PassError | DataError, step: Step, context: Context) -> None:
    """Give the error its place: the value of an option, or within a mapping the key, such as a pattern; where the data
    are at fault, the plan's entry for them."""
    if isinstance(error, DataError):
        error.at = error.at or (context.data.at if context.data else None)
        return
    keys = error.keys
    on_key = len(keys) > 1 and isinstance(keys[-1], str)
    error.at = error.at or (step.locate(*keys, on_key=on_key) if keys else None) or step.at


def _run(program: Program, step: Step, context: Context) -> tuple[PassResult, list[Record]]:
    """The result of a step, its record, and behind it those of its rounds."""
    with running(f"the pass '{step.pass_.name}' failed", PassError, at=step.at, mixed=True):
        return _recorded(program, step, context)


def _recorded(program: Program, step: Step, context: Context) -> tuple[PassResult, list[Record]]:
    pass_ = step.pass_
    held = isinstance(pass_, Composite)
    done = None if held else context.journal.replay(pass_, program, context)
    if done is not None:
        return _named(program, pass_, done[0]), [done[1]]
    before, start = cost(program), time.perf_counter()
    try:
        with unwritten(program):
            result = _result(program, step, context)
    except (PassError, DataError) as error:
        _locate(error, step, context)
        raise
    result = _named(program, pass_, result)
    seconds, start = seconds_since(start), time.perf_counter()
    verification = None
    if pass_.rewrites and result.program is not program:
        check_stays_finite(program, result.program, pass_.name, step.at)
        reference = pass_.reference(program, result.program)
        verification = verify(result.program, reference, pass_name=pass_.name, seed=context.seed)
    if pass_.trains and result.program is not program:
        check_trained(program, result.program, pass_.name)
        check_stays_finite(program, result.program, pass_.name, step.at)
        if pass_.refits:
            reference = pass_.reference(program, result.program)
            verification = verify(result.program, reference, pass_name=pass_.name, seed=context.seed)
    if verification is not None and not context.structural:
        with unwritten(program):
            pass_.audit(program, result, context)
    elapsed = seconds_since(start)
    after = cost(result.program)
    found = result.notes, result.details, verification, result.warnings, result.history
    number = context.round.index + 1 if context.round else None
    record = Record(pass_.name, seconds, elapsed, before, after, *found, number, attachments=result.attachments)
    if isinstance(result, CompositeResult):
        return result, [replace(record, rounds=result.rounds), *result.records]
    if not held:
        context.journal.add(pass_, result, record)
    return result, [record]


def _named(program: Program, pass_: Pass, result: PassResult) -> PassResult:
    """The result with the names that groups had before the first rewrite."""
    if not pass_.rewrites or result.program is program or program.names:
        return result
    return replace(result, program=replace(result.program, names=names_by_axis(program)))


def _result(program: Program, step: Step, context: Context) -> PassResult:
    """What the pass gives; a composite one has its rounds run here, and can give nothing that wasn't verified."""
    pass_, given = step.pass_, [ref(program)]
    if pass_.trains or pass_.keeps:
        context = replace(context, keeper=context.journal.keeper())
    if not isinstance(pass_, Composite):
        return pass_.run(program, context)

    def run(start: Program, passes: Sequence[Pass], inside: Context) -> Outcome:
        outcome = _run_passes(start, step.inside(passes), inside)
        given.append(ref(outcome.program))
        return outcome

    result = pass_.run_inside(program, context, run)
    assert any(each() is result.program for each in given), f"'{pass_.name}' gives a program of its own making"
    return result


def seconds_since(start: float) -> float:
    """The time that has passed since `start`, in steps of 0.1 ms: what is smaller tells nothing of a single run."""
    return round(time.perf_counter() - start, 4)
