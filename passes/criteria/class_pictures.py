"""The table unit x class as comma-separated values, and as a heat map.

group,unit,label,0,1,cat (2)        a line for each unit; the label is empty where it has to do with no class
conv1,0,cat (2),0.12,0.03,0.55
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from prunec.compiler.ir.program import FloatArray
from prunec.passes.criteria.class_tables import ClassTable, balanced, unit_labels

ROWS: Final = 24
"""Of more classes than this, those that the plan keeps are drawn, or those that most units are for."""
NUMBERS: Final = 2_000_000
"""Of a table with more numbers, the file has those of the classes that the plan keeps."""
_WIDE: Final = 9.0
_SCALE: Final = 0.25
"""Inches for the scale of colours."""
_DPI: Final = 110


def table_csv(table: ClassTable) -> str:
    """The table as it was measured: a line for each unit, with its label. A large one has the kept classes alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = _titles(table)
    large = sum(rows.size for rows in table.values()) > NUMBERS
    columns = list(table.kept) if large and table.kept else list(range(len(titles)))
    writer.writerow(["group", "unit", "label", *(titles[y] for y in columns)])
    for name, rows in table.items():
        for unit, (label, row) in enumerate(zip(unit_labels(rows), rows[:, columns].tolist(), strict=True)):
            said = ["" if np.isnan(value) else f"{value:.6g}" for value in row]
            writer.writerow([name, unit, titles[label] if label >= 0 else "", *said])
    return text.getvalue()


def heat_map(table: ClassTable) -> bytes:
    """A PNG with a strip for each group: classes below each other, units side by side, sorted by their labels."""
    shown, titles = _shown(table), _titles(table)
    strip = max(0.35, 0.13 * len(shown))
    figure = Figure(figsize=(_WIDE, 0.8 + (strip + 0.3) * len(table)), layout="constrained")
    scale, *axes = figure.subplots(1 + len(table), 1, height_ratios=[_SCALE, *[strip] * len(table)])
    scale.axis("off")
    drawn = {name: balanced(rows) for name, rows in table.items()}
    known = np.concatenate([each[np.isfinite(each)] for each in drawn.values()] or [np.ones(1)])
    highest = max(float(np.quantile(known, 0.99)) if known.size else 1.0, 1.0)
    image = None
    for axis, (name, rows) in zip(axes, drawn.items(), strict=True):
        order = _sorted(rows, table[name], shown)
        image = axis.imshow(
            rows[order][:, shown].T, aspect="auto", cmap="YlOrRd", vmin=0, vmax=highest, interpolation="nearest"
        )
        axis.set_title(f"{name}: {len(rows)} units", fontsize=8, loc="left", pad=2, parse_math=False)
        axis.set_xticks([])
        axis.set_yticks(range(len(shown)), [titles[y] for y in shown], fontsize=6, parse_math=False)
        for label, y in zip(axis.get_yticklabels(), shown, strict=True):
            label.set_fontweight("bold" if y in table.kept else "normal")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, cax=scale.inset_axes((0.25, 0.5, 0.5, 0.5)), orientation="horizontal")
        bar.set_label("evidence, in means of the class over the group's units", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=_DPI, format="png", metadata={"Software": None})
    return picture.getvalue()


def _titles(table: ClassTable) -> Sequence[str]:
    count = next(iter(table.values())).shape[1]
    return table.titles or [str(y) for y in range(count)]


def _shown(table: ClassTable) -> list[int]:
    """The classes that are drawn."""
    count = next(iter(table.values())).shape[1]
    if count <= ROWS:
        return list(range(count))
    labels = np.concatenate([unit_labels(rows) for rows in table.values()])
    owned = np.bincount(labels[labels >= 0], minlength=count)
    wanted = np.array(table.kept) if table.kept else np.arange(count)
    return sorted(wanted[np.argsort(-owned[wanted], kind="stable")][:ROWS].tolist())


def _sorted(rows: FloatArray, table: FloatArray, shown: Sequence[int]) -> Sequence[int]:
    """The units by label, in each label the strongest first; those without stand at the end."""
    labels, known = unit_labels(table), np.nan_to_num(rows, nan=0.0)
    place = {y: index for index, y in enumerate(shown)}
    keys = [place.get(int(label), len(shown) + int(label < 0)) for label in labels]
    found: list[int] = np.lexsort((-known.max(1, initial=0.0), keys)).tolist()
    return found
