"""The exports of a plan: each target's files, and what came of them.

All go one way, `targets/exporting.py`. A target that fails fails alone: the other artifacts stand, and its row tells
why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from prunec.compiler.data import Data
from prunec.compiler.driver.evaluation import MEASURED, evaluate
from prunec.compiler.driver.slow_layers import slow_layers
from prunec.compiler.errors import DataError, ModelError, PlanError, TargetError
from prunec.compiler.ir.devices import on_device
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.plan.exports import PlanExport
from prunec.compiler.plan.pixels import check_labels
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import Change, KeptFindings, OnnxFindings, Report
from prunec.compiler.targets.base import Array
from prunec.compiler.targets.exporting import Calibration, ExportContext, TargetReport, arrays, export
from prunec.compiler.targets.onnx_export import OnnxReport
from prunec.compiler.targets.pixels import Folded, Pixels, classes_of
from prunec.compiler.task.metrics import Metric

LABELS: Final = "labels.txt"
"""The names of classes, one on each line."""


@dataclass(frozen=True)
class Around:
    """What files have besides the model."""

    folded: Folded = field(default_factory=Folded)
    """What they do before and behind it."""
    labels: tuple[str, ...] = ()
    """The names of classes that they come with."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What they say of classes, where they have a place for it."""

    @classmethod
    def of(cls, plan: Plan, kept: KeptFindings | None = None) -> Around:
        """As the plan says, of the model's classes or of those that it keeps."""
        labels = () if plan.postprocess is None else plan.postprocess.labels() or (kept.names if kept else ())
        named = labels or (kept.names if kept else ())
        said = {"classes": json.dumps(kept.kept)} if kept else {}
        return cls(_folded(plan), labels, said | ({"class_names": json.dumps(named)} if named else {}))


def _folded(plan: Plan) -> Folded:
    said = plan.preprocess
    softmax = bool(plan.postprocess and plan.postprocess.softmax)
    if said is None:
        return Folded(softmax=softmax)
    swapped = said.order in ("reversed", "bgr")
    pixels = Pixels(said.scale, said.mean, said.std, swapped, said.layout == "nhwc", said.dtype == "uint8")
    return Folded(pixels, said.input, softmax)


def check_folded(plan: Plan, program: Program, kept: KeptFindings | None) -> None:
    """Raise `ModelError` or `PlanError` where what the plan folds into its files doesn't fit the model."""
    around = Around.of(plan, kept)
    try:
        around.folded.into(on_device(program, torch.device("cpu")))
        check_labels(around.labels, classes_of(program))
    except (ModelError, PlanError) as error:
        error.at = error.at or plan.at(*error.keys, on_key=True)
        raise
    check_open(plan, plan.export)


def check_open(plan: Plan, exports: Sequence[PlanExport]) -> None:
    """Raise `PlanError` where a file with an open size of images is asked for, and pixels with their channels last."""
    for each in exports:
        sizes = [name for name in getattr(each.options, "dynamic", ()) if name != "batch"]
        if sizes and plan.preprocess is not None and plan.preprocess.layout == "nhwc":
            raise PlanError(
                f"{each.name}: with 'layout: nhwc' the {' and '.join(sizes)} can't be left open",
                at=each.at,
                hint="take them out of 'dynamic', or leave out 'layout'",
            )


@dataclass(frozen=True)
class Judge:
    """The plan's data, and what models are judged by on them."""

    data: Data
    metric: Metric
    example: Any

    def calibration(self, program: Program, folded: Folded) -> Calibration:
        """What files in int8 of a program are calibrated and judged with; `folded` is what they do besides."""
        called = _Called(program, folded)
        return Calibration(
            lambda samples, batch: self._samples(called, samples, batch), self._judge(called), self.metric.share
        )

    def _samples(self, called: _Called, wanted: int, batch: int | None) -> Sequence[Sequence[Array]]:
        """The inputs of the first samples, in runs of the batch that a file takes."""
        split = self.data.first("train", *MEASURED)
        assert split, "data have at least one split"
        runs: list[list[Array]] = []
        done = 0
        for found in self.data.read(split):
            piece = found.like(self.example, torch.device("cpu"))[: wanted - done]
            size = batch or piece.count
            for start in range(0, piece.count - size + 1, max(size, 1)):
                runs.append(arrays(called.inputs(piece[start : start + size].inputs)))
            done += piece.count
            if done >= wanted:
                break
        if not runs:
            raise TargetError("the data have no samples to calibrate int8 on")
        return runs

    def _judge(self, called: _Called) -> Callable[[Callable[..., Any]], tuple[str, float]] | None:
        def judge(model: Callable[..., Any]) -> tuple[str, float]:
            found = evaluate(called.by(model), self.data, self.example, self.metric)
            if found.value is None:
                raise DataError(f"no {self.metric.title} can be measured: {found.left_out}")
            return self.metric.title, found.value

        return judge if self.data.first(*MEASURED) else None


