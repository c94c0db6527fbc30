"""The base of every training pass: its options, and how a program becomes a trained one.

    class Nudge(TrainingPass):
        \"\"\"Train with a nudge.\"\"\"
        name = "nudge"
        strength: float = 0.1

        def updates_for(self, module, program, context):      # what is done beside every step
            return [Nudged(module, self.strength)]

A training pass changes values, never structure: the program that it gives has the same graph, the same names and the
same shapes. What earlier passes found out about structure (a selection, clusters) still holds behind it; scores don't.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from prunec.compiler.errors import PassError
from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.passes.training.carried import Carried
from prunec.passes.training.engine import Engine
from prunec.passes.training.freezing import frozen, trainable
from prunec.passes.training.loop import Job, Trained, column_of
from prunec.passes.training.options import TrainingOptions

CARRIED: Final = "optimizer"
"""Under which name a program carries the optimizer's memory."""


class TrainingPass(TrainingOptions):
    """A pass that trains; see the module's text."""

    # -- before any work -------------------------------------------------------------------------------------------

    def check(self, program: Program) -> None:
        """Raise PassError for patterns that mean no parameter."""
        frozen(self.freeze, trainable(program))
        self.constraints.check(program)

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` without data, labels or packages, `DataError` where the data don't fit the loss."""
        if context.data is None:
            hint = "name a data factory, for example data: prunec.models.data:digits"
            raise PassError("training needs data, and the plan has none", hint=hint)
        if context.inputs is not None:
            message = "a region of the model can't be trained by itself: the data and the loss are of the whole model"
            hint = "put the slim parts in their places (splice in model.py), and train the model in a loop of your own"
            raise PassError(message, hint=hint)
        context.data.require(self.split)
        Engine.of(context.train).ready()
        job = Job.of(self, program, context)
        job.optimizer(job.trained(program))
        job.first_loss()
        judged = bool(self.early_stop or self.keep == "best") and not (self.by_teacher and self.samples)
        if judged and "val" not in context.data.splits:
            message = "the best epoch is found on the split 'val', which the data don't have"
            hint = (
                "with early_stop: {by: teacher} and 'samples', or without early_stop and keep: best, no val is needed"
            )
            raise PassError(message, keys=("early_stop" if self.early_stop else "keep",), hint=hint)
        if judged and not self.by_teacher and not job.is_measured:
            message = f"the best epoch can't be found: {context.metric.name} can't be measured on these data"
            raise PassError(message, keys=("early_stop" if self.early_stop else "keep",), hint="name another 'metric'")
        if context.kept is not None:
            for split in (self.split, *(["val"] if job.is_measured else [])):
                context.kept.require(context.data, split)

    # -- the work --------------------------------------------------------------------------------------------------

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program with trained values, and its history."""
        seed, rounds = self._seed(context), self._rounds(context)
        resolved = self.model_copy(update={"seed": seed, "rounds": rounds})
        job = Job.of(resolved, program, context)
        trained = Engine.of(context.train).run(job)
        made = _with_values(program, trained)
        facts = {name: value for name, value in program.facts.items() if name not in self.drops}
        carried = {**program.carried, CARRIED: Carried.of(self.optimizer.name, trained.memory, made).plain()}
        made = made.derive(facts={**facts, **trained.facts}, carried=carried)
        details = {
            "updates": trained.updates,
            "epochs": trained.epochs,
            "seconds_per_update": trained.pace,
            "device": trained.device,
            "seed": seed,
            "rounds": rounds,
            **self._metric(context, trained),
            **({"best": dict(trained.best)} if trained.best else {}),
            **({"stopped": trained.stopped} if trained.stopped else {}),
            **trained.measures,
        }
        return PassResult(made, details=details, history=tuple(trained.rows), warnings=tuple(trained.warnings))

    def _metric(self, context: Context, trained: Trained) -> dict[str, Any]:
        """Which column of the history is the metric, and its name for people, where it was measured."""
        metric = context.metric
        column = column_of(metric.name)
        measured = any(column in row for row in trained.rows)
        return {"metric": {"column": column, "title": metric.title, "share": metric.share}} if measured else {}

    def _seed(self, context: Context) -> int:
        if self.seed is not None:
            return self.seed
        place = str(context.round.index) if context.round else ""
        return int(context.rng(self.name, place).integers(2**31))

    def _rounds(self, context: Context) -> tuple[int, int | None] | None:
        if self.rounds is not None or self.restart or context.round is None:
            return self.rounds
        return context.round.index, context.round.total

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The pass with its seed, and ending where this training ended: nothing is decided anew."""
        said: dict[str, Any] = {key: result.details[key] for key in ("seed", "rounds") if key in result.details}
        if said.get("rounds") is not None:
            said["rounds"] = tuple(said["rounds"])  # details may have been JSON
        stop = {"stop_at": result.details["updates"]} if "best" in result.details or "stopped" in result.details else {}
        return (self.model_copy(update={**said, **stop}),)


def _with_values(program: Program, trained: Trained) -> Program:
    """The program with other values in tensors of its own; the old one keeps its."""
    made = program.derive(state=with_own_tensors(program.state))
    with torch.no_grad():
        for name, tensor in made.tensors.items():
            if name in trained.values:
                tensor.copy_(trained.values[name])
    return made
