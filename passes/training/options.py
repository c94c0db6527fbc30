"""The options that all training passes have."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, field_validator, model_validator
from torch import nn

from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass
from prunec.compiler.plan.options import wrong
from prunec.passes.criteria.spelling import CRITERIA
from prunec.passes.criteria.taylor import Gated
from prunec.passes.score import Score
from prunec.passes.training.constraints import Constraints
from prunec.passes.training.distill import Distill
from prunec.passes.training.optimizers import SCHEDULES, Optimizer, PlanOptimizer, PlanSchedule, Warmup
from prunec.passes.training.updates import Update


class EarlyStop(BaseModel):
    """When a training ends before its time; it then has the weights of its best epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: Annotated[StrictInt, Field(ge=1)] = Field(default=3, description="epochs without a better metric")
    min_delta: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="by how much a metric has to be better to count as that"
    )
    by: Literal["metric", "teacher"] = Field(
        default="metric",
        description="what has to become better: the metric on val, or the distance from the original that `distill` "
        "learns from, which needs no labels: on a fifth of `samples`, which isn't learned then, or on val",
    )


def _patience(value: object) -> object:
    return {"patience": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _criterion(value: object) -> object:
    return {"criterion": value} if isinstance(value, str) else value


_OF_DATA: Final = frozenset({"batches", "samples", "split", "loss", "memory"})
"""Options of `score` that say what is looked at."""

Count = Annotated[StrictInt, Field(ge=1)]


class TrainingOptions(Pass, ABC):
    """The options that all training passes have."""

    trains: ClassVar[bool] = True
    drops: ClassVar[frozenset[str]] = frozenset({"scores", "class_evidence"})

    epochs: Count | None = Field(default=None, description="how often all samples are seen; 1 if nothing is said")
    updates: Count | None = Field(default=None, description="in place of epochs: how many steps the optimizer takes")
    optimizer: PlanOptimizer = Field(
        default=Optimizer(name="sgd"),
        description="of torch.optim, or package.module:name; with arguments: {sgd: {nesterov: true}}",
    )
    lr: float = Field(default=0.01, gt=0, allow_inf_nan=False, description="the learning rate")
    weight_decay: float = Field(
        default=1e-4, ge=0, allow_inf_nan=False, description="what parameters are pulled to zero by"
    )
    decay: Literal["all", "matrices"] = Field(
        default="all", description="which parameters decay: all, or those of two or more dimensions (no bias, no norm)"
    )
    schedule: PlanSchedule = Field(
        default=SCHEDULES["cosine"](), description="how the rate changes: constant, cosine, linear, steps or one_cycle"
    )
    warmup: Warmup = Field(default=0.0, description="updates, or a share of them, in which the rate grows from zero")
    accumulate: Count = Field(default=1, description="batches whose gradients make one step")
    clip: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="the largest norm of all gradients together"
    )
    split: str = Field(default="train", description="the split of the data that is learned")
    samples: Count | None = Field(
        default=None, description="learn from the first so many samples of the split alone; from all if nothing is said"
    )
    distill: Distill | None = Field(
        default=None, description="learn from the original, too: {weight, temperature, features}"
    )
    freeze: list[str] = Field(default=[], description="glob patterns of parameters or layers that stay as they are")
    batch_norm: Literal["update", "freeze", "reestimate"] = Field(
        default="update",
        description="running statistics: go on as the training does, stay as they are, or are computed anew at the end",
    )
    early_stop: Annotated[EarlyStop | None, BeforeValidator(_patience)] = Field(
        default=None, description="end after so many epochs without a better metric on val: a number, or with min_delta"
    )
    evaluate: bool = Field(default=True, description="whether the metric is measured on val after each epoch")
    keep: Literal["auto", "last", "best"] = Field(
        default="auto",
        description="the weights of the last epoch, or of that with the best metric; best if it may stop",
    )
    constraints: Constraints = Field(
        default=Constraints(), description="what is held against every step: {hold_below, candidates, clamp, max_norm}"
    )
    score: Annotated[Score | None, BeforeValidator(_criterion)] = Field(
        default=None,
        description="score the units meanwhile, by what each batch's gradients say of them: the criterion, or all that "
        "`score` may say",
        examples=["taylor"],
    )
    restart: bool = Field(
        default=False, description="in `repeat`: begin the schedule and the optimizer anew in every round"
    )
    seed: Annotated[StrictInt, Field(ge=0)] | None = Field(default=None, description="a lock's: the training's seed")
    rounds: tuple[StrictInt, Count | None] | None = Field(
        default=None, description="a lock's: which round this is, counted from 0, and of how many, where that was known"
    )
    stop_at: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None, description="a lock's: after how many updates this training ended"
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainingOptions:
        if self.epochs is not None and self.updates is not None:
            raise wrong("must not say both 'epochs' and 'updates'")
        if not self.evaluate and not self.by_teacher and (self.early_stop is not None or self.keep == "best"):
            raise wrong("must not leave out 'evaluate' where the best epoch is looked for")
        if self.score is not None and self.constraints.candidates is not None:
            raise wrong("must not have both 'score' and 'candidates' among its constraints: each gives the scores")
        if self.by_teacher and self.distill is None:
            raise wrong("must have 'distill' where 'early_stop' goes by the distance from the teacher")
        if self.keep == "last" and self.early_stop is not None:
            raise wrong("must not keep the last weights beside 'early_stop', which ends behind the best ones")
        return self

    @property
    def by_teacher(self) -> bool:
        """Whether the best epoch is that which is nearest to the original."""
        return self.early_stop is not None and self.early_stop.by == "teacher"

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best epoch are kept."""
        return self.stop_at is None and (self.keep == "best" or (self.keep == "auto" and self.early_stop is not None))

    @field_validator("score")
    @classmethod
    def _is_gated(cls, score: Score | None) -> Score | None:
        if score is not None and not isinstance(score.criterion, Gated):
            gated = [name for name in CRITERIA.names() if issubclass(CRITERIA.named(name), Gated)]
            raise wrong(f"must be a criterion that gradients give: {', '.join(gated)}")
        if score is not None and (said := sorted(score.model_fields_set & _OF_DATA)):
            raise wrong(f"must not have '{said[0]}': the training's own batches and loss are what is looked at")
        return score

    def given(self) -> frozenset[str]:
        """The facts that this pass adds: those of its constraints among them."""
        scores = frozenset({"scores"}) if self.score else frozenset[str]()
        return self.gives | self.constraints.gives() | scores

    # -- what a pass adds ------------------------------------------------------------------------------------------

    def updates_for(self, module: nn.Module, program: Program, context: Context) -> Sequence[Update]:
        """What is done beside every step, bound to the module's parameters; nothing by default."""
        return ()
