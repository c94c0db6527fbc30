"""`prunec check`: a plan against its model, as far as that goes without running a pass.

The plan has been loaded, so its words, types and files are right. What remains: the order of the passes, the model with
its weights and inputs, the data, and the options of those passes that stand before the first rewrite's result. The
passes behind it see a program that doesn't exist yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from prunec.compiler.cost.model import cost
from prunec.compiler.driver.compile import load_program, steps_of
from prunec.compiler.driver.load import load_data
from prunec.compiler.driver.lock import check_model
from prunec.compiler.driver.measure import accuracy
from prunec.compiler.driver.pass_manager import Step, check_needs, check_options
from prunec.compiler.errors import DataError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Data, batches_of
from prunec.compiler.plan.plan import Plan


def check_plan(plan: Plan) -> Iterator[str]:
    """A line for everything that was checked and is right. Raises the `PrunecError` of the first thing that is not."""
    steps = steps_of(plan)
    check_needs(steps)
    yield f"passes: {_listed(steps) or 'none'}: every option is valid, and each pass gets what it needs"
    program = load_program(plan)
    check_model(plan.hashes, program, plan.at("hashes"))
    yield _model_line(program)
    yield _group_line(program)
    data = load_data(plan)
    yield "data: none" if data is None else _data_line(program, data)
    checked = check_options(program, steps)
    yield f"patterns and groups: fit the model in {_listed(checked)}" if checked else "patterns and groups: none"
    yield from _remarks(program, checked)
    rest = steps[len(checked) :]
    if rest:
        yield f"not checked: what {_listed(rest)} will find, since a pass before it changes the program"
    yield "not checked: budgets and exports, which need the passes to run"


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


def _data_line(program: Program, data: Data) -> str:
    """Run the first test batch through the model. Raises `DataError` where it doesn't fit."""
    batch = list(islice(batches_of(data, "test"), 1))
    if not batch:
        raise DataError("the data's test split is empty")
    accuracy(program.module, batch)
    shapes = " and ".join(str(list(x.shape)) for x in tensors_in(batch[0][0]))
    return f"data: the first test batch, {shapes}, runs through the model"
