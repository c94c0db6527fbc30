"""What a command looks into: a plan's model at the point where the plan first scores it, its data, and how it scores.

    passes:                              the subject of `prunec sensitivity` and `prunec rank`
      - fold_bn                          has been run,
      - score: {criterion: taylor}       gives the criterion and its data,
      - select: ...                      and what comes behind doesn't matter

Of a plan that scores nothing, the traced program is the subject, with its channels divided as the plan says, and l1 the
criterion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from prunec.compiler.driver.classes import adapt
from prunec.compiler.driver.compile import divided, load_program
from prunec.compiler.driver.evaluation import settled
from prunec.compiler.driver.finite import check_finite
from prunec.compiler.driver.load import load_data, load_loss, load_metric
from prunec.compiler.driver.lock import check_model
from prunec.compiler.driver.pass_manager import run_passes
from prunec.compiler.driver.placing import placed
from prunec.compiler.driver.steps import before_first, steps_of, unfolded
from prunec.compiler.errors import PlanError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import matching
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.wrappers import untold
from prunec.compiler.pass_base import Context, Progress
from prunec.compiler.plan.options import Fraction01, faults
from prunec.compiler.plan.plan import Plan
from prunec.compiler.plan.source import parse
from prunec.compiler.task.losses import LOSSES
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.criteria.base import Criterion
from prunec.passes.criteria.spelling import Named
from prunec.passes.score import Score

LOOKING: Final[tuple[str, ...]] = ("batches", "samples", "split", "loss", "memory")
"""The options of `score` that say which data a criterion looks at."""


@dataclass(frozen=True)
class Subject:
    """A program with the context that its passes have, and the plan's own `score`."""

    program: Program
    context: Context
    score: Score

    def calibration(self, looks: Mapping[str, Any]) -> Calibration:
        """The data to look at, of options by the names in `LOOKING`; by the plan's loss, where these name none."""
        name = looks.get("loss")
        return Calibration(**{**looks, "loss": self.context.loss if name is None else LOSSES[name]})


def subject(plan: Plan, progress: Progress) -> Subject:
    """Load the plan's model and data, and run what stands before its first `score`. Raises `PrunecError`."""
    if plan.region is not None:
        hint = "leave out region, and name the region's groups: --groups 'backbone.*'"
        raise PlanError(
            "the whole model is measured, and the plan names a region of it", at=plan.at("region"), hint=hint
        )
    if plan.data is None:
        raise PlanError("the plan names no data to measure with", hint="for example: data: prunec.models.data:digits")
    steps = steps_of(plan)
    before = before_first(steps, lambda pass_: isinstance(pass_, Score))
    score = next((step.pass_ for step in unfolded(steps) if isinstance(step.pass_, Score)), None)
    program, context = begun(plan, progress, by_units=score is None)
    if score is None:
        return Subject(program, context, Score())
    return Subject(run_passes(program, before, context).program, context, score)


def begun(plan: Plan, progress: Progress, *, by_units: bool = False) -> tuple[Program, Context]:
    """The plan's program before its first pass, and what passes may use; `by_units`, with its channels divided as the
    passes before the first rewrite ask. Raises `PrunecError`."""
    progress("trace", 0, 1)
    data = load_data(plan)
    program = load_program(plan)
    progress("trace", 1, 1)
    check_model(plan.hashes, program, plan.at("hashes"))
    check_finite(program, plan)
    adapted = adapt(plan, program, data)
    program, data = placed(adapted.program, plan, data is not None, untold), adapted.data
    program = divided(plan, program) if by_units else program
    loss = load_loss(adapted.plan)
    metric = settled(load_metric(adapted.plan, loss), program.module, data, program.inputs)
    context = Context(plan.seed, data, progress, program, plan.runtime, loss, metric, train=plan.train)
    return program, adapted.told(context)


def looking(score: Score, given: Mapping[str, Any]) -> dict[str, Any]:
    """Which data are used: the options `given` (unless None), then those of the plan's `score`."""
    said = {key: value for key, value in given.items() if value is not None}
    old = {key: getattr(score, key) for key in LOOKING if key in score.model_fields_set}
    if said.keys() & {"batches", "samples"}:
        old = {key: value for key, value in old.items() if key not in ("batches", "samples")}
    return {**old, **said}


def scored_by(score: Score, criterion: Criterion, looks: Mapping[str, Any]) -> Score:
    """`score` with another criterion, not normalised; with the data `looks` if the criterion looks at any."""
    kept: dict[str, Any] = {
        key: getattr(score, key) for key in score.model_fields_set if key not in (*LOOKING, "normalize")
    }
    return Score.model_validate({**kept, "criterion": criterion, **(looks if criterion.data else {})})


def groups_named(program: Program, patterns: Sequence[str]) -> list[str]:
    """The groups that the patterns mean, all where there are none. Raises `PassError` for one that means none."""
    groups = analyse(program).groups
    if not patterns:
        return list(groups)
    found = {name for names in matching(patterns, groups, option="--groups").values() for name in names}
    return [name for name in groups if name in found]


class _Said(BaseModel):
    """Types of the command line's options that are written as in a plan."""

    ratios: list[Fraction01] = Field(default=[], min_length=1, max_length=1000)
    criterion: Annotated[Criterion | None, Named()] = None
    criteria: list[Annotated[Criterion, Named()]] = Field(default=[], min_length=1)
    split: Literal["train", "val", "test"] | None = None
    loss: Literal["cross_entropy", "nll", "mse", "binary_cross_entropy"] | None = None


def said(option: str, text: str) -> Any:
    """The value of such an option: a criterion, or a list, with or without its brackets.

    Raises `PlanError` with its place in the option.
    """
    listed = option in ("ratios", "criteria") and not text.lstrip().startswith("[")
    source = parse(f"[{text}]" if listed else text, f"--{option}")
    try:
        return getattr(_Said.model_validate({option: source.data}), option)
    except ValidationError as error:
        found = faults(error, {option: source.data}, (), _Said)
        raise source.errors([replace(fault, keys=fault.keys[1:]) for fault in found]) from error
