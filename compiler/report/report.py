"""What a compile found, as one frozen value: the console and the page read its fields, and `to_dict` is report.json.

A section that not every compile has, such as the metric, is None until it is measured; `dataclasses.replace` puts it
in. A new section is a field of `Report`, with a line in `Report.to_dict`.

What the fields hold is imported for its types alone: the command line shows its help without importing torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from prunec.compiler.cost.model import Cost
    from prunec.compiler.ir.program import Note
    from prunec.compiler.pass_base import Attachment
    from prunec.compiler.targets.exporting import TargetReport
    from prunec.compiler.targets.onnx_export import OnnxReport
    from prunec.compiler.verify.verify import Verification

T_co = TypeVar("T_co", covariant=True)
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Change(Generic[T_co]):
    """Something of the original model, and the same of the slim one."""

    before: T_co
    after: T_co

    def each(self, read: Callable[[T_co], Other]) -> Change[Other]:
        """What `read` gives of both sides: `cost.each(lambda side: side.macs)` is the change of the MACs."""
        return Change(read(self.before), read(self.after))

    def to_dict(self) -> dict[str, Any]:
        """Both sides as they are; where these are no plain JSON values, `each` makes them so first."""
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True)
class GroupWidths:
    """A group's units, and its channels as its first writer counts them."""

    name: str
    units: int
    channels: Change[int]
    pinned: Mapping[str, int]
    """Reason -> how many units may not be removed for it."""

    @property
    def is_pinned(self) -> bool:
        """Whether none of its units may be removed."""
        return sum(self.pinned.values()) == self.units

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "units": self.units,
            "channels": self.channels.to_dict(),
            "pinned": dict(self.pinned),
        }


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """What was left after a round."""

    number: int
    """Counted from 1; 0 is what there was before the first."""
    cost: Cost
    metric: float | None = None
    """None where it wasn't measured."""
    kept: bool = True
    """Whether the result goes on from there."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"round": self.number, **self.cost.to_dict(), "metric": self.metric, "kept": self.kept}


@dataclass(frozen=True, slots=True)
class Rounds:
    """How a pass that runs others in rounds went on."""

    ends: str
    """Why there was no further round."""
    rows: tuple[RoundFigures, ...]
    metric: str = ""
    """The name of the metric that was measured after each; empty where none was."""
    share: bool = False
    """Whether the metric reads in per cent."""
    floor: float | None = None
    """What the metric had to hold."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        measured = {"metric": self.metric, "share": self.share} if self.metric else {}
        floor = {} if self.floor is None else {"floor": self.floor}
        return {"ends": self.ends, **measured, **floor, "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True, slots=True)
class Record:
    """What one pass did. Its times are in seconds."""

    name: str
    seconds: float
    verify_seconds: float
    before: Cost
    after: Cost
    notes: tuple[Note, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """The pass's own figures: plain JSON values."""
    verification: Verification | None = None
    """None where the pass rewrote nothing."""
    warnings: tuple[str, ...] = ()
    """They are among the report's warnings."""
    history: tuple[Mapping[str, float | int], ...] = ()
    """The lines of a training's table: one an epoch."""
    round: int | None = None
    """Counted from 1; there for what a pass did inside another one, whose record stands before those of its rounds."""
    rounds: Rounds | None = None
    """There for a pass that ran others in rounds; its seconds include theirs."""
    attachments: tuple[Attachment, ...] = ()
    """Files for the output folder, by the names that the pass gave them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "pass": self.name,
            **({"round": self.round} if self.round is not None else {}),
            "seconds": self.seconds,
            "verify_seconds": self.verify_seconds,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "notes": [{"subject": note.subject, "reason": note.reason} for note in self.notes],
            "details": dict(self.details),
            "verification": self.verification.as_dict() if self.verification else None,
            **({"rounds": self.rounds.to_dict()} if self.rounds else {}),
            **({"history": [dict(row) for row in self.history]} if self.history else {}),
            **({"attachments": [each.file for each in self.attachments]} if self.attachments else {}),
        }


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one run in the runtime that the budget is of: what layers' tables foretell, and what was measured."""

    predicted: Change[float]
    measured: Change[float] | None = None
    """None until the artifacts are written."""
    runtime: str = "onnxruntime"
    """The target whose runtime it is."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        measured = {"measured": self.measured.to_dict()} if self.measured else {}
        return {"runtime": self.runtime, "predicted": self.predicted.to_dict(), **measured}


@dataclass(frozen=True, slots=True)
class Measured:
    """The metric of both models."""

    name: str
    """For people: `accuracy`, `RMSE of depth`."""
    higher_is_better: bool
    share: bool
    """Whether it reads in per cent, and changes in points."""
    value: Change[float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a figure that is no number is None."""
        sides = self.value.each(lambda side: side if math.isfinite(side) else None)
        return {"name": self.name, "higher_is_better": self.higher_is_better, **sides.to_dict()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the metric was measured on, or why there is none."""

    split: str
    samples: int
    """How many were looked at."""
    left_out: str = ""
    """Why there is no metric; empty where there is one."""
    hint: str = ""
    """What a plan may say to have one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"split": self.split, "samples": self.samples, **({"left_out": self.left_out} if self.left_out else {})}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the result comes from, and how it is used. None where Python handed over what the plan would name."""

    plan: str | None
    """The plan's file."""
    model: str | None
    """The factory, or the folder of a saved model."""
    weights: str | None
    """The name of the file of weights; None where the factory makes them."""
    weights_sha256: str | None
    """The hash of that file."""
    data: str | None
    date: str
    """In ISO 8601, of Greenwich."""
    seed: int
    versions: Mapping[str, str]
    """Package -> version, of everything that computes."""
    use: tuple[str, ...]
    """Lines of Python that load the slim model and call it; a region is put in its place by its own lines."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "versions": dict(self.versions), "use": list(self.use)}


@dataclass(frozen=True, slots=True)
class RegionFindings:
    """What was compiled in its place in a model that isn't traced whole."""

    names: tuple[str, ...]
    """The regions, as the model calls these modules."""
    difference: float
    """The largest relative difference of any region's output, in a run of the whole slim model."""
    splice: tuple[str, ...]
    """For each region the line of Python that puts the slim part in its place."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"names": list(self.names), "difference": self.difference, "splice": list(self.splice)}


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How many samples of a class are put right."""

    samples: int
    right: Change[int]

    @property
    def accuracy(self) -> Change[float]:
        """The share of them."""
        return self.right.each(lambda right: right / self.samples if self.samples else math.nan)


@dataclass(frozen=True, slots=True)
class KeptFindings:
    """The classes that a class-adaptive compile has kept."""

    kept: tuple[int, ...]
    """New position in the output -> the original's."""
    of: int
    """How many the original has."""
    names: tuple[str, ...] = ()
    """Of the kept ones; empty where nobody knows them."""
    renormalised: bool = False
    """Whether the outputs are probabilities, which are taken over the kept classes."""
    scores: tuple[ClassScore, ...] = ()
    """Of each kept class; empty where nothing was measured."""

    @property
    def balanced(self) -> Change[float] | None:
        """The mean of the classes' accuracies, however many samples each has."""
        if not self.scores:
            return None
        found = [score.accuracy for score in self.scores]
        return Change(
            *(math.fsum(side) / len(found) for side in zip(*((x.before, x.after) for x in found), strict=True))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        named = {"names": list(self.names)} if self.names else {}
        said = {"kept": list(self.kept), "of": self.of, **named, "renormalised": self.renormalised}
        if self.balanced is not None:
            said["balanced_accuracy"] = self.balanced.to_dict()
            said["samples"] = [score.samples for score in self.scores]
            said["accuracy"] = [score.accuracy.to_dict() for score in self.scores]
        return said


@dataclass(frozen=True, slots=True)
class OnnxFindings:
    """The ONNX file, beside the original as ONNX by the same writer."""

    export: OnnxReport
    original: int | None = None
    """The bytes of the original's; None where it wasn't converted."""
    latency: Change[float] | None = None
    """Seconds of one run in onnxruntime; None where it wasn't measured."""

    @property
    def bytes(self) -> Change[int] | None:
        """The sizes of both files; None where the original wasn't converted."""
        return None if self.original is None else Change(self.original, self.export.bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: how the slim model was exported, and the sizes and latencies of both; of a quick compile
        the slim model's size alone."""
        return {
            **asdict(self.export),
            "bytes": self.bytes.to_dict() if self.bytes else {"after": self.export.bytes},
            "differences": {str(batch): difference for batch, difference in self.export.differences.items()},
            **({"latency": self.latency.to_dict()} if self.latency else {}),
        }


class Section(Protocol):
    """A part of the report that not every compile has."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a compile did, and what came of it. Costs and MACs are those of one sample."""

    prunec: str
    """The version that compiled."""
    model: str
    inputs: tuple[tuple[int, ...], ...]
    """The shapes of the example inputs."""
    cost: Change[Cost]
    groups: tuple[GroupWidths, ...]
    macs_by_node: Change[Mapping[str, int]]
    """The nodes that multiply, in the graph's order."""
    trace_seconds: float
    passes: tuple[Record, ...]
    warnings: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    """Warnings that nobody may overlook: that the result is probably not what was wanted."""
    notes: tuple[str, ...] = ()
    """What was unwrapped on the way in: of the model, and of the file with its weights."""

    origin: Origin | None = None
    """There as soon as a compile is done."""
    latency: Latency | None = None
    """There where a pass had a budget of latency."""
    region: RegionFindings | None = None
    classes: KeptFindings | None = None
    """There where the plan keeps some classes alone."""
    metric: Measured | None = None
    """What the models are judged by, where the plan has data on which it can be measured."""
    evaluation: Evaluation | None = None
    """There where the plan has data."""
    weights: Change[int] | None = None
    """Bytes of the safetensors files; there as soon as the artifacts are written."""
    onnx: OnnxFindings | None = None
    targets: tuple[TargetReport, ...] = ()
    """What was exported, in the plan's order; there as soon as the artifacts are written."""
    unmeasured: tuple[str, ...] = ()
    """What a quick compile left out; there as soon as the artifacts are written."""

    @property
    def failed(self) -> tuple[TargetReport, ...]:
        """The exports of which something is missing."""
        return tuple(target for target in self.targets if target.failed)

    @property
    def accuracy(self) -> Change[float] | None:
        """The share of right answers, where that is the metric."""
        return self.metric.value if self.metric and self.metric.name == "accuracy" else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what wasn't measured has no key, and a figure that is no finite number is None."""
        sections: Mapping[str, Section | None] = {
            "origin": self.origin,
            "latency": self.latency,
            "region": self.region,
            "classes": self.classes,
            "metric": self.metric,
            "accuracy": self.accuracy,
            "evaluation": self.evaluation,
            "weights": self.weights,
            "onnx": self.onnx,
        }
        said = {
            "prunec": self.prunec,
            "model": self.model,
            "inputs": [list(shape) for shape in self.inputs],
            "cost": self.cost.each(lambda cost: cost.to_dict()).to_dict(),
            "groups": [group.to_dict() for group in self.groups],
            "macs_by_node": self.macs_by_node.each(dict).to_dict(),
            "trace_seconds": self.trace_seconds,
            "passes": [record.to_dict() for record in self.passes],
            "warnings": [*self.alarms, *self.warnings],
            "alarms": list(self.alarms),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"unmeasured": list(self.unmeasured)} if self.unmeasured else {}),
            **{name: section.to_dict() for name, section in sections.items() if section is not None},
            **({"targets": [target.to_dict() for target in self.targets]} if self.targets else {}),
        }
        return {key: finite(value) for key, value in said.items()}


def finite(value: Any) -> Any:
    """A JSON value without NaN and infinite numbers, which JSON doesn't have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
