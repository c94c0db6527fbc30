"""What `prunec visualise` does: make the images of a plan's layers, show what was found, and write it to a folder.

    visualise/    images_LAYER.png ...    visualise.csv    visualise.html

The subject is the plan's model where its first `visualise` would run, with the options of that; of a plan without one,
the traced model. The folder is written whole or not at all; what a killed run has done lies beside it until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import typer
from pydantic import ValidationError

from prunec.compiler.driver.journal import Journal, checkpoint_folder
from prunec.compiler.driver.pass_manager import run_passes
from prunec.compiler.driver.steps import Step, before_first, steps_of, unfolded
from prunec.compiler.errors import PlanError
from prunec.compiler.pass_base import Attachment
from prunec.compiler.plan.entries import PlanPass
from prunec.compiler.plan.options import faults
from prunec.compiler.plan.plan import Plan
from prunec.compiler.report.console import made_table, say, show
from prunec.compiler.report.html import Rows, pictures_page
from prunec.compiler.report.progress import watched
from prunec.compiler.report.report import Record
from prunec.passes.studies.asked import Asked
from prunec.passes.studies.subject import begun
from prunec.passes.visualise import Visualise

VISUALISE: Final = "visualise"
"""The name of the command, which the manifests of its folders hold."""


def show_images(asked: Asked, options: Mapping[str, Any]) -> None:
    """Make the images, print what was found and write all; `options` are those that the command line names.

    Raises `PrunecError`.
    """
    plan = asked.plan
    if plan.region is not None:
        raise PlanError("a region of a model can't be visualised by itself", at=plan.at("region"))
    step = _step(plan, options)
    checkpoints = checkpoint_folder(asked.folder)
    with watched(asked.detail) as progress, _told(checkpoints):
        held = _held(plan)
        program, context = begun(plan, progress, by_units=held is None)
        before = before_first(steps_of(plan), _is_one) if held is not None else []
        entry = PlanPass(VISUALISE, step.pass_.model_dump(mode="json", exclude_unset=True), step.pass_)
        journal = Journal.of(plan.model_copy(update={"passes": (*plan.passes, entry)}), program, checkpoints)
        try:
            step.pass_.ready(program, context)
            outcome = run_passes(program, [*before, step], replace(context, journal=journal))
        except BaseException:
            journal.release()
            raise
    record = outcome.records[-1]
    table = _rows(record)
    title = f"{program.name}: what units look for"
    made = record.details
    units = sum(each["units"] for each in made["layers"].values())
    lead = f"{units:,} units, {made['steps']:,} steps of {made['preset']}"
    say(f"{title}; {lead}")
    show(made_table("", table.columns, table.rows, right=table.numbers))
    for note in record.notes:
        say(str(note))
    files = {each.file: each for each in record.attachments}
    page = pictures_page(title, f"{lead}.", [each for each in files.values() if each.title], [table])
    asked.write({**{name: partial(_write, each) for name, each in files.items()}, "visualise.html": _page(page)})
    journal.finish()


def _step(plan: Plan, options: Mapping[str, Any]) -> Step:
    """The plan's first `visualise`, or a new one, with other options. Raises `PlanError`."""
    held = _held(plan)
    if held is not None and not options:
        return held
    known = held.pass_.model_dump(mode="json", exclude_unset=True) if held else {}
    said = {**known, **options}
    try:
        return Step(Visualise.model_validate(said))
    except ValidationError as error:
        fault = faults(error, said, (), Visualise)[0]
        where = f"--{fault.keys[0]}: " if fault.keys else ""  # several options together have no place
        raise PlanError(f"{where}{fault.message}", hint=fault.hint) from error


def _is_one(pass_: Any) -> bool:
    return isinstance(pass_, Visualise)


def _held(plan: Plan) -> Step | None:
    return next((step for step in unfolded(steps_of(plan)) if _is_one(step.pass_)), None)


def _rows(record: Record) -> Rows:
    """A row for each layer."""
    columns = ("layer", "units", "dead", "clusters", "silhouette", "mean at the start", "mean at the end")
    rows = [
        [
            name,
            f"{found['units']:,}",
            f"{len(found['dead']):,}",
            f"{len(found['clusters'])}",
            f"{found['silhouette']:.2f}" if "silhouette" in found else "",
            f"{found['start']:.4g}",
            f"{found['end']:.4g}",
        ]
        for name, found in record.details["layers"].items()
    ]
    return Rows("Layers", columns, rows, columns[1:])


def _write(attachment: Attachment, path: Path) -> None:
    path.write_bytes(attachment.content)


def _page(text: str) -> Any:
    return lambda path: path.write_text(text, encoding="utf-8")


@contextmanager
def _told(checkpoints: Path) -> Iterator[None]:
    """Where the work is interrupted, say how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoints.exists():
            typer.echo(f"interrupted: the same command goes on from {checkpoints}", err=True)
        raise
