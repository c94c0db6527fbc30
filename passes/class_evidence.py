"""`class_evidence`: how much each unit has to do with each class, kept as the fact `class_evidence`.

    - class_evidence                                       by the gradients of weights
    - class_evidence: class_maps                           by those of maps
    - class_evidence: {criterion: {class_weights: {of: logit}}, samples: 2000}

The table unit x class goes into the output folder as `class_evidence.csv`, with each unit's label, the class that it
has most to do with; `class_evidence.png` is a heat map of it. Where the plan keeps some `classes`, the table is of all
classes of the original nonetheless, as long as nothing but the output has changed since: what a unit does for a class
that goes is half of what there is to know. Behind other rewrites it is of the classes that are left.

    - score: class_evidence                                     the largest for any class that stays
    - score: {criterion: {class_evidence: {level: cluster}}}    by clusters of images, behind `visualise`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from prunec.compiler.data import Batch, Data
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import FloatArray, Note, Program
from prunec.compiler.pass_base import Attachment, Context, Pass, PassResult
from prunec.compiler.plan.options import wrong
from prunec.compiler.task.kept_classes import KeptClasses
from prunec.passes.calibration.calibration import Bytes
from prunec.passes.criteria.base import Criterion, Setting
from prunec.passes.criteria.class_tables import ClassTable, missing, unit_labels
from prunec.passes.criteria.classes import ClassEvidence, check_seen
from prunec.passes.criteria.spelling import Named
from prunec.passes.score import Count, Score


class ClassEvidencePass(Pass):
    """Find how much each unit has to do with each class."""

    name: ClassVar[str] = "class_evidence"
    gives: ClassVar[frozenset[str]] = frozenset({"class_evidence"})
    shorthand: ClassVar[str | None] = "criterion"

    criterion: Annotated[Criterion, Named()] = Field(
        default="class_weights",
        validate_default=True,
        description="what tells: class_weights or class_maps, with `of` among their options",
        examples=["class_maps", {"class_weights": {"of": "logit"}}],
    )
    batches: Count | None = Field(default=None, description="how many batches of the data are looked at")
    samples: Count | None = Field(default=None, description="how many samples; 1024 where neither is given")
    split: Literal["train", "val", "test"] = Field(default="train", description="the split they are taken from")
    memory: Bytes | None = Field(default=None, description="what the values of one run may take", examples=["2GB"])

    @field_validator("criterion")
    @classmethod
    def _of_classes(cls, value: Criterion) -> Criterion:
        if not isinstance(value, ClassEvidence):
            raise wrong("must be a criterion that gives evidence for classes", hint="class_weights or class_maps")
        return value

    def check(self, program: Program) -> None:
        """Raise `PassError` where `memory` doesn't hold one sample."""
        self._score.check(program)

    def ready(self, program: Program, context: Context) -> None:
        """Raise what `run` would raise for want of data or labels."""
        subject = _Subject.of(program, context)
        self.criterion.ready(self._score.setting(subject.program, subject.context))

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the fact `class_evidence`: group -> [units, classes]. Raises as `score` does."""
        subject = _Subject.of(program, context)
        setting = self._score.setting(subject.program, subject.context)
        assert isinstance(self.criterion, ClassEvidence), "the plan's value is held to it"
        found = self.criterion.tables(setting)
        sizes = {group.name: group.size for group in self._score.setting(program, context).groups}
        table = ClassTable({name: subject.widened(each) for name, each in found.items() if name in sizes})
        table.titles, table.kept = subject.titles, subject.kept
        notes = [*subject.notes, *_unseen(table, setting, subject.columns)]
        notes += [Note(name, f"criterion {self.criterion.name} says nothing about it") for name in sizes - table.keys()]
        labels = {name: _counted(each) for name, each in table.items()}
        details = {"labels": labels, **({"kept": list(table.kept)} if table.kept else {})}
        attached = _attachments(table) if context.round is None or not context.round.index else ()
        return PassResult(program.with_facts(class_evidence=table), tuple(notes), details, attachments=attached)

    @property
    def _score(self) -> Score:
        """The pass that looks at the same data by the same criterion."""
        said = {key: getattr(self, key) for key in self.model_fields_set}
        return Score.model_validate({"criterion": self.criterion, **said})

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """A lock needs no evidence: the selection is spelled out."""
        return ()


def _counted(table: FloatArray) -> dict[str, int]:
    """Class -> how many units have it as their label; those without are left out."""
    labels = unit_labels(table)
    return {str(y): int(count) for y, count in enumerate(np.bincount(labels[labels >= 0])) if count}


def _unseen(table: ClassTable, setting: Setting, columns: Sequence[int]) -> list[Note]:
    """Notes on classes without a sample, of `columns` if there are any, or else of all.

    Raises `DataError` where the plan keeps one of them.
    """
    first = next(iter(table.values()), None)
    if first is None:
        return []
    if table.kept:
        check_seen(table, first, table.kept, setting)
    looked = columns or range(first.shape[1])
    named = table.titles or tuple(map(str, range(first.shape[1])))
    return [Note(f"class {named[y]}", "has no sample among those looked at") for y in missing(first, looked)]


def _attachments(table: ClassTable) -> tuple[Attachment, ...]:
    """The table as CSV, and as a heat map."""
    if not table:
        return ()
    from prunec.passes.criteria.class_pictures import heat_map, table_csv  # noqa: PLC0415  (imports matplotlib)

    caption = (
        "A row for each class and a column for each unit, sorted by the class that it has most to do with; 1 is what a "
        "unit of the group has to do with that class in the mean."
    ) + (" The classes that are kept stand in bold." if table.kept else "")
    return (
        Attachment("class_evidence.csv", table_csv(table).encode()),
        Attachment("class_evidence.png", heat_map(table), "Which classes the units drive", caption),
    )


# -- what is looked at -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """The program that is asked, its data, and what its classes are called."""

    program: Program
    context: Context
    titles: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()
    notes: tuple[Note, ...] = ()
    columns: tuple[int, ...] = ()
    """Of a program that has lost classes: the original's number of each that is left."""

    @staticmethod
    def of(program: Program, context: Context) -> _Subject:
        """The original with all its classes, where the plan keeps some and nothing else has changed; or the program."""
        kept = context.kept
        if kept is None or context.complete is None:
            return _Subject(program, context)
        names = dict(zip(kept.kept, kept.titles, strict=True))
        titles = tuple(names.get(y, str(y)) for y in range(kept.of))
        if not _is_same(program, context.complete):
            note = Note("class_evidence", "the network has changed: it is told of the classes that are left alone")
            return _Subject(program, context, titles, kept.kept, (note,), kept.kept)
        data = context.data
        if data is not None:
            every = KeptClasses(tuple(range(kept.of)), kept.of, (), kept.ignored)
            data = replace(Data.of(data), through=partial(_with_classes, every))
        whole = replace(context, data=data, kept=None, complete=None)
        return _Subject(context.complete, whole, titles, kept.kept)

    def widened(self, table: FloatArray) -> FloatArray:
        """A table with a column for each class of the original."""
        if not self.columns:
            return table
        found = np.full((len(table), len(self.titles)), np.nan)
        found[:, list(self.columns)] = table
        return found


def _with_classes(every: KeptClasses, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The samples that have a class."""
    return (mine for batch in batches if (mine := every.pick(batch)) is not None)


def _is_same(program: Program, complete: Program) -> bool:
    """Whether a program is the original but for the classes: the same groups may be cut, and the same values."""
    groups = analyse(complete).groups
    free = [group for group in analyse(program).groups.values() if group.free.any()]
    sizes = all(group.name in groups and groups[group.name].size == group.size for group in free)
    return sizes and _values_agree(program.tensors, complete.tensors)


def _values_agree(tensors: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether all tensors of the same shape hold the same, and none is new."""
    pairs = [(tensor, others.get(name)) for name, tensor in tensors.items()]
    return all(b is not None and (a.shape != b.shape or a is b or torch.equal(a, b)) for a, b in pairs)
