"""Running a plan's passes in order: facts are checked, rewrites are verified, and every pass leaves a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prunec.compiler.cost.model import cost
from prunec.compiler.driver.finite import check_stays_finite
from prunec.compiler.errors import DataError, PassError, PlanError, Span
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import names_by_axis
from prunec.compiler.ir.aliasing import unwritten
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.report.report import Record
from prunec.compiler.user_code import running
from prunec.compiler.verify.verify import verify


@dataclass(frozen=True)
class Step:
    """A pass, and where the plan's file names it; `locate` finds one of its options there."""

    pass_: Pass
    at: Span | None = None
    locate: Callable[..., Span | None] = lambda *keys, on_key=False: None


@dataclass(frozen=True)
class Outcome:
    """The last program, a record for each pass, and the passes that give the same result without deciding anew."""

    program: Program
    records: tuple[Record, ...]
    resolved: tuple[Pass, ...]
    resources: frozenset[str] = frozenset()
    """What the passes looked at: those that had a budget."""


def check_needs(steps: Sequence[Step]) -> None:
    """Every fact that a pass needs is given by an earlier one and not dropped by a rewrite in between."""
    known: set[str] = set()
    for step in steps:
        missing = sorted(step.pass_.required() - known)
        if missing:
            raise PlanError(
                f"pass '{step.pass_.name}' needs {missing[0]}, which no pass before it gives",
                at=step.at,
                hint=_giver(missing[0], step, steps),
            )
        known = (set() if step.pass_.rewrites else known) | step.pass_.gives


def _giver(fact: str, step: Step, steps: Sequence[Step]) -> str:
    before = steps[: steps.index(step)]
    dropped = [s.pass_.name for s in before if s.pass_.rewrites]
    if any(fact in s.pass_.gives for s in before):
        return f"'{dropped[-1]}' changes the program, so {fact} has to be found again after it"
    return f"put a pass that gives {fact} before it"


def run_passes(program: Program, steps: Sequence[Step], context: Context, *, until: str | None = None) -> Outcome:
    """Run the passes in order; stop after the first one named `until`.

    Raises `PlanError` where a fact is missing, `PassError` (with its place in the plan) where a pass can't do what it
    is asked, and `VerifyError` where a rewrite changed the function.
    """
    check_needs(steps)
    context = context if context.traced else replace(context, traced=program)
    records: list[Record] = []
    resolved: list[Pass] = []
    resources: frozenset[str] = frozenset()
    for index, step in enumerate(steps):
        stage = f"pass {index + 1} of {len(steps)}: {step.pass_.name}"
        context.progress(stage, 0, 1)
        result, record = _run(program, step, context)
        program = result.program
        records.append(record)
        resolved += step.pass_.resolved(result)
        resources |= step.pass_.resources()
        context.progress(stage, 1, 1)
        if step.pass_.name == until:
            break
    return Outcome(program, tuple(records), tuple(resolved), resources)


def check_options(program: Program, steps: Sequence[Step]) -> Sequence[Step]:
    """Hold the options against the traced program, as far as the first rewrite; give the steps that were checked.

    Those behind it, as far as all rewrites only remove units, are asked what no removal can mend. Raises `PassError`
    with its place in the plan.
    """
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
    for step in steps:
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


def _run(program: Program, step: Step, context: Context) -> tuple[PassResult, Record]:
    with running(f"the pass '{step.pass_.name}' failed", PassError, at=step.at, mixed=True):
        return _recorded(program, step, context)


def _recorded(program: Program, step: Step, context: Context) -> tuple[PassResult, Record]:
    pass_ = step.pass_
    before, start = cost(program), time.perf_counter()
    try:
        with unwritten(program):
            result = pass_.run(program, context)
    except (PassError, DataError) as error:
        _locate(error, step, context)
        raise
    if pass_.rewrites and result.program is not program and not program.names:
        result = replace(result, program=replace(result.program, names=names_by_axis(program)))
    seconds, start = seconds_since(start), time.perf_counter()
    verification = None
    if pass_.rewrites and result.program is not program:
        check_stays_finite(program, result.program, pass_.name, step.at)
        reference = pass_.reference(program, result.program)
        verification = verify(result.program, reference, pass_name=pass_.name, seed=context.seed)
    elapsed = seconds_since(start)
    after = cost(result.program)
    found = result.notes, result.details, verification, result.warnings
    return result, Record(pass_.name, seconds, elapsed, before, after, *found)


def seconds_since(start: float) -> float:
    """The time that has passed since `start`, in steps of 0.1 ms: what is smaller tells nothing of a single run."""
    return round(time.perf_counter() - start, 4)
