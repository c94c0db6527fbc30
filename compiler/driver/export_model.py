"""`prunec export`: the files of targets, for a model as it is, or for one that was compiled before.

package.module:name, plan.yaml      the model that it names, without the passes
out                                 the slim model of the folder; its lock names the original, which is timed
                                    beside, and the data, on which files in int8 are calibrated and judged
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from prunec.compiler.driver.classes import adapt
from prunec.compiler.driver.compile import load_original, load_program
from prunec.compiler.driver.evaluation import settled
from prunec.compiler.driver.exports import Around, Exports, Judge, check_open
from prunec.compiler.driver.load import load_data, load_loss, load_metric
from prunec.compiler.emit.output_folder import LOCK, check_writable, write_atomically
from prunec.compiler.errors import PlanError, TargetError, nearest
from prunec.compiler.ir.aliasing import unwritten
from prunec.compiler.ir.devices import on_device
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Progress, silent
from prunec.compiler.plan.exports import EXPORTING, PlanExport, options_of
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import finite
from prunec.compiler.targets.exporting import TargetReport
from prunec.compiler.version import __version__

WRITER: Final = "export"
RESULT: Final = "export.json"
"""What came of the exports, as plain JSON values."""


@dataclass(frozen=True)
class Subject:
    """What is exported."""

    plan: Plan
    """The plan that says what files do besides the model."""
    program: Program
    original: Program | None = None
    judge: Judge | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the lock says of the model, for files that have a place for it."""


def exports_of(plan: Plan, names: str, *, int8: bool = False) -> tuple[PlanExport, ...]:
    """The exports that are asked for: of the plan where it names their targets, too, with its options. With `int8`
    each makes files in int8 as well, if its target can.

    Raises `PlanError` for a name that is no target's, and where there is nothing to export.
    """
    asked = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not asked and not plan.export:
        raise PlanError("nothing says what to export to", hint=f"for example: --to {','.join(EXPORTING)}")
    for name in asked:
        if name not in EXPORTING:
            raise PlanError(f"--to: no target is called '{name}'", hint=nearest(name, EXPORTING))
    known = {export.name: export for export in plan.export}
    made = tuple(known.get(name) or PlanExport(name, options_of(name)()) for name in asked) or plan.export
    return tuple(map(_in_int8, made)) if int8 else made


def _in_int8(export: PlanExport) -> PlanExport:
    if export.options.int8 is not None or not export.target.quantizes():
        return export
    options = type(export.options).model_validate({**export.options.model_dump(), "int8": True})
    return replace(export, options=options)


def subject_of(plan: Plan) -> Subject:
    """The model that a plan names, and what it is compared with and judged on. Raises what loading them raises."""
    saved = None if plan.model is None else plan.model.saved
    if saved is None:
        program, whole, inputs = load_original(plan)
        return Subject(plan, program, judge=_judge(plan, program, whole, inputs))
    program = load_program(plan)
    lock = saved / LOCK
    if not lock.is_file():
        return Subject(plan, program)
    compiled, known = Plan.load(lock), _metadata(lock)
    if compiled.model is None or compiled.region is not None:
        return Subject(_also(plan, compiled), program, metadata=known)
    original, whole, inputs = load_original(compiled)
    return Subject(_also(plan, compiled), program, original, _judge(compiled, original, whole, inputs), known)


def _metadata(lock: Path) -> dict[str, str]:
    """The lock's hash, and the classes that it keeps, as a compile writes them into an ONNX file."""
    text = lock.read_bytes()
    kept = json.loads(text).get("classes") or {}
    names = kept.get("names") or {}
    named = [names.get(str(place), "") for place in kept.get("keep", ())]
    return {
        **({"classes": json.dumps(kept["keep"])} if kept else {}),
        **({"class_names": json.dumps(named)} if any(named) else {}),
        "lock_sha256": hashlib.sha256(text).hexdigest(),
    }


def _also(plan: Plan, compiled: Plan) -> Plan:
    """The plan with what the lock says of pixels and outputs, where it says nothing itself."""
    said = {key: getattr(plan, key) or getattr(compiled, key) for key in ("preprocess", "postprocess")}
    return plan.model_copy(update=said)


def _judge(plan: Plan, program: Program, whole: Any, inputs: Any) -> Judge | None:
    if plan.region is not None or plan.data is None:
        return None
    adapted = adapt(plan, program, load_data(plan))
    if adapted.data is None:
        return None
    metric = load_metric(adapted.plan, load_loss(adapted.plan))
    return Judge(adapted.data, settled(metric, adapted.whole(whole), adapted.data, inputs), inputs)


def export_model(
    plan: Plan, exports: Sequence[PlanExport], directory: Path, progress: Progress = silent
) -> tuple[TargetReport, ...]:
    """Write the files of all targets into a folder, with what came of each in `export.json`; where one fails, the
    others', and where all fail, nothing."""
    check_writable(directory, WRITER)
    progress("trace", 0, 1)
    subject = subject_of(plan)
    check_open(subject.plan, exports)
    progress("trace", 1, 1)
    failed: list[tuple[TargetReport, ...]] = []

    def fill(folder: Path) -> tuple[TargetReport, ...]:
        here = torch.device("cpu")
        program, original = on_device(subject.program, here), subject.original and on_device(subject.original, here)
        around = Around.of(subject.plan)
        made = Exports(
            original, program, folder, progress, judge=subject.judge, around=around, metadata=subject.metadata
        )
        with unwritten(program):
            reports = tuple(made.rows(exports))
        if all(report.error for report in reports):
            failed.append(reports)
            raise TargetError("no export succeeded")
        said = {"prunec": __version__, "model": program.name, "targets": [report.to_dict() for report in reports]}
        (folder / RESULT).write_text(json.dumps(finite(said), indent=1) + "\n", encoding="utf-8")
        return reports

    try:
        return write_atomically(directory, fill, WRITER)
    except TargetError:
        if not failed:
            raise
        return failed[0]
