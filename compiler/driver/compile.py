"""From a plan and a model to a result: trace, run the passes, measure, and write the artifacts."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from prunec.compiler.cost.model import cost, cost_model
from prunec.compiler.cost.resource import RUNTIME, latency_in
from prunec.compiler.cost.resources import resource
from prunec.compiler.data import Data
from prunec.compiler.driver.classes import adapt, refuse_region
from prunec.compiler.driver.evaluation import Compared, compare, evaluate_first, settled
from prunec.compiler.driver.finite import check_finite
from prunec.compiler.driver.journal import Journal
from prunec.compiler.driver.load import example_inputs as inputs_of
from prunec.compiler.driver.load import load_data, load_loss, load_metric, load_model
from prunec.compiler.driver.lock import check_data, check_model, check_removed, check_result, make_lock, moved, removed
from prunec.compiler.driver.origin import origin_of
from prunec.compiler.driver.pass_manager import (
    check_needs,
    check_options,
    check_ready,
    run_passes,
    seconds_since,
)
from prunec.compiler.driver.placing import placed
from prunec.compiler.driver.regions import Region, Regions, find_regions
from prunec.compiler.driver.runtimes import runtime_among
from prunec.compiler.driver.steps import Outcome, steps_of, unfolded, with_defaults
from prunec.compiler.driver.trained_lock import TrainedLock
from prunec.compiler.driver.usable import check_module, check_usable
from prunec.compiler.emit.output_folder import LOCK, check_writable, write_atomically
from prunec.compiler.emit.python import Splice, emit_source, save_weights, weights_size
from prunec.compiler.errors import OutputError, PlanError, PrunecError, nearest
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.aliasing import unwritten
from prunec.compiler.ir.devices import device_of, on_device
from prunec.compiler.ir.inputs import Inputs, arguments, tensors_in
from prunec.compiler.ir.modules import modes_of, set_modes, with_own_tensors
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.wrappers import Tell, untold, unwrapped
from prunec.compiler.pass_base import Context, Progress, silent
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.attachments import attachments
from prunec.compiler.report.html import report_html
from prunec.compiler.report.report import Change, GroupWidths, Latency, RegionFindings, Report
from prunec.compiler.report.training import trainings
from prunec.compiler.task.metrics import Metric
from prunec.compiler.tracing.both_modes import one_result, trace_modes, train_warnings
from prunec.compiler.tracing.real_run import check_runs
from prunec.compiler.tracing.user_state import undisturbed, untouched
from prunec.compiler.train_spec import TrainSpec
from prunec.compiler.user_code import running
from prunec.compiler.version import __version__


@dataclass(frozen=True)
class Result:
    """What a compile gives; `save` writes it to a folder."""

    plan: Plan
    before: Program
    program: Program
    lock: dict[str, Any]
    findings: Report
    progress: Progress = field(default=silent, repr=False)
    regions: Regions | None = field(default=None, repr=False)
    modes: Mapping[str, bool] = field(default_factory=dict, repr=False)
    """The parts of the model that was handed over -> whether they were in train mode."""
    quick: bool = False
    """Whether `save` measures no latency and doesn't convert the original to ONNX."""
    judged: tuple[Data, Metric, Any] | None = field(default=None, repr=False)
    """The data with the metric and the example inputs; None where there are none."""
    journal: Journal = field(default_factory=Journal, repr=False)
    """What was kept on the way, which goes as soon as the artifacts are written."""

    @cached_property
    def module(self) -> nn.Module:
        """The slim model, with the original's parameter names: an `fx.GraphModule`; where the plan names regions, a
        copy of the original with the slim parts in it. Its parts are in the modes of the model that was handed over; in
        eval mode where the plan's factory made it."""
        model = _slim_model(self.program.derive(state=with_own_tensors(self.program.state)), self.regions)
        if any(self.modes.values()):
            set_modes(model, self.modes)
        return model

    @cached_property
    def report(self) -> dict[str, Any]:
        """The findings as plain JSON values: what report.json holds, without what is measured on the artifacts."""
        return self.findings.to_dict()

    def save(self, directory: str | Path) -> dict[str, Any]:
        """Write the artifacts, all or none, and give the report with what was measured on them, as plain JSON values.

        Raises `OutputError` where the folder can't be written, and what the exports raise.
        """
        return self.write(directory).to_dict()

    def write(self, directory: str | Path) -> Report:
        """Do what `save` does, and give the report as the typed value."""
        if not isinstance(directory, str | os.PathLike):
            raise OutputError(f"save takes the path of a folder, not {type(directory).__name__}")
        target = Path(directory)
        _check_no_source(self.plan, target)
        if TrainSpec.rank(self.plan.train):
            return self.findings  # of processes that have trained together, the first one writes
        here = torch.device("cpu")
        written = replace(self, before=on_device(self.before, here), program=on_device(self.program, here))
        report = write_atomically(target, partial(written._write, target=target))
        self.journal.finish()
        return report

    def _write(self, folder: Path, target: Path) -> Report:
        self.progress("write", 0, 1)
        passes = [moved(each, target.resolve()) for each in self.lock["passes"]]
        lock = {**self.lock, "passes": passes, **_moved(self.plan, target)}
        (folder / LOCK).write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")
        with unwritten(self.before), unwritten(self.program):
            report = self._write_models(folder)
        (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(report_html(report), encoding="utf-8")
        for run in trainings(report):
            (folder / run.file).write_text(run.csv(), encoding="utf-8")
        for each in attachments(report):
            (folder / each.file).write_bytes(each.content)
        self.progress("write", 1, 1)
        return report

    def _write_models(self, folder: Path) -> Report:
        """Write the slim model in each form that is asked for; the findings with what was measured on it."""
        written = [self._write_source(folder, *entry) for entry in self._sources()]
        sizes = Change(weights_size(self.before), sum(path.stat().st_size for path in written))
        report = replace(self.findings, weights=sizes)
        if not self.plan.export and (report.latency is None or self.quick):
            return replace(report, unmeasured=() if report.latency is None else (_LATENCY,))
        from prunec.compiler.driver.exports import Around, Exports, Judge  # noqa: PLC0415  (imports onnxruntime)
        from prunec.compiler.driver.measure import latency_of, measure_latency  # noqa: PLC0415

        exports = Exports(
            self.before,
            self.program,
            folder,
            self.progress,
            self.quick,
            by_latency=report.latency is not None,
            judge=None if self.judged is None or self.regions is not None else Judge(*self.judged),
            around=Around.of(self.plan, self.findings.classes),
            metadata={"lock_sha256": hashlib.sha256((folder / LOCK).read_bytes()).hexdigest()},
        )
        report = exports.write(self.plan.export, report)
        if self.quick:
            return replace(report, unmeasured=(_LATENCY, "the original's ONNX file"))
        if report.latency is None:
            return report
        if report.latency.runtime != RUNTIME:
            measured = latency_of(report.latency.runtime, report.targets, self.before, self.program)
            return replace(report, latency=replace(report.latency, measured=measured))
        if report.onnx is not None:
            return replace(report, latency=replace(report.latency, measured=report.onnx.latency))
        measured, slow = measure_latency(self.before, self.program)
        warnings = (*report.warnings, *filter(None, [slow]))
        return replace(report, latency=replace(report.latency, measured=measured), warnings=warnings)

    def _sources(self) -> Iterator[tuple[str, Program, Region | None]]:
        """The files of source to write: a name, the program, and the region that it is."""
        if self.regions is None:
            yield "model", self.program, None
            return
        for region in self.regions.parts:
            yield source_name(self.regions, region), self.regions.part(self.program, region), region

    def _write_source(self, folder: Path, name: str, program: Program, region: Region | None) -> Path:
        """Write a program's source, and its weights beside it, whose path is given back."""
        weights = folder / f"{name}.safetensors"
        spliced = None if region is None else Splice(region.name, dict(region.taken.frozen), tuple(region.fixed))
        kept = self.findings.classes
        source = emit_source(
            program, weights=weights.name, splice=spliced, classes=None if kept is None else (kept.kept, kept.names)
        )
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
        save_weights(program, weights)
        return weights


_LATENCY: Final = "the latency"


def _slim_model(program: Program, regions: Regions | None) -> nn.Module:
    """The slim module; where there are regions, a new copy of their model with the slim parts in it."""
    return program.module if regions is None else regions.spliced(program)


def source_name(regions: Regions, region: Region) -> str:
    """The name of a region's file: `model`, or `model_rpn_head` where there are several."""
    return f"model_{region.name.replace('.', '_')}" if len(regions.parts) > 1 else "model"


def _moved(plan: Plan, folder: Path) -> dict[str, Any]:
    """The plan's entries that hold paths, as they are written in that folder."""
    there = plan.to_dict(relative_to=folder)
    return {key: there[key] for key in ("model", "data", "loss", "metric", "train", "postprocess") if key in there}


def compile(
    model: nn.Module | None,
    plan: Plan | Mapping[str, Any] | str | Path,
    example_inputs: Inputs | None = None,
    data: Any = None,
    *,
    progress: Progress = silent,
    quick: bool = False,
    checkpoints: str | Path | None = None,
    trained: bool = False,
) -> Result:
    """Compile a model by a plan.

    `model`, `example_inputs` and `data` take the place of the plan's; where they are None the plan names them. `data`
    are an object with `train()`, `val()` and `test()`, or some of them; or batches, such as a DataLoader. With `quick`,
    `Result.save` measures no latency and doesn't convert the original to ONNX, which takes longer than the passes.
    A plan that trains leaves checkpoints in the folder `checkpoints`, where one is named: the same call goes on from
    them after a kill, and `Result.save` removes the folder. With `trained`, a lock takes the weights that lie beside
    it in place of training again.

    Raises a `PrunecError` that says what is wrong and where; nothing is written before `Result.save`.
    """
    with running("the compile failed", PrunecError, mixed=True), _gradients(model):
        folder = None if checkpoints is None else Path(os.path.realpath(checkpoints))
        return replace(_compile(model, Plan.of(plan), example_inputs, data, progress, folder, trained), quick=quick)


@contextmanager
def _gradients(model: nn.Module | None) -> Iterator[None]:
    """A context in which scores and training have gradients, whatever the caller has turned off; but for a model that
    was made in inference mode, which runs there alone."""
    stays = isinstance(model, nn.Module) and any(tensor.is_inference() for tensor in model.parameters())
    with nullcontext() if stays else torch.inference_mode(False), torch.enable_grad():
        yield


def _compile(
    model: nn.Module | None,
    plan: Plan,
    example_inputs: Inputs | None,
    data: Any,
    progress: Progress,
    checkpoints: Path | None,
    trained: bool,
) -> Result:
    start = time.perf_counter()
    finished = TrainedLock.of(plan) if trained else None
    steps = with_defaults(plan, steps_of(plan))
    check_needs(steps)
    progress("trace", 0, 1)
    notes: list[str] = []
    given = model is not None
    model, inputs = _subject(plan, model, example_inputs, notes.append)
    modes = modes_of(model) if given else {}
    before, regions, warnings = _traced(plan, model, inputs)
    progress("trace", 1, 1)
    found = load_data(plan) if data is None else Data.of(data, seed=plan.seed)
    traced = seconds_since(start)
    _check_subject(plan, model, inputs, before, regions)
    source = before
    adapted = adapt(plan, source, found)
    found = adapted.data
    loss = load_loss(adapted.plan)
    metric = load_metric(adapted.plan, loss)
    before = placed(adapted.program, plan, found is not None, notes.append)
    old = before.module if regions is None else regions.model
    if metric.instead is not None:
        with unwritten(before) if regions is None else untouched(old):
            metric = settled(metric, old, found, inputs)
    context = Context(plan.seed, found, progress, before, plan.runtime, loss, metric, train=plan.train)
    context = adapted.told(context)
    if regions is not None:
        context = replace(context, whole=regions.spliced, inputs=inputs)
    check_options(before, steps)
    check_ready(before, steps, context)
    if plan.export and (plan.preprocess or plan.postprocess):
        from prunec.compiler.driver.exports import check_folded  # noqa: PLC0415  (imports onnxruntime)

        check_folded(plan, before, adapted.findings)
    first = TrainSpec.rank(plan.train) == 0
    journal = Journal.of(plan, before, None if trained else checkpoints, writes=first)
    notes += [f"went on from {journal.folder}: {journal.where}"] if journal.where else []
    context = replace(context, journal=finished or journal, structural=trained)
    original = None
    if found is not None:
        with unwritten(before) if regions is None else untouched(old):
            classes = 0 if adapted.kept is None else len(adapted.kept.kept)
            original = evaluate_first(old, found, inputs, metric, progress, classes)
    try:
        outcome = run_passes(before, steps, context)
    finally:
        journal.release()
    if finished is not None:
        outcome = replace(outcome, program=finished.finished(outcome.program))
    whole = before if adapted.kept is None else source
    outcome = replace(outcome, records=(*adapted.records, *outcome.records))
    report = replace(make_report(plan, whole, outcome, traced, warnings), notes=tuple(notes), classes=adapted.findings)
    if (runtime := runtime_among(outcome.resources)) is not None:
        from prunec.compiler.cost.latency.model import predicted_latency  # noqa: PLC0415  (imports onnxruntime)

        predicted = Change(*predicted_latency(resource(latency_in(runtime), before, context), outcome.program))
        report = replace(report, latency=Latency(predicted, runtime=runtime))
    if regions is not None:
        with undisturbed(regions.model), unwritten(outcome.program):
            report = replace(report, region=_region_findings(regions, outcome.program, alike=not one_result(before)))
    compared = None
    if found is not None and original is not None:
        with unwritten(outcome.program):
            compared = compare(original, _slim_model(outcome.program, regions), found, inputs, progress)
        report = _with_metric(report, plan, compared)
        if report.classes is not None:
            report = replace(report, classes=replace(report.classes, scores=compared.scores))
    elif plan.metric is not None:
        report = replace(report, warnings=(*report.warnings, _UNMEASURED.format(plan.metric.name)))
    slim = on_device(outcome.program, device_of(source))
    hashed = compared.fingerprint if compared else None
    lock = make_lock(plan, outcome.resolved, source, slim, hashed, adapted.findings)
    judged = None if found is None else (found, metric, inputs)
    return Result(plan, source, slim, lock, report, progress, regions, modes, judged=judged, journal=journal)


def _with_metric(report: Report, plan: Plan, compared: Compared) -> Report:
    """The report with what the data say of both models."""
    changed = check_data(plan.hashes, compared.fingerprint)
    alarms = (*([changed] if changed else []), *compared.alarms)
    return replace(report, metric=compared.measured, evaluation=compared.evaluation, alarms=(*report.alarms, *alarms))


_UNMEASURED: Final = "the plan names the metric {}, and no data to measure it on"


def _region_findings(regions: Regions, program: Program, *, alike: bool) -> RegionFindings:
    """What was compiled, how the whole model was checked, and how to put the parts in their places."""
    files = {region.name: source_name(regions, region) for region in regions.parts}
    splice = tuple(f"from {file} import splice; splice(model)" for file in files.values())
    return RegionFindings(tuple(files), regions.check(program, alike=alike), splice)


def load_program(plan: Plan, model: nn.Module | None = None, example_inputs: Inputs | None = None) -> Program:
    """The plan's model, or its regions, traced."""
    return _traced(plan, *_subject(plan, model, example_inputs, untold))[0]


def load_original(plan: Plan, tell: Tell = untold) -> tuple[Program, nn.Module, Inputs]:
    """The plan's program, the whole model that the data are for, and its example inputs; what was unwrapped is told.

    Raises `ModelError` for a model that can't be compiled for what it holds, or can't be run on these inputs.
    """
    model, inputs = _subject(plan, None, None, tell)
    program, regions, _ = _traced(plan, model, inputs)
    _check_subject(plan, model, inputs, program, regions)
    return program, program.module if regions is None else regions.model, inputs


def _subject(
    plan: Plan, model: nn.Module | None, example_inputs: Inputs | None, tell: Tell
) -> tuple[nn.Module, Inputs]:
    """The model and its inputs, where they aren't given as the plan names them."""
    if model is not None:
        check_module(model)
    found = load_model(plan, tell) if model is None else unwrapped(model, tell)
    return found, inputs_of(plan) if example_inputs is None else example_inputs


def _traced(plan: Plan, model: nn.Module, inputs: Inputs) -> tuple[Program, Regions | None, Sequence[str]]:
    """The program, the regions that it is of, and what to warn of."""
    if plan.region is None:
        program, warnings = trace_modes(model, inputs, plan.mode)
        return program, None, warnings
    refuse_region(plan)
    regions = find_regions(model, plan.region, inputs, plan.at)
    program, warnings = regions.trace(plan.mode)
    return program, regions, warnings


def _check_subject(plan: Plan, model: nn.Module, inputs: Inputs, program: Program, regions: Regions | None) -> None:
    """Raise `ModelError` where the model can't be compiled for what it holds, or can't be run."""
    check_usable(program)
    check_model(plan.hashes, program, plan.at("hashes"))
    check_finite(program, plan)
    if regions is None:  # to find these, the whole model was run
        check_runs(model, arguments(model, inputs))


def load_divided(plan: Plan) -> Program:
    """The plan's model, traced, of the classes that it keeps, with its channels divided into units as the passes before
    the first rewrite ask. Data are made only where the names of classes are looked up in them."""
    spec, program = plan.classes, load_program(plan)
    named = spec is not None and spec.names is None and any(isinstance(each, str) for each in spec.keep)
    return divided(plan, adapt(plan, program, load_data(plan) if named else None).program)


def divided(plan: Plan, program: Program) -> Program:
    """The program with its channels divided into units as the passes before the first rewrite ask."""
    for step in takewhile(lambda step: not step.pass_.rewrites, unfolded(steps_of(plan))):
        program = step.pass_.foreseen(program)
    return program


def program_after(plan: Plan, name: str | None) -> Program:
    """The plan's program after the first pass of that name; as traced, where it is None. Raises `PlanError`."""
    steps = steps_of(plan)
    names = [step.pass_.name for step in unfolded(steps)]
    if name is not None and name not in names:
        raise PlanError(f"the plan has no pass '{name}'", hint=nearest(name, names))
    if name is None:
        return load_program(plan)
    program, whole, inputs = load_original(plan)
    adapted = adapt(plan, program, load_data(plan))
    program, data, whole = adapted.program, adapted.data, adapted.whole(whole)
    loss = load_loss(adapted.plan)
    metric = settled(load_metric(adapted.plan, loss), whole, data, inputs)
    context = Context(plan.seed, data, runtime=plan.runtime, loss=loss, metric=metric, train=plan.train)
    return run_passes(program, steps, adapted.told(context), until=name).program


def make_report(plan: Plan, before: Program, outcome: Outcome, seconds: float, warnings: Iterable[str] = ()) -> Report:
    """What every compile finds: costs, widths, passes with their verification, and their warnings beside `warnings`.

    `seconds` is what tracing took.
    """
    after = outcome.program
    doubts = [check_result(plan.hashes, after), check_removed(plan, removed(before, after))]
    of_mode = train_warnings(before, after) if plan.mode == "train" else ()
    of_passes = dict.fromkeys(warning for record in outcome.records for warning in record.warnings)
    return Report(
        prunec=__version__,
        model=before.name,
        inputs=tuple(tuple(x.shape) for x in tensors_in(before.inputs)),
        cost=Change(cost(before), cost(after)),
        groups=tuple(group_widths(before, after)),
        macs_by_node=Change(before, after).each(lambda program: cost_model(program).by_node()),
        trace_seconds=seconds,
        origin=origin_of(plan, after),
        passes=outcome.records,
        warnings=(*filter(None, doubts), *warnings, *of_mode, *of_passes),
    )


def group_widths(before: Program, after: Program) -> Iterator[GroupWidths]:
    """Each group's channels before and after, as its first writer counts them; how many units are pinned, and why."""
    for group in analyse(before).groups.values():
        first = group.writers[0]
        left = after.left_of(before, first.axis)
        kept = first.positions.size if left is None else int(np.isin(first.positions, left).sum())
        pinned = Counter(reason for reason in group.pinned if reason)
        yield GroupWidths(group.name, group.size, Change(first.positions.size, kept), pinned)


def ready_to_write(directory: str | Path, plan: Plan) -> None:
    """Refuse a folder that can't be written before any work is done. Raises `OutputError`."""
    check_writable(Path(directory))
    _check_no_source(plan, Path(directory))


def _check_no_source(plan: Plan, directory: Path) -> None:
    """Refuse to replace the files that the plan's model is made of: its lock couldn't be compiled again."""
    spec = plan.model
    if spec is None:
        return
    file = spec.factory.module if spec.factory and isinstance(spec.factory.module, Path) else None
    target = os.path.realpath(directory)
    for source in (spec.saved, spec.weights and spec.weights.file, file):
        if source and target in (os.path.realpath(source), os.path.dirname(os.path.realpath(source))):
            raise OutputError(
                f"won't replace '{directory}': the plan's model comes from there", hint="name another folder"
            )
