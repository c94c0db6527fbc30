"""The work of `visualise`: chunk by chunk of each layer, kept on the way; then clusters, sheets and the table."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from prunec.compiler.errors import OutputError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.devices import device_of
from prunec.compiler.ir.program import FloatArray, IntArray, Note, Program
from prunec.compiler.pass_base import Attachment, Context, PassResult
from prunec.passes.calibration.calibration import bytes_of_a_sample
from prunec.passes.criteria.class_tables import balanced
from prunec.passes.criteria.cluster_labels import cluster_labels
from prunec.passes.visualising.ascent import Climbed, climb
from prunec.passes.visualising.clusters import DEAD, clustered
from prunec.passes.visualising.layers import Layer, Wanted, find_layers
from prunec.passes.visualising.pixels import ImageInput, Pixels
from prunec.passes.visualising.presets import Ascent

TABLE: Final = "visualise.csv"
_LARGEST: Final = 128
"""The most images of a chunk: more make a step no faster."""


@dataclass(frozen=True)
class Task:
    """What is asked for; see the options of the pass."""

    layers: Wanted
    preset: str
    ascent: Ascent
    pixels: tuple[float, float] | None
    samples: int
    split: str
    clusters: int | tuple[int, int]
    pca: int | None
    share: float
    memory: int


@dataclass(frozen=True)
class Findings:
    """What is known of the units of one layer."""

    layer: Layer
    climbed: Climbed
    clusters: IntArray
    """[units]: DEAD for those whose image never moved."""
    silhouette: float | None
    """None where nobody chose between numbers of clusters."""
    evidence: FloatArray | None
    """[units, classes], balanced; None where the program has no evidence."""
    titles: Sequence[str]
    """Of the classes."""
    share: float

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return int(self.clusters.max(initial=-1)) + 1

    @property
    def labels(self) -> list[str]:
        """The class of each unit; empty where there is no evidence."""
        if self.evidence is None:
            return []
        best = np.nan_to_num(self.evidence)
        return [self.titles[row.argmax()] if row.size and row.max() > 0 else "" for row in best]

    @property
    def headings(self) -> list[str]:
        """The classes of each cluster; empty where there is no evidence."""
        if self.evidence is None:
            return []
        found = cluster_labels(self.evidence, self.clusters, self.share)
        return [", ".join(self.titles[y] for y in classes) for classes in found]


class Work:
    """One run of `visualise` over a program."""

    def __init__(self, task: Task, program: Program, context: Context) -> None:
        self.task, self.program, self.context = task, program, context
        self.layers = find_layers(program, task.layers)
        self.source = ImageInput.of(self.layers[0].program)
        self.ascent = task.ascent
        self.device = device_of(self.layers[0].program)
        self.total = sum(layer.units.size for layer in self.layers) * self.ascent.steps
        self.clock = _Clock(self.total)

    def result(self) -> PassResult:
        """Make all images, and tell of them."""
        pixels = self._pixels()
        done = self._images(pixels)
        found = [self._findings(layer, done[layer.name], pixels) for layer in self.layers]
        program = self.program.with_facts(image_clusters=self._by_group(found))
        notes = [Note(each.layer.name, _dead(each)) for each in found if each.climbed.dead.any()]
        details = {
            "preset": self.task.preset,
            "steps": self.ascent.steps,
            "layers": {each.layer.name: _figures(each) for each in found},
        }
        return PassResult(program, tuple(notes), details, attachments=tuple(self._attachments(found, pixels)))

    # -- images ----------------------------------------------------------------------------------------------------

    def _pixels(self) -> Pixels:
        """The range of valid pixels, and the mean image."""
        task = self.task
        if task.pixels is not None:
            return self.source.given(*task.pixels).to(self.device)
        return self.source.measured(self.context, task.samples, task.split).to(self.device)

    def _images(self, pixels: Pixels) -> Mapping[str, Climbed]:
        """The images of all layers; those that an earlier run has left aren't made anew."""
        kept = _Kept.found(self.context)
        start = self._start(pixels)
        self.clock.skip(sum(part.images.shape[0] for part in kept.parts.values()) * self.ascent.steps)
        for layer in self.layers:
            size = self._chunk(layer)
            begun = kept.count(layer.name)
            for first in range(begun, layer.units.size, size):
                units = torch.arange(first, min(first + size, layer.units.size), device=self.device)
                tick = partial(self._tick, layer.name)
                kept.add(layer.name, climb(layer, units, self.source, pixels, self.ascent, start, tick))
        self.context.progress("visualise", self.total, self.total)
        return kept.parts

    def _start(self, pixels: Pixels) -> Tensor:
        """The noise from which every image starts, [channels, height, width]: the same for all, so that images differ
        by what their units look for."""
        drawn = self.context.rng("visualise", "start").standard_normal(self.source.shape)
        scale = self.ascent.noise * pixels.width
        return torch.from_numpy(scale * drawn).to(self.device, torch.float32)

    def _chunk(self, layer: Layer) -> int:
        """How many images are one batch: their values, with a gradient each, are to fit into memory."""
        return max(1, min(_LARGEST, self.task.memory // (2 * max(bytes_of_a_sample(layer.cut), 1))))

    def _tick(self, layer: str, images: int) -> None:
        self.clock.step(images)
        self.context.progress("visualise", self.clock.done, self.total, f"{layer}{self.clock.left}")

    # -- what is found -------------------------------------------------------------------------------------------------

    def _findings(self, layer: Layer, climbed: Climbed, pixels: Pixels) -> Findings:
        rng = self.context.rng("visualise", "clusters", layer.name)
        dead = climbed.dead.numpy()
        clusters, silhouette = clustered(climbed.images.numpy(), dead, self.task.clusters, rng, self.task.pca)
        evidence, titles = self._evidence(layer)
        return Findings(layer, climbed, clusters, silhouette, evidence, titles, self.task.share)

    def _evidence(self, layer: Layer) -> tuple[FloatArray | None, Sequence[str]]:
        """The balanced evidence of a layer's units, [units, classes], and what the classes are called."""
        known: Any = self.program.facts.get("class_evidence")
        analysis = analyse(self.program)
        tables = [known.get(name) if known else None for name in analysis.groups]
        first = next((table for table in tables if table is not None), None)
        if first is None:
            return None, ()
        rows = np.full((analysis.size, first.shape[1]), np.nan)
        for group, table in zip(analysis.groups.values(), tables, strict=True):
            if table is not None:
                rows[group.where] = balanced(table)
        titles = tuple(getattr(known, "titles", ())) or tuple(map(str, range(first.shape[1])))
        return rows[layer.units], titles

    def _by_group(self, found: Sequence[Findings]) -> dict[str, IntArray]:
        """The fact: group -> [units, layers of the group]."""
        analysis = analyse(self.program)
        columns: dict[str, list[IntArray]] = {}
        for each in found:
            row = np.full(analysis.size, DEAD, dtype=np.int64)
            row[each.layer.units] = each.clusters
            numbers = set(analysis.group_of[each.layer.units].tolist())
            for number, group in enumerate(analysis.groups.values()):
                if number in numbers:
                    columns.setdefault(group.name, []).append(row[group.where])
        return {name: np.stack(rows, 1) for name, rows in columns.items()}

    def _attachments(self, found: Sequence[Findings], pixels: Pixels) -> list[Attachment]:
        from prunec.passes.visualising.sheets import Sheet  # noqa: PLC0415  (imports matplotlib)

        made = []
        low, width = pixels.low.cpu(), (pixels.high - pixels.low).cpu()
        for each in found:
            layer = each.layer
            title = f"Images of {layer.name}"
            shown = ((each.climbed.images - low) / torch.where(width > 0, width, 1.0)).numpy()
            sheet = Sheet(title, shown, each.clusters, layer.positions, each.labels, each.headings)
            caption = f"What raises each unit of {layer.name} most, by cluster; {_told(each)}."
            made.append(
                Attachment(f"images_{re.sub(r'[^0-9A-Za-z_.-]', '_', layer.name)}.png", sheet.png(), title, caption)
            )
        return [*made, Attachment(TABLE, self._table(found).encode())]

    def _table(self, found: Sequence[Findings]) -> str:
        """A row for each unit."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["layer", "channel", "group", "unit", "cluster", "class", "classes of the cluster", "start", "end"]
        )
        analysis = analyse(self.program)
        groups = list(analysis.groups.values())
        for each in found:
            labels, headings = each.labels, each.headings
            for index, unit in enumerate(each.layer.units.tolist()):
                group, cluster = groups[analysis.group_of[unit]], int(each.clusters[index])
                told = "dead" if cluster == DEAD else cluster
                classes = headings[cluster] if headings and cluster != DEAD else ""
                ends = (f"{float(x[index]):.6g}" for x in (each.climbed.first, each.climbed.last))
                position, label = int(each.layer.positions[index]), labels[index] if labels else ""
                writer.writerow(
                    [each.layer.name, position, group.name, unit - group.start, told, label, classes, *ends]
                )
        return text.getvalue()


def _dead(found: Findings) -> str:
    """The reason of the note about dead units."""
    numbers = found.layer.positions[found.climbed.dead.numpy()]
    named = ", ".join(map(str, numbers[:_NAMED])) + (", ..." if numbers.size > _NAMED else "")
    return f"{numbers.size} of {found.layer.units.size} units are dead, since no image moves them: {named}"


_NAMED: Final = 12
"""How many dead units a note names; the sheet and the table name all."""


def _told(found: Findings) -> str:
    dead = int(found.climbed.dead.sum())
    words = [f"{found.layer.units.size} units", f"{found.count} cluster{'' if found.count == 1 else 's'}"]
    if found.silhouette is not None:
        words[-1] += f" (silhouette {found.silhouette:.2f})"
    return ", ".join([*words, *([f"{dead} dead"] if dead else [])])


def _figures(found: Findings) -> dict[str, Any]:
    """What report.json says of a layer."""
    silhouette = {} if found.silhouette is None else {"silhouette": round(found.silhouette, 4)}
    return {
        "units": int(found.layer.units.size),
        "clusters": np.bincount(found.clusters[found.clusters >= 0], minlength=found.count).tolist(),
        "start": float(f"{found.climbed.first.mean():.4g}"),
        "end": float(f"{found.climbed.last.mean():.4g}"),
        "dead": found.layer.positions[found.climbed.dead.numpy()].tolist(),
        **silhouette,
    }


# -- what a killed run leaves ----------------------------------------------------------------------------------------


class _Kept:
    """The images that are done, in a file that a later run goes on from."""

    def __init__(self, context: Context, parts: dict[str, Climbed]) -> None:
        self._keeper, self.parts = context.keeper, parts

    @staticmethod
    def found(context: Context) -> _Kept:
        """What an earlier run of the same has left. Raises `OutputError` where it can't be read."""
        path = context.keeper.load()
        if path is None:
            return _Kept(context, {})
        try:
            tensors = safetensors.torch.load(path.read_bytes())
            names = {name.partition("/")[2] for name in tensors}
            parts = {name: Climbed(*(tensors[f"{part}/{name}"] for part in _PARTS)) for name in names}
        except (OSError, safetensors.SafetensorError, KeyError) as error:
            hint = f"delete {path.parent} to begin anew"
            raise OutputError(f"the images in {path} can't be read: {error}", hint=hint) from error
        return _Kept(context, parts)

    def count(self, layer: str) -> int:
        """How many images of a layer are done."""
        return len(self.parts[layer].images) if layer in self.parts else 0

    def add(self, layer: str, chunk: Climbed) -> None:
        """Take down a chunk."""
        known = [self.parts[layer]] if layer in self.parts else []
        self.parts[layer] = Climbed.joined([*known, chunk])
        if self._keeper.due():
            self._keeper.save(self._write)

    def _write(self, path: Path) -> None:
        tensors = {
            f"{part}/{name}": getattr(found, part).contiguous() for name, found in self.parts.items() for part in _PARTS
        }
        path.write_bytes(safetensors.torch.save(tensors))


_PARTS: Final = ("images", "first", "last", "dead")


class _Clock:
    """How long the rest will take."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._total, self.done, self._before = clock, total, 0, 0
        self._start = clock()

    def skip(self, steps: int) -> None:
        """So many steps were made by an earlier run; the clock starts now."""
        self.done = self._before = steps
        self._start = self._clock()

    def step(self, count: int) -> None:
        """So many more are made."""
        self.done += count

    @property
    def left(self) -> str:
        """`, about 3 min left`; empty in the first seconds, of which nothing follows."""
        seconds, made = self._clock() - self._start, self.done - self._before
        if seconds < _EARLY or not made:
            return ""
        rest = seconds / made * (self._total - self.done)
        return f", about {rest / 60:.0f} min left" if rest >= 100 else f", about {rest:.0f} s left"


_EARLY: Final = 3.0
"""Seconds."""
