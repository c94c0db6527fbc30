"""Which classes a unit drives: evidence for each unit and class, and the importance of units for the classes that stay.

    class_weights    G[i, y] = mean_n sum over the filter's weights of | dP_y / dw |       (over images n of class y)
    class_maps       G[i, y] = mean_n sum over the filter's map of | dP_y / dz_n |

P_y is the probability, or the output as it is, of the image's own class; z is what the filter's layer gives. The
absolute value is taken of each image's gradient. A class with large gradients would own most units, so a column is
divided by its mean over the group's units before classes are compared. (Qin et al. 2018 find filters' classes by such
gradients.) One pass over the data gives the evidence of all layers and classes. Where several layers write a unit, as
in a residual stream, their evidence is summed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.compiler.data import Batch, Data
from prunec.compiler.errors import DataError, PassError
from prunec.compiler.groups.analysis import Group, Member
from prunec.compiler.groups.classes import gives_probabilities
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.program import Axis, FloatArray, IntArray, Note, Program
from prunec.compiler.ir.train_eval import in_eval
from prunec.compiler.task.outputs import Output, chosen, first_output
from prunec.passes.calibration.calibration import bytes_of_a_sample
from prunec.passes.criteria.activations import class_labels
from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Criterion, Found, Setting, numbers
from prunec.passes.criteria.class_tables import ClassTable, balanced, in_turn, missing, strongest
from prunec.passes.criteria.gates import Gates
from prunec.passes.criteria.layer_calls import LayerCall, calls_of, watched_calls
from prunec.passes.criteria.sample_gradients import SCRATCH, Part, absolute_sums
from prunec.passes.criteria.watching import evaluated, look_once
from prunec.passes.criteria.weights import Weighed, Weights

Row = tuple[str, str, IntArray, FloatArray]
"""A group, a source of evidence, units of the group, and their evidence [units, classes]."""


class ByClass(Criterion):
    """Scores of a table unit x class: what each unit has to do with the classes that stay."""

    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="the classes that stay, as the original numbers them; where none is named those that the plan "
        "keeps, or all",
        examples=[[0, 3, 7]],
    )
    balance: bool = Field(default=True, description="divide each class's evidence by its mean over the group's units")

    normalize: ClassVar[str] = "none"
    """Balanced evidence is in units of the group's mean, so that a threshold means the same for any classes."""
    aggregate: ClassVar[str] = "sum"

    def scored(self, table: FloatArray, wanted: Sequence[int], level: str) -> FloatArray:
        """A group's scores, [units], by its evidence for the classes that stay; NaN where it isn't known."""
        columns = (balanced(table) if self.balance else table)[:, wanted]
        if level == "filter":
            return strongest(columns)
        known = ~np.isnan(columns).any(1)
        found = np.full(len(columns), np.nan)
        found[known] = in_turn(columns[known])
        return found


