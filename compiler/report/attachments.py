"""The files that passes add to the output, each under a name of its own, and those of them that the page shows.

evidence.csv   evidence.png          of the first pass that gives them
evidence_2.csv evidence_2.png        of the second
"""

from __future__ import annotations

import base64
import csv
from dataclasses import replace
from pathlib import PurePath

from prunec.compiler.pass_base import Attachment
from prunec.compiler.report.report import Report


def attachments(report: Report) -> list[Attachment]:
    """The files of all passes, in order; of several with the same name, the later ones have a number."""
    found: dict[str, Attachment] = {}
    for each in (each for record in report.passes for each in record.attachments):
        name, path, count = each.file, PurePath(each.file), 1
        while name in found:
            count += 1
            name = f"{path.stem}_{count}{path.suffix}"
        found[name] = replace(each, file=name)
    return list(found.values())


def pictures(report: Report) -> list[tuple[Attachment, str]]:
    """The pictures that have a title, each with its bytes in base64."""
    shown = (each for each in attachments(report) if each.title and each.file.endswith(".png"))
    return [(each, base64.b64encode(each.content).decode("ascii")) for each in shown]


def tables(report: Report) -> list[tuple[Attachment, list[list[str]]]]:
    """The tables that have a title, each with its rows of cells, the first of which are the names of columns."""
    shown = (each for each in attachments(report) if each.title and each.file.endswith(".csv"))
    return [(each, list(csv.reader(each.content.decode().splitlines()))) for each in shown]