@dataclass(frozen=True)
class _Called:
    """How the data call a file: it takes what is folded in before the model, and gives what is folded in behind it."""

    program: Program
    """The model without what is folded in."""
    folded: Folded

    def inputs(self, given: Any) -> tuple[Any, ...]:
        """What the file takes, for a batch of the data."""
        return self.folded.raw(self.program, _in_order(self.program, given))

    def by(self, model: Callable[..., Any]) -> nn.Module:
        """A file in its runtime as a module, which the metric is measured on."""
        return _Executed(lambda given: self.folded.logits(model(*self.inputs(given))))


class _Executed(nn.Module):
    def __init__(self, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(named or inputs)


def _in_order(program: Program, inputs: Any) -> tuple[Any, ...]:
    """A model's inputs in the order of the program's placeholders."""
    if isinstance(inputs, Mapping):
        names = [str(node.target) for node in program.graph.find_nodes(op="placeholder")]
        return tuple(inputs[name] for name in names if name in inputs)
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


@dataclass(frozen=True)
class Exports:
    """The exports of one compile."""

    before: Program | None
    """The original; None where there is none to compare with."""
    after: Program
    folder: Path
    progress: Progress = silent
    quick: bool = False
    by_latency: bool = False
    """That of `slow_layers`."""
    judge: Judge | None = None
    around: Around = field(default_factory=Around)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What stands in files that have a place for it."""

    @cached_property
    def _slim(self) -> Program:
        return self.around.folded.into(self.after)

    @cached_property
    def _dense(self) -> Program | None:
        return None if self.before is None else self.around.folded.into(self.before)

    def write(self, exports: Sequence[PlanExport], report: Report) -> Report:
        """Write the files of each; the report with what came of it."""
        for row in self.rows(exports):
            found = self._onnx(row)
            why = row.error or (row.int8.error if row.int8 else "")
            report = replace(
                report,
                targets=(*report.targets, row),
                onnx=found or report.onnx,
                warnings=(*report.warnings, *filter(None, [self._slow(found)])),
                alarms=(*report.alarms, *filter(None, [why and f"the export to {row.target} failed: {why}"])),
            )
        return report

    def rows(self, exports: Sequence[PlanExport]) -> Iterator[TargetReport]:
        """Write the files of each, and give what came of it."""
        labels = self.around.labels if exports else ()
        check_labels(labels, classes_of(self.after))
        if labels:
            (self.folder / LABELS).write_text("".join(f"{name}\n" for name in labels), encoding="utf-8")
        return map(self._one, exports)

    def _one(self, each: PlanExport) -> TargetReport:
        return export(
            each.target(),
            self._slim,
            self.folder,
            each.options,
            self._context,
            lambda done, total: self.progress(each.name, done, total),
        )

    @cached_property
    def _context(self) -> ExportContext:
        calibration = None if self.judge is None else self.judge.calibration(self.after.deployed, self.around.folded)
        dense = None if self.quick else self._dense
        return ExportContext(dense, not self.quick, calibration, {**self.around.metadata, **self.metadata})

    def _onnx(self, row: TargetReport) -> OnnxFindings | None:
        """What a compile tells of its ONNX file besides; None for other files."""
        if not isinstance(row.details, OnnxReport):
            return None
        first = next((each for each in row.latency if each.dense is not None), None)
        latency = None if first is None or first.dense is None else Change(first.dense, first.slim)
        return OnnxFindings(replace(row.details, bytes=row.bytes), row.dense_bytes, latency)

    def _slow(self, found: OnnxFindings | None) -> str:
        """What keeps the slim model from being as much faster as it is smaller."""
        if found is None or found.latency is None or self._dense is None:
            return ""
        programs = Change(self._dense, self._slim)
        return slow_layers(programs, found.latency, found.export.writer, by_latency=self.by_latency)