class ClassEvidence(ByClass):
    """Evidence for classes from the gradients of the probability of each sample's class."""

    data: ClassVar[bool] = True

    level: Literal["filter", "balanced"] = Field(
        default="filter",
        description="`filter`: a unit's largest evidence for any class that stays; `balanced`: its place in an order "
        "in which each of them takes its best unit in turn",
    )
    of: Literal["probability", "logit"] = Field(
        default="probability", description="what is differentiated: the softmax of the output, or the output as it is"
    )

    def fits(self, setting: Setting, piece: Batch, outputs: Any) -> None:
        """Raise `DataError` where the samples have no classes that the model knows, `PassError` where it doesn't know
        those that stay."""
        scores, _ = judged(setting, outputs, piece)
        self._columns(setting, scores.shape[1])

    def _columns(self, setting: Setting, known: int) -> list[int]:
        """The columns of the classes that stay, of `known`. Raises `PassError` for a class that there isn't."""
        kept = setting.context.kept
        if self.classes is None:
            return list(range(known))
        found = []
        for index, each in enumerate(self.classes):
            keys = ("criterion", self.name, "classes", index)
            if kept is not None and each not in kept.kept:
                hint = f"the plan keeps {', '.join(kept.titles)}; the pass class_evidence looks at all classes"
                raise PassError(f"class {each} isn't among those that the plan keeps", keys=keys, hint=hint)
            if kept is None and each >= known:
                raise PassError(f"there is no class {each}: the model knows {known}, from 0", keys=keys)
            found.append(each if kept is None else kept.kept.index(each))
        return found

    @abstractmethod
    def gathered(self, setting: Setting) -> Iterator[Row]:
        """Mean evidence; a column is NaN where the data have no sample of the class."""

    def tables(self, setting: Setting) -> ClassTable:
        """Each group's evidence, before any balancing; NaN where nothing is known."""
        found: dict[str, list[tuple[str, IntArray, FloatArray]]] = {}
        for group, source, units, table in self.gathered(setting):
            found.setdefault(group, []).append((source, units, table))
        sizes = {group.name: group.size for group in setting.groups}
        made = ClassTable({name: _joined(setting, sizes[name], parts) for name, parts in found.items()})
        kept = setting.context.kept
        made.titles = () if kept is None else kept.titles
        return made

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """One piece of evidence for each group. Raises `DataError` where the data lack a class that is named; where
        none is, those that they have count."""
        tables = self.tables(setting)
        for name, table in tables.items():
            wanted = self._columns(setting, table.shape[1])
            if self.classes is not None or setting.context.kept is not None:
                check_seen(tables, table, wanted, setting)
            lacking = missing(table, wanted)
            setting.memo["notes"] = [Note(f"class {each}", "has no sample among those looked at") for each in lacking]
            seen = [each for each in wanted if each not in lacking]
            yield name, found_of(self.scored(table, seen, self.level))

    def target(self, setting: Setting, outputs: Any, piece: Batch) -> Tensor:
        """The summed probabilities (or outputs) of the samples' own classes."""
        scores, labels = judged(setting, outputs, piece)
        of = self.of == "probability" and not _is_probability(setting)
        given = scores.softmax(1) if of else scores
        return given.gather(1, torch.from_numpy(labels).to(scores.device)[:, None]).sum()


def found_of(scores: FloatArray) -> Evidence:
    """Scores, [units], as evidence about those that are known."""
    known = np.flatnonzero(~np.isnan(scores))
    return Evidence("classes", known, scores[known])


def check_seen(tables: Mapping[str, FloatArray], table: FloatArray, wanted: Sequence[int], setting: Setting) -> None:
    """Raise `DataError` where the data that were looked at had no sample of a wanted class."""
    lacking = missing(table, wanted)
    if not lacking:
        return
    titles = tables.titles if isinstance(tables, ClassTable) else ()
    called = [titles[each] if titles else str(each) for each in lacking[:_TOLD]]
    more = f" and {len(lacking) - _TOLD} more" if len(lacking) > _TOLD else ""
    split, data = setting.calibration.split, setting.context.data
    raise DataError(
        f"what was looked at of the data's split '{split}' has no sample of class {', '.join(called)}{more}",
        at=None if data is None else Data.of(data).at,
        hint="look at more of them with 'samples', shuffle them, or name the classes that count with 'classes'",
    )


_TOLD = 5
"""How many classes an error names."""


# -- outputs and classes ---------------------------------------------------------------------------------------------


