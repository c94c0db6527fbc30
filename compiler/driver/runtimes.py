"""The runtimes whose latency a plan's budgets are of: one for a plan, and one that can be timed on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunec.compiler.cost.resource import LATENCY, RUNTIME, runtime_of
from prunec.compiler.driver.steps import Step
from prunec.compiler.errors import PassError, PrunecError, Span
from prunec.compiler.plan.plan import Plan


def runtime_among(resources: Iterable[str]) -> str | None:
    """The target whose latency is among these resources; None where none is."""
    return next(filter(None, map(runtime_of, sorted(resources))), None)


def runtime_of_plan(plan: Plan) -> str:
    """The target whose latency the plan budgets; where it budgets none, the one that counts by default."""
    return runtime_among(name for entry in plan.passes for name in entry.pass_.resources()) or RUNTIME


def check_runtimes(steps: Sequence[Step]) -> None:
    """Raise `PassError`, with its place in the plan, where passes name two runtimes, or one that can't be timed."""
    first: str | None = None
    for step in steps:
        for runtime in sorted(filter(None, map(runtime_of, step.pass_.resources()))):
            at = _place(step)
            if first not in (None, runtime):
                message = f"budgets of latency are in one runtime, and these in {first} and in {runtime}"
                raise PassError(message, at=at, hint="name the same runtime in all passes")
            if runtime != first and runtime != RUNTIME:
                _check_timed(runtime, at)
            first = runtime


def _place(step: Step) -> Span | None:
    """Where a pass's budgets stand."""
    key = next((key for key in ("budget", "to") if getattr(step.pass_, key, None)), None)
    return step.at if key is None else step.locate(key, LATENCY) or step.at


def _check_timed(runtime: str, at: Span | None) -> None:
    from prunec.compiler.targets.timing import meter_of  # noqa: PLC0415  (imports onnxruntime)

    try:
        meter_of(runtime)
    except PrunecError as error:
        raise PassError(error.message, at=at, hint=error.hint) from error
