"""The exports of a plan: each target's files, and what came of them.

The ONNX file is measured as a compile always does (`driver/measure.py`); all other targets share
`targets/exporting.py`. A target that fails fails alone: the other artifacts stand, and its row tells why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunec.compiler.data import Data
from prunec.compiler.driver.evaluation import MEASURED, evaluate
from prunec.compiler.driver.measure import write_onnx
from prunec.compiler.errors import DataError, PrunecError, TargetError
from prunec.compiler.ir.inputs import batch_of
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.plan.exports import PlanExport
from prunec.compiler.report.report import KeptFindings, OnnxFindings, Report
from prunec.compiler.targets.base import Array
from prunec.compiler.targets.exporting import Calibration, Export, TargetReport, Timed, arrays, export
from prunec.compiler.targets.onnx_file import Onnx, OnnxOptions
from prunec.compiler.task.metrics import Metric


@dataclass(frozen=True)
class Judge:
    """The plan's data, and what models are judged by on them."""

    data: Data
    metric: Metric
    example: Any

    def calibration(self, program: Program) -> Calibration:
        """What files in int8 of a program are calibrated and judged with."""
        return Calibration(lambda samples, batch: self._samples(program, samples, batch), self._judge(program))

    def _samples(self, program: Program, wanted: int, batch: int | None) -> Sequence[Sequence[Array]]:
        """The inputs of the first samples, in runs of the batch that a file takes."""
        split = self.data.first("train", *MEASURED)
        assert split, "data have at least one split"
        runs: list[list[Array]] = []
        done = 0
        for found in self.data.read(split):
            piece = found.like(self.example, torch.device("cpu"))[: wanted - done]
            size = batch or piece.count
            for start in range(0, piece.count - size + 1, max(size, 1)):
                runs.append(arrays(_in_order(program, piece[start : start + size].inputs)))
            done += piece.count
            if done >= wanted:
                break
        if not runs:
            raise TargetError("the data have no samples to calibrate int8 on")
        return runs

    def _judge(self, program: Program) -> Callable[[Callable[..., Any]], tuple[str, float]] | None:
        def judge(model: Callable[..., Any]) -> tuple[str, float]:
            found = evaluate(_Called(program, model), self.data, self.example, self.metric)
            if found.value is None:
                raise DataError(f"no {self.metric.title} can be measured: {found.left_out}")
            return self.metric.title, found.value

        return judge if self.data.first(*MEASURED) else None


class _Called(nn.Module):
    """A file in its runtime as a module, which the metric is measured on."""

    def __init__(self, program: Program, model: Callable[..., Any]) -> None:
        super().__init__()
        self.program, self.model = program, model

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the file gives."""
        return self.model(*_in_order(self.program, named or inputs))


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
    classes: KeptFindings | None = None
    judge: Judge | None = None

    def write(self, exports: Sequence[PlanExport], report: Report) -> Report:
        """Write the files of each; the report with what came of it."""
        for each in exports:
            row, found = self._one(each)
            why = row.error or (row.int8.error if row.int8 else "")
            slow = found.slow if found is not None else ""
            report = replace(
                report,
                targets=(*report.targets, row),
                onnx=found or report.onnx,
                warnings=(*report.warnings, *filter(None, [slow])),
                alarms=(*report.alarms, *filter(None, [why and f"the export to {row.target} failed: {why}"])),
            )
        return report

    def rows(self, exports: Sequence[PlanExport]) -> Iterator[TargetReport]:
        """Write the files of each, and give what came of it."""
        return (self._other(each) for each in exports)

    def _one(self, each: PlanExport) -> tuple[TargetReport, OnnxFindings | None]:
        """What came of one export, and for an ONNX file what a compile tells of it besides."""
        if isinstance(each.options, OnnxOptions) and self.before is not None:
            return self._onnx(each.options, self.before)
        return self._other(each), None

    def _other(self, each: PlanExport) -> TargetReport:
        return export(
            each.target(),
            self.after,
            self.folder,
            each.options,
            dense=None if self.quick else self.before,
            timed=not self.quick,
            calibration=self._calibration(),
            progress=lambda done, total: self.progress(each.name, done, total),
        )

    def _calibration(self) -> Calibration | None:
        return None if self.judge is None else self.judge.calibration(self.after.deployed)

    def _onnx(self, options: OnnxOptions, before: Program) -> tuple[TargetReport, OnnxFindings | None]:
        target, path = Onnx(), self.folder / "model.onnx"
        try:
            found = write_onnx(
                before,
                self.after,
                path,
                options,
                self.progress,
                quick=self.quick,
                by_latency=self.by_latency,
                classes=self.classes,
            )
        except PrunecError as error:
            path.unlink(missing_ok=True)
            told = f"{error.message}, {error.at.file}:{error.at.line}" if error.at else error.message
            return TargetReport(target.name, target.describe(), error=told, hint=error.hint or ""), None
        batch = None if found.export.dynamic_batch else batch_of(self.after.deployed.inputs)
        int8 = None
        if options.int8 is not None:
            made = Export(target, self.after.deployed, path, options)
            int8 = made.int8(batch, self._calibration(), timed=not self.quick)
        sides = [side for side in (found.latency, found.two_threads) if side is not None]
        row = TargetReport(
            target.name,
            target.describe(),
            (path.name,),
            found.export.bytes,
            found.original,
            batch,
            found.export.max_difference,
            found.export.float64_note,
            latency=tuple(
                Timed(threads, side.after, side.before) for threads, side in zip(count(1), sides, strict=False)
            ),
            int8=int8,
        )
        return row, found