def judged(setting: Setting, outputs: Any, piece: Batch) -> tuple[Tensor, IntArray]:
    """The output [samples, classes] that the model is judged by, and the class of every sample.

    Raises `DataError` where there is no such output, or labels aren't classes that it knows.
    """
    name = _output(setting)
    if name is None:
        scores, labels = first_output(outputs, piece), piece.labels
    else:
        scores, labels = chosen(outputs, piece, name)
    classes = class_labels(replace(piece, labels=labels))
    shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.ndim < 2 or scores.shape[1] < 2 or scores[0, 0].numel() != 1:
        raise piece.place.fault(f"class evidence needs outputs [samples, classes], got {shape}")
    scores = scores.flatten(1)
    if len(scores) != len(classes):
        raise piece.place.fault(f"the model gives {shape} for {len(classes)} labels")
    beyond = classes[(classes < 0) | (classes >= scores.shape[1])]
    if beyond.size:
        known = f"the model knows {scores.shape[1]} classes, from 0"
        raise piece.place.fault(f"it has a sample of class {beyond[0]}; {known}")
    return scores, classes


def _output(setting: Setting) -> Output | None:
    """Which output is judged, where the plan says so."""
    context = setting.context
    return context.loss.output if context.metric.output is None else context.metric.output


def _is_probability(setting: Setting) -> bool:
    """Whether the judged output comes of a softmax already."""

    def found() -> bool:
        returned, name = output_of(setting.program.graph).args[0], _output(setting)
        leaf = chosen(returned, Batch(()), name)[0] if name is not None else None
        leaves = pytree.tree_leaves(in_eval(returned)) if leaf is None else [leaf]
        nodes = (x for x in leaves if isinstance(x, fx.Node) and isinstance(x.meta.get("val"), Tensor))
        node = next((x for x in nodes if x.meta["val"].is_floating_point()), None)
        return node is not None and gives_probabilities(setting.program, node)

    if "gives probabilities" not in setting.memo:
        setting.memo["gives probabilities"] = found()
    return bool(setting.memo["gives probabilities"])


# -- sums by class -----------------------------------------------------------------------------------------------------


@dataclass
class _Columns:
    """Sums by class: figures of samples are added to the column of the sample's class."""

    sums: Tensor | None = None
    """[positions, classes]"""

    def add(self, figures: Tensor, labels: IntArray, classes: int) -> None:
        """Figures [samples, positions]."""
        if self.sums is None:
            self.sums = figures.new_zeros(figures.shape[1], classes, dtype=torch.float64)
        self.sums.index_add_(1, torch.from_numpy(labels).to(figures.device), figures.T.double())

    def means(self, source: str, positions: int, counts: IntArray) -> FloatArray:
        """[positions, classes]: mean figures; zero where none came, NaN where there was no sample.

        Raises `PassError` where gradients are infinite or no numbers, and names `source`.
        """
        sums = np.zeros((positions, counts.size)) if self.sums is None else numbers(self.sums)
        if not np.isfinite(sums).all():
            raise PassError(f"{source}: gradients of the model's output are infinite or no numbers")
        return sums / np.where(counts > 0, counts, np.nan)


@dataclass
class _Samples:
    """The samples of each class, counted as they come by."""

    counts: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, setting: Setting, outputs: Any, piece: Batch) -> IntArray:
        """The classes of a piece's samples, which are counted."""
        scores, labels = judged(setting, outputs, piece)
        classes = scores.shape[1]
        found = np.bincount(labels, minlength=classes)
        self.counts = found if not self.counts.size else self.counts + found
        return labels


def _joined(setting: Setting, size: int, parts: list[tuple[str, IntArray, FloatArray]]) -> FloatArray:
    columns = [
        setting.join(size, [Evidence(source, units, table[:, y]) for source, units, table in parts])
        for y in range(parts[0][2].shape[1])
    ]
    return np.stack(columns, 1)


# -- by weights --------------------------------------------------------------------------------------------------------


