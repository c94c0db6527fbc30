"""`score`: a number for every unit of every group, kept as the fact `scores`.

- score: {criterion: l1, aggregate: mean, normalize: l2}
- score: {criterion: taylor, batches: 20}
- score: {criterion: {class_maps: {classes: [0, 3, 7]}}, samples: 512, memory: 2GB}

criterion   evidence: numbers for the positions of axes, or for units where their values are read
axes        where weights are looked at: those that write a unit, those that read it (that write it, where units of the
            group are read by no weight), or all that go with it
aggregate   joins all numbers that belong to one unit
normalize   makes groups comparable

Of axes, aggregation and normalisation every criterion knows which suit it, and that is the default, `auto`. Of norms,
those of the weights that *read* a unit count: behind a batch norm a filter's own norm means nothing. They are divided
by their group's mean: a sum over more weights, or over larger ones, makes no layer more important. `normalize: l2`
would let the layers with the most units, whose shares are small, go first. Losses (`fisher_gate`, `gate`, `obd`,
`taylor_weight`, `obd_fisher`, `oracle`) are comparable as they are and add up, so that they can be held against costs:

- score: fisher_gate
- select: {budget: {macs: 50%}, method: knapsack}

By `ranking`, which knows no cost, losses let go what is cheap, and save little. `taylor` is for ranking, and gives a
method that adds up the losses that it comes of. What each keeps of small networks is in `benchmarks/README.md`; where
there are no data, `l1` is the best of the norms.

A criterion that looks at data takes them from the plan's, in evaluation mode and in the data's own order: `batches` or
`samples` say how much, `memory` bounds what one run may hold. In how many pieces they come makes no difference.

l1, l2                          norms of the weights
greedy_l1                       the same, without the columns that earlier layers lose
bn_scale                        batch norm's |gamma|
fpgm                            distance from the layer's other filters
tile                            norms of blocks of weights
activation_mean, activation_std, apoz, mutual_information      what is read: its mean, spread, non-zeros, label
taylor, taylor_signed, gate     loss times change, first order, from activations
taylor_weight                   the same from weights
obd, obd_fisher, obs            second order, from weights; `fisher_gate` from activations
reconstruction                  the error that remains once the readers are refit: for `repair: least_squares`
class_weights, class_maps       what drives the classes that a plan names
class_evidence                  the same, of what the pass of this name has found
oracle                          what the loss really does when the unit goes
torch_pruning                   an importance class of torch-pruning
random                          the control
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import FloatArray, IntArray, Note, Program
from prunec.compiler.pass_base import Attachment, Context, Pass, PassResult
from prunec.compiler.plan.options import wrong
from prunec.compiler.task.losses import LOSSES
from prunec.passes.calibration.calibration import Bytes, Calibration
from prunec.passes.criteria.aggregates import AGGREGATES, Evidence, Scores, normalised
from prunec.passes.criteria.base import Criterion, Found, Setting
from prunec.passes.criteria.spelling import Named

Count = Annotated[int, Field(ge=1)]


class Score(Pass):
    """Score every unit of every group by a criterion."""

    name: ClassVar[str] = "score"
    gives: ClassVar[frozenset[str]] = frozenset({"scores"})
    shorthand: ClassVar[str | None] = "criterion"

    criterion: Annotated[Criterion, Named()] = Field(
        default="l1",
        validate_default=True,
        description="what makes a unit important: a name, or a name with its options",
        examples=["taylor", {"tile": {"columns": 9}}],
    )
    aggregate: Literal["auto", "mean", "sum", "max", "product", "first"] = Field(
        default="auto",
        description="joins the numbers of a unit; `first` takes those of the pacesetter alone; "
        "`auto` sums losses, and takes the mean of others",
    )
    normalize: Literal["auto", "none", "mean", "max", "l2", "sum", "rank", "gaussian"] = Field(
        default="auto", description="makes the scores of groups comparable; `auto` leaves it to the criterion"
    )
    axes: Literal["auto", "writers", "readers", "all"] = Field(
        default="auto",
        description="the axes that are looked at, of weights; `auto` leaves it to the criterion",
    )
    batches: Count | None = Field(default=None, description="how many batches of the data are looked at")
    samples: Count | None = Field(default=None, description="how many samples; 1024 where neither is given")
    split: Literal["train", "val", "test"] = Field(default="train", description="the split they are taken from")
    loss: Literal["cross_entropy", "nll", "mse", "binary_cross_entropy"] | None = Field(
        default=None, description="the loss whose change counts; the plan's own where none is named"
    )
    memory: Bytes | None = Field(default=None, description="what the values of one run may take", examples=["2GB"])

    @model_validator(mode="after")
    def _data_is_looked_at(self) -> Score:
        """Refuse options about data for a criterion that doesn't look at any."""
        given = [k for k in ("batches", "samples", "split", "loss", "memory") if k in self.model_fields_set]
        if given and not self.criterion.data:
            raise wrong(f"must not have '{given[0]}': the criterion {self.criterion.name} looks at no data")
        return self

    def required(self) -> frozenset[str]:
        """The facts that the criterion needs."""
        return self.criterion.required()

    def check(self, program: Program) -> None:
        """Raise `PassError` where `memory` doesn't hold one sample, the criterion names what there isn't, or, where it
        looks at weights alone, finds nothing in this model to go by."""
        self._calibration(Context()).check(program)
        self.criterion.check(program)
        if not (self.criterion.data or self.required()):  # the facts that others need aren't there yet
            setting = self.setting(program, Context())
            if setting.groups and next(iter(self.criterion.weigh(setting)), None) is None:
                message = f"the criterion {self.criterion.name} says nothing about any group of this model"
                raise PassError(message, keys=("criterion",), hint="l1 scores every group that has weights")

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` where the criterion needs what there isn't, `DataError` where the data don't fit."""
        self.criterion.ready(self.setting(program, context))

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the fact `scores`: group -> [units]. A group that the criterion says nothing about gets none.

        Raises `PassError` where the criterion needs what the plan doesn't have, `DataError` where data don't fit.
        """
        setting = self.setting(program, context)
        scores, notes = self.scored(setting, self.criterion.weigh(setting))
        details = {"remaining_error": {name: _rounded(curve) for name, curve in scores.remaining.items()}}
        return PassResult(
            program.with_facts(scores=scores),
            notes,
            details if scores.remaining else {},
            attachments=_pictures(scores.remaining, context),
        )

    def scored(self, setting: Setting, weighed: Iterable[Found]) -> tuple[Scores, tuple[Note, ...]]:
        """Scores of evidence, joined and normalised; and notes on groups that it says nothing about."""
        how = self.criterion.normalize if self.normalize == "auto" else self.normalize
        evidence: dict[str, list[Evidence]] = {}
        for name, found in weighed:
            evidence.setdefault(name, []).append(found)
        scores, notes = Scores(), list[Note]()
        for group in setting.groups:
            joined = setting.join(group.size, evidence[group.name]) if group.name in evidence else None
            if joined is None or bool(np.isnan(joined[group.free]).any()):
                notes.append(Note(group.name, f"criterion {self.criterion.name} says nothing about it"))
            else:
                scores[group.name] = normalised(joined, how)
        told = ((n, part.remaining) for n in scores for part in evidence[n])
        scores.remaining = {name: curve for name, curve in told if curve is not None}
        notes += setting.memo.get("notes", ())
        scores.losses = self._losses(setting, {name: evidence[name] for name in scores})
        scores.doubt = "" if scores.losses else self._doubt(setting.aggregate, how, evidence)
        return scores, tuple(notes)

    def _losses(self, setting: Setting, evidence: Mapping[str, Sequence[Evidence]]) -> dict[str, FloatArray] | None:
        """The losses that the scores come of; None where there are none, or a plan wants them normalised."""
        sizes, found = {group.name: group.size for group in setting.groups}, dict[str, FloatArray]()
        for name, parts in evidence.items():
            told = [replace(part, figures=part.losses) for part in parts if part.losses is not None]
            if self.normalize not in ("auto", "none") or len(told) < len(parts):
                return None
            found[name] = normalised(AGGREGATES["sum"](sizes[name], told), "none")
        return found

    def _doubt(self, aggregate: str, how: str, evidence: Mapping[str, Sequence[Evidence]]) -> str:
        """Why the scores don't add up to a loss; empty where they do."""
        if not self.criterion.losses:
            return f"{self.criterion.name} is no loss"
        if how != "none":
            return f"'normalize: {how}' takes their unit from them"
        joined = any(units.size > np.unique(units).size for units in map(_units, evidence.values()))
        return f"'aggregate: {aggregate}' adds up no unit's losses" if joined and aggregate != "sum" else ""

    def setting(self, program: Program, context: Context) -> Setting:
        """What the criterion is given."""
        groups = tuple(group for group in analyse(program).groups.values() if group.free.any())
        axes = self.criterion.axes if self.axes == "auto" else self.axes
        aggregate = self.criterion.aggregate if self.aggregate == "auto" else self.aggregate
        return Setting(program, groups, context, self._calibration(context), axes, aggregate)

    def _calibration(self, context: Context) -> Calibration:
        loss = context.loss if self.loss is None else LOSSES[self.loss]
        return Calibration(self.batches, self.samples, self.split, loss, self.memory)

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """A lock needs no scores: the selection is spelled out."""
        return ()


def _rounded(curve: FloatArray) -> list[float]:
    return [float(f"{value:.4g}") for value in curve]


def _pictures(curves: Mapping[str, FloatArray], context: Context) -> tuple[Attachment, ...]:
    """A picture of the remaining error against the width, of the first round."""
    if not curves or (context.round is not None and context.round.index):
        return ()
    from prunec.passes.repairing.pictures import draw_remaining  # noqa: PLC0415  (slow to import, and few plans need it)

    caption = "What the readers of each group can't make up for by their other inputs, for every width of the group."
    return (Attachment("remaining_error.png", draw_remaining(curves), "Remaining error against width", caption),)


def _units(evidence: Sequence[Evidence]) -> IntArray:
    return np.concatenate([found.units for found in evidence])
