"""What `prunec sensitivity` and `prunec rank` do: measure, show the results, and write them to a folder.

    sensitivity/  sensitivity.csv  sensitivity.html  sensitivity.png
    rank/         rank.csv  rank.html  rank.png

The folder is written whole or not at all.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from prunec.compiler.errors import PlanError
from prunec.compiler.report.progress import watched
from prunec.passes.criteria.base import Criterion
from prunec.passes.score import Score
from prunec.passes.select import Select
from prunec.passes.selection.curves import write_curves
from prunec.passes.studies import pictures, rank, tables
from prunec.passes.studies.asked import Asked
from prunec.passes.studies.sensitivity import Removed, measured
from prunec.passes.studies.subject import Subject, groups_named, looking, said, scored_by, subject

SENSITIVITY: Final = "sensitivity"
RANK: Final = "rank"
"""The names of the commands, which the manifests of their folders hold."""


# -- sensitivity ---------------------------------------------------------------------------------------------------


def show_sensitivity(
    asked: Asked, ratios: str, criterion: str | None, groups: Sequence[str], looks: Mapping[str, Any]
) -> None:
    """Measure the curves of the groups, print the extremes and write all. Raises `PrunecError`."""
    shares, seen = said("ratios", ratios), _said(looks)
    made = None if criterion is None else said("criterion", criterion)
    with watched(asked.detail) as progress:
        about = subject(asked.plan, progress)
        score = about.score if made is None else scored_by(about.score, made, looking(about.score, {}))
        removed = _removed(about, score, shares, groups_named(about.program, groups))
        calibration = about.calibration({"loss": about.score.loss, **{k: v for k, v in seen.items() if v is not None}})
        curves, metric, loss, samples = measured(about.program, removed, calibration, about.context)
    by = {"criterion": score.criterion.name, "samples": samples, "split": calibration.split}
    whole = tables.Whole(about.program.name, metric, curves[0].judged, loss, by)
    tables.show_curves(whole, curves)
    asked.write(
        {
            "sensitivity.csv": partial(write_curves, curves=curves, more=by),
            "sensitivity.png": partial(pictures.draw_curves, title=whole.title, curves=curves),
            "sensitivity.html": partial(tables.write_curves_page, whole=whole, curves=curves),
        }
    )


def _removed(about: Subject, score: Score, ratios: Sequence[float], groups: Sequence[str]) -> Removed:
    """The units that `select: RATIO` would take from each of the groups that can be cut."""
    program = score.run(about.program, about.context).program
    context = replace(about.context, traced=program)
    scored = [name for name in groups if name in program.facts["scores"]]
    chosen = {
        ratio: Select(ratio=ratio).run(program, context).program.facts["selection"] for ratio in sorted(set(ratios))
    }
    none = np.zeros(0, dtype=np.int64)
    removed = {name: {ratio: found.get(name, none) for ratio, found in chosen.items()} for name in scored}
    open_groups = {name: found for name, found in removed.items() if any(units.size for units in found.values())}
    if not open_groups:
        message = f"the criterion {score.criterion.name} finds nothing that may go in the groups that were asked for"
        raise PlanError(message, hint="`prunec explain PLAN` says why")
    return open_groups


# -- rank ----------------------------------------------------------------------------------------------------------


def show_rank(asked: Asked, criteria: str, units: int | None, groups: Sequence[str], looks: Mapping[str, Any]) -> None:
    """Correlate the criteria with the oracle, print the table and write all. Raises `PrunecError`."""
    made: list[Criterion] = said("criteria", criteria)
    seen = _said(looks)
    names = _names(made)
    with watched(asked.detail) as progress:
        about = subject(asked.plan, progress)
        data = looking(about.score, seen)
        tried = rank.tried_units(about.program, groups_named(about.program, groups), units, about.context)
        if not tried:
            raise PlanError("nothing may go in the groups that were asked for", hint="`prunec explain PLAN` says why")
        found = {}
        for number, (name, criterion) in enumerate(zip(names, made, strict=True)):
            progress(f"criterion {number + 1} of {len(made)}: {name}", 0, 1)
            scores = scored_by(about.score, criterion, data).run(about.program, about.context).program.facts["scores"]
            found[name] = {group: scores[group][own] for group, own in tried.items() if group in scores}
        truth, samples = rank.oracle(about.program, tried, about.calibration(data), about.context)
    rows = [row for name, figures in found.items() for row in rank.correlations(name, figures, truth)]
    units_tried = sum(figures.size for figures in truth.values())
    title = f"{about.program.name}: rank correlation with the oracle over {units_tried:,} units, on {samples:,} samples"
    tables.show_ranks(title, rows)
    asked.write(
        {
            "rank.csv": partial(_write_rows, rows=rows),
            "rank.png": partial(pictures.draw_ranks, title=title, rows=rows),
            "rank.html": partial(tables.write_ranks_page, title=title, rows=rows),
        }
    )


def _names(made: Sequence[Criterion]) -> list[str]:
    """A name for each criterion: its own, and where several share one, their options too."""
    names = [criterion.name for criterion in made]
    full = [f"{c.name} {c.model_dump_json(exclude_unset=True)}" for c in made]
    return [long if names.count(name) > 1 else name for name, long in zip(names, full, strict=True)]


def _write_rows(path: Path, rows: Sequence[rank.Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["criterion", "group", "normalize", "units", "spearman", "kendall"])
        for row in rows:
            spelled = {**asdict(row), "group": row.group or "all groups"}
            writer.writerow("" if isinstance(v, float) and math.isnan(v) else v for v in spelled.values())


def _said(looks: Mapping[str, Any]) -> dict[str, Any]:
    """The options about data, validated."""
    words = {key: said(key, looks[key]) for key in ("split", "loss") if looks[key] is not None}
    return {**looks, **words}