class ClassWeights(ClassEvidence):
    """Evidence for classes from the gradients of a filter's own weights."""

    name: ClassVar[str] = "class_weights"

    def gathered(self, setting: Setting) -> Iterator[Row]:
        """From one run of all samples; the gradients of weights that no plain layer reads, from a run of each."""
        asked, tensors = Weights.of(setting).asked, setting.program.tensors
        calls = calls_of(setting.program)
        plain = [each for each in asked if _is_plain(each.member, setting.program, calls)]
        slow = _Slow.of(setting, [each for each in asked if each not in plain])
        wanted = {id(tensors[each.member.axis.tensor]): calls[id(tensors[each.member.axis.tensor])] for each in plain}
        columns = {each.member.axis: _Columns() for each in asked}
        read = {id(tensors[each.member.axis.tensor]) for each in plain if each.member.axis.dim}
        samples, scratch = _Samples(), _scratch(setting)
        reached: dict[int, list[Part]] = {}
        sums: dict[int, tuple[Tensor, Tensor]] = {}

        def show(call: LayerCall, source: Tensor, gradient: Tensor) -> None:
            number = id(tensors[call.weight])
            parts = reached.setdefault(number, [])
            parts.append((call, source, gradient))
            if len(parts) == len(wanted[number]):
                sums[number] = absolute_sums(reached.pop(number), scratch, both=number in read)

        module = watched_calls(evaluated(setting.program), [call for each in wanted.values() for call in each], show)
        size = 2 * bytes_of_a_sample(setting.program)
        for piece in setting.calibration.pieces(setting.program, setting.context, size):
            outputs = look_once(module, piece, lambda outputs, piece: self.target(setting, outputs, piece))
            labels = samples.add(setting, outputs, piece)
            sums.update({n: absolute_sums(parts, scratch, both=n in read) for n, parts in reached.items()})
            for axis in dict.fromkeys(each.member.axis for each in plain):
                if id(tensors[axis.tensor]) in sums:
                    columns[axis].add(sums[id(tensors[axis.tensor])][axis.dim], labels, samples.counts.size)
            for axis, figures in slow.figures(self, piece):
                columns[axis].add(figures, labels, samples.counts.size)
            reached.clear()
            sums.clear()
        for each in asked:
            axis = each.member.axis
            means = columns[axis].means(str(axis), setting.program.size(axis), samples.counts)
            yield each.group.name, str(axis), each.member.units, means[each.member.positions]


def _is_plain(member: Member, program: Program, calls: Mapping[int, Sequence[LayerCall]]) -> bool:
    return member.axis.dim < 2 and id(program.tensors[member.axis.tensor]) in calls


