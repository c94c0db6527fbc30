"""`prunec check`: a plan against its model, as far as that goes without running a pass.

The plan has been loaded, so its words, types and files are right. What remains: the order of the passes, the model with
its weights and inputs, the data with the splits and labels that passes need, the exports, and the options of those
passes that stand before the first rewrite's result. The passes behind it see a program that doesn't exist yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from prunec.compiler.cost.model import cost
from prunec.compiler.data import Data
from prunec.compiler.driver.classes import adapt
from prunec.compiler.driver.compile import load_original
from prunec.compiler.driver.evaluation import settled, try_out
from prunec.compiler.driver.load import load_data, load_loss, load_metric
from prunec.compiler.driver.pass_manager import check_needs, check_options, check_ready
from prunec.compiler.driver.steps import Step, steps_of, unfolded
from prunec.compiler.errors import TargetError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.inputs import Inputs, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.report import KeptFindings
from prunec.compiler.task.kept_classes import KeptClasses
from prunec.compiler.task.metrics import Metric


def check_plan(plan: Plan) -> Iterator[str]:
    """A line for everything that was checked and is right. Raises the `PrunecError` of the first thing that is not."""
    steps = steps_of(plan)
    check_needs(steps)
    every = unfolded(steps)
    yield f"passes: {_listed(every) or 'none'}: every option is valid, and each pass gets what it needs"
    notes: list[str] = []
    program, whole, inputs = load_original(plan, notes.append)
    yield from (f"note: {note}" for note in notes)
    yield _model_line(program)
    adapted = adapt(plan, program, load_data(plan))
    program, data, whole = adapted.program, adapted.data, adapted.whole(whole)
    yield _group_line(program)
    if adapted.kept is not None:
        yield f"classes: {len(adapted.kept.kept)} of {adapted.kept.of}: {', '.join(adapted.kept.titles)}"
    loss = load_loss(adapted.plan)
    metric = settled(load_metric(adapted.plan, loss), whole, data, inputs)
    checked = check_options(program, steps)
    context = Context(plan.seed, data, traced=program, runtime=plan.runtime, loss=loss, metric=metric, train=plan.train)
    context = adapted.told(context)
    check_ready(program, steps, context if plan.region is None else replace(context, inputs=inputs))
    yield from ["data: none"] if data is None else _data_lines(whole, data, inputs, metric, adapted.kept)
    yield f"patterns and groups: fit the model in {_listed(checked)}" if checked else "patterns and groups: none"
    yield from _remarks(program, checked)
    rest = every[len(checked) :]
    if rest:
        yield f"not checked: what {_listed(rest)} will find, since a pass before it changes the program"
    yield from _export_lines(plan, program, steps, adapted.findings)


def _remarks(program: Program, steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        yield from (f"note: {step.pass_.name}: {note}" for note in step.pass_.remarks(program))
        program = step.pass_.foreseen(program)


def _listed(steps: Sequence[Step]) -> str:
    return ", ".join(step.pass_.name for step in steps)


def _model_line(program: Program) -> str:
    found = cost(program)
    shapes = " and ".join(str(list(x.shape)) for x in tensors_in(program.inputs))
    nodes = len(program.graph.nodes)
    return f"model: {program.name} on {shapes}: {nodes} nodes, {found.macs:,} MACs, {found.params:,} parameters"


def _group_line(program: Program) -> str:
    analysis = analyse(program)
    open_groups = sum(bool(group.free.any()) for group in analysis.groups.values())
    return (
        f"groups: {open_groups} of {len(analysis.groups)} can be cut; "
        f"{int(analysis.free.sum())} of {analysis.size} units may be removed"
    )


def _data_lines(
    model: nn.Module, data: Data, inputs: Inputs, metric: Metric, kept: KeptClasses | None
) -> Iterator[str]:
    """Run the first batch through the model. Raises `DataError` where it doesn't fit, or there is no sample of a class
    that is kept."""
    found = try_out(model, data, inputs, metric)
    if kept is not None:
        kept.require(data, found.split)
    yield f"data: the first {found.split} batch, {found.shapes}, runs through the model"
    if found.left_out:
        yield f"note: no accuracy will be measured: {found.left_out}"
    if found.hint:
        yield f"hint: {found.hint}"
    elif metric.said:
        yield f"metric: {metric.title} can be measured, {'more' if metric.higher_is_better else 'less'} of it is better"


def _export_lines(plan: Plan, program: Program, steps: Sequence[Step], kept: KeptFindings | None) -> Iterator[str]:
    """Export the original as the slim model will be. Raises what a compile would raise at its end."""
    timed = any("latency" in step.pass_.resources() for step in steps)
    if not plan.export and not timed:
        return
    from prunec.compiler.driver.exports import Around, check_folded  # noqa: PLC0415  (imports onnxruntime)
    from prunec.compiler.targets.exporting import ExportContext, export  # noqa: PLC0415
    from prunec.compiler.targets.onnx_export import onnx_bytes  # noqa: PLC0415

    check_folded(plan, program, kept)
    program = Around.of(plan).folded.into(program)
    with TemporaryDirectory() as folder:
        for each in plan.export:
            options = each.options.model_copy(update={"int8": None})
            found = export(each.target(), program, Path(folder), options, ExportContext(timed=False))
            if found.failed:
                raise TargetError(f"{each.name}: {found.error}", at=each.at, hint=found.hint or None, log=found.log)
            yield f"export: {each.name}: the original can be exported"
    if timed:
        onnx_bytes(program)
        yield "not checked: the budget of latency, which has to be measured"