def _scratch(setting: Setting) -> int:
    """How many numbers may be computed at a time: a quarter of the plan's bound."""
    memory = setting.calibration.memory
    return SCRATCH if memory is None else max(1, min(SCRATCH, memory // 32))


@dataclass(frozen=True)
class _Slow:
    """Weights whose gradients take a run of each sample: those of recurrent layers, of embeddings, of products that a
    forward writes."""

    weights: Weights

    @staticmethod
    def of(setting: Setting, asked: Sequence[Weighed]) -> _Slow:
        alone = [replace(each, tensors=each.tensors[:1]) for each in asked]  # a filter's weights are not its bias
        return _Slow(Weights(setting, tuple(alone)))

    def figures(self, criterion: ClassEvidence, piece: Batch) -> Iterable[tuple[Axis, Tensor]]:
        """For each axis the summed absolute gradients of its positions, [samples, positions]."""
        weights, setting = self.weights, self.weights.setting
        if not weights.asked:
            return ()
        rows: dict[Axis, list[Tensor]] = {}
        for index in range(piece.count):
            one = piece[index : index + 1]
            found = weights.gradients(criterion.target(setting, one.through(weights.module), one))
            axes = {each.member.axis: each for each in weights.asked}
            for axis, each in axes.items():
                rows.setdefault(axis, []).append(each.rows(setting.program, found).abs().sum(1))
        return [(axis, torch.stack(each)) for axis, each in rows.items()]


# -- by maps -----------------------------------------------------------------------------------------------------------


class ClassMaps(ClassEvidence):
    """Evidence for classes from the gradients of what a filter gives."""

    name: ClassVar[str] = "class_maps"

    def gathered(self, setting: Setting) -> Iterator[Row]:
        """From one pass over the data, of what each layer gives that writes units; of groups that anything else writes,
        from a second one, of what is read of them."""
        written = _written(setting)
        groups = [group for group in setting.groups if _covered(group, written.get(group.name, ()))]
        rest = [group for group in setting.groups if group not in groups]
        if groups:
            yield from self._from_layers(setting, {group.name: written[group.name] for group in groups})
        if rest:
            yield from self._from_reads(replace(setting, groups=tuple(rest)))

    def _from_layers(
        self, setting: Setting, written: Mapping[str, Sequence[tuple[LayerCall, Member]]]
    ) -> Iterator[Row]:
        columns = {call: _Columns() for found in written.values() for call, _ in found}
        sums: dict[LayerCall, Tensor] = {}

        def show(call: LayerCall, read: Tensor, gradient: Tensor) -> None:
            sums[call] = call.sums(gradient.abs())

        module = watched_calls(evaluated(setting.program), list(columns), show)
        samples, size = _Samples(), bytes_of_a_sample(setting.program)
        for piece in setting.calibration.pieces(setting.program, setting.context, size):
            outputs = look_once(module, piece, lambda outputs, piece: self.target(setting, outputs, piece))
            labels = samples.add(setting, outputs, piece)
            for call, figures in sums.items():
                columns[call].add(figures, labels, samples.counts.size)
            sums.clear()
        for name, found in written.items():
            for call, member in found:
                means = columns[call].means(call.node.name, setting.program.size(call.written), samples.counts)
                yield name, call.node.name, member.units, means[member.positions]

    def _from_reads(self, setting: Setting) -> Iterator[Row]:
        gates = Gates.of(setting, joint=False)
        columns, samples = [_Columns() for _ in gates.sources], _Samples()
        target = lambda outputs, piece: self.target(setting, outputs, piece)  # noqa: E731
        for seen in gates.run(lambda read, value, gradient: read.sums(gradient.abs()), target):
            labels = samples.add(setting, seen.outputs, seen.piece)
            for column, terms in zip(columns, seen.terms, strict=True):
                column.add(terms, labels, samples.counts.size)
        for column, source in zip(columns, gates.sources, strict=True):
            means = column.means(source.name, source.units.size, samples.counts)
            for group in setting.groups:
                mine = np.flatnonzero((source.units >= group.start) & (source.units < group.start + group.size))
                if mine.size:
                    yield group.name, source.name, source.units[mine] - group.start, means[mine]


def _written(setting: Setting) -> Mapping[str, Sequence[tuple[LayerCall, Member]]]:
    """Group -> the calls of layers that write its units, each with the axis of its weight."""
    tensors, groups = setting.program.tensors, setting.groups
    members: dict[tuple[int, int], list[tuple[str, Member]]] = {}
    for group in groups:
        for member in () if group.incoming else group.writers:
            if member.role == "writer":
                members.setdefault((id(tensors[member.axis.tensor]), member.axis.dim), []).append((group.name, member))
    found: dict[str, list[tuple[LayerCall, Member]]] = {}
    for call in (call for calls in calls_of(setting.program).values() for call in calls):
        seen: set[tuple[str, Axis]] = set()
        for name, member in members.get((id(tensors[call.weight]), call.written.dim), ()):
            if not any(other == name for other, axis in seen if axis != member.axis):  # tied tensors have two names
                seen.add((name, member.axis))
                found.setdefault(name, []).append((call, member))
    return found


def _covered(group: Group, found: Sequence[tuple[LayerCall, Member]]) -> bool:
    """Whether layers write every unit of a group that may go."""
    units = np.zeros(group.size, dtype=bool)
    for _, member in found:
        units[member.units] = True
    return bool(units[group.free].all()) and bool(found)
