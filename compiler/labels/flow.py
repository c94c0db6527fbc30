"""Channel labels: which positions of which parameters belong together, found by letting labels flow like data.

Every tensor value carries *fields*: integer arrays of the value's rank, of size 1 along every dimension where they
don't vary. Element (n, c, h, w) of a value with the field of shape [1, C, 1, 1] carries the label `field[0, c, 0, 0]`.
A value may carry several fields along different dimensions (a weight that is itself a value has one along each), and no
field at all (the image, a constant).

    conv1 writes      [1, 8, 1, 1]   labels 0..7
    relu  passes      [1, 8, 1, 1]   the same array
    cat   with image  [1, 11, 1, 1]  labels 0..7, FIXED, FIXED, FIXED
    conv2 reads       weight[1] is bound to those eleven, and writes labels 8..

What the rules of `ops/` report is only collected here: pairs of labels that must be removed together, labels that may
not be removed, blocks that must stay rectangular or balanced, and the axis that each array of labels is bound to.
`groups.analysis.solve` solves it all at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.granularity import Block
from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.compiler.labels.fields import compress, overlap
from prunec.compiler.labels.known import Known
from prunec.compiler.labels.parameter_free import ParameterFree

FIXED = -1
"""The label of a position that is never removed: the image's, a constant's."""

Fields = tuple[IntArray, ...]
Labelled = Any
"""What a node carries: `Fields` for a tensor, a list of `Labelled` for a tuple, `None` for anything else."""


class Pair(NamedTuple):
    """Two arrays of labels, broadcast against each other, that node `cause` couples element by element."""

    left: IntArray
    right: IntArray
    cause: str


@dataclass(frozen=True, slots=True)
class Meeting:
    """A grid of labels, and labels along some of its dimensions alone (a line), that node `cause` combines.

    The grid loses what the line does, for instance the same position of every head, or it loses whole slices across the
    line, such as heads, and the line stays. What else is known of the grid decides (`groups/blocks.py`).
    """

    grid: IntArray
    line: IntArray
    cause: str


class Counted(NamedTuple):
    """Labels that may not be merged, and why. With `inside`, of each row [rows, positions] only those of several units
    in it: what is contracted inside one unit, such as a head's width, comes whole or not at all."""

    labels: IntArray
    reason: str
    inside: bool = False
    weight: Axis | None = None
    """What they are multiplied with and added up: where it is a weight alone, its columns can be added instead."""


class Pin(NamedTuple):
    """Labels that may not be removed, and why."""

    labels: IntArray
    reason: str


class Binding(NamedTuple):
    """An axis and the label of each of its positions, flat, as node `cause` binds them.

    `role` is what the axis does with channels: `writer` (produces them), `reader` (consumes them), `carrier` (belongs
    to a layer that passes them on, as a norm's scale does) or `buffer` (a buffer that is itself a value).
    """

    axis: Axis
    labels: IntArray
    role: str
    cause: str


@dataclass(frozen=True, slots=True)
class Least:
    """Labels of which at least `count` must stay, and why a unit stays where all of them must."""

    labels: IntArray
    count: int
    reason: str


class Product(NamedTuple):
    """Multiply-accumulates of a node: `coefficient` times the number of kept positions of each array in `widths`."""

    node: str
    coefficient: float
    widths: tuple[IntArray, ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """A node that gives `source.index_select(dim, order)`, whatever operations compute it: views, a shuffle, an index.

    Where these don't fit what is left of the source, an `index_select` takes their place.
    """

    source: fx.Node
    dim: int
    order: IntArray
    inner: tuple[fx.Node, ...] = ()
    """The nodes between the two, which go with the operations; so what they carry needn't stay rectangular."""
    blocks: tuple[IntArray, ...] | None = None
    """The fields that must stay rectangular for the operations to fit; None where they never fit once the source has
    lost anything: places are literals."""


@dataclass(frozen=True, slots=True)
class Pick:
    """An operand that no parameter writes, without labels along `dim`: once units are removed, its reader takes from it
    the positions that are left of `labels`, one a position of `dim`."""

    source: fx.Node
    dim: int
    labels: IntArray


@dataclass(frozen=True, slots=True)
class Incoming:
    """A node that selects the channels that it reads: along `dim` of `source` it has labels of its own, so that it may
    lose a position that the source keeps for others."""

    node: fx.Node
    source: fx.Node
    dim: int
    axis: Axis
    """The first axis behind the node that has one position for each channel, or more: a norm's scale, or a weight."""
    name: str
    """What its units are called after."""
    names: tuple[str, ...]
    """What a plan may call it by: the modules that the channels run through behind the node."""
    useless: str = ""
    """Why nothing is gained if it selects by itself; empty where something is."""
    held: str = ""
    """A node that reads the source whole: where this one selects, what the source could lose stays for that."""


@dataclass
class Flow:
    """What flowing the labels through a program has found; filled by the rules, solved by `groups.analysis.solve`."""

    program: Program
    incoming: Mapping[fx.Node, Incoming] = field(default_factory=dict)
    """The nodes that select what they read."""
    classes: frozenset[fx.Node] = frozenset()
    """Outputs whose positions along dimension 1 are classes, which may go."""
    renormalised: frozenset[fx.Node] = frozenset()
    """Softmaxes of classes, which are taken over those that are left."""
    values: dict[fx.Node, Labelled] = field(default_factory=dict)
    """Node -> what it carries."""
    selected: dict[fx.Node, Fields] = field(default_factory=dict)
    """For each node of `incoming`, its source's fields as it reads them."""
    mixed: dict[fx.Node, list[IntArray]] = field(default_factory=dict)
    """Node -> labels that its rule has pinned, counted or put in a block: these don't stand for themselves there. Found
    where a plan asks for readers that select."""
    pairs: list[Pair] = field(default_factory=list)
    meetings: list[Meeting] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    blocks: list[tuple[IntArray, str]] = field(default_factory=list)
    """Fields along several dimensions, of which what is left must be rectangular, and the nodes that give them."""
    balanced: list[tuple[IntArray, str]] = field(default_factory=list)
    """Labels [rows, positions] of which every row must lose the same number, and the node that asks for it."""
    gathers: dict[fx.Node, Gather] = field(default_factory=dict)
    """The nodes that an `index_select` may stand for."""
    picks: dict[fx.Node, tuple[Pick, ...]] = field(default_factory=dict)
    """The node that reads them -> its picks."""
    divided: dict[str, Block] = field(default_factory=dict)
    """Node -> the block whose granularity is decided there."""
    grids: dict[str, tuple[IntArray, ...]] = field(default_factory=dict)
    """Node -> the labels of the block that is divided there."""
    covers: list[IntArray] = field(default_factory=list)
    """Labels of which one must stay: each piece of a split keeps a channel."""
    least: list[Least] = field(default_factory=list)
    """Labels of which several must stay."""
    counted: list[Counted] = field(default_factory=list)
    """Labels whose *number* matters (statistics, sums of products): they may be removed, but not merged."""
    weights: dict[Axis, list[fx.Node]] = field(default_factory=dict)
    """Axis of a parameter -> the nodes that use it as a weight along it (see `weight_along`)."""
    reading: set[Axis] = field(default_factory=set)
    """Those of them along which the parameter is used in no other way. They are bound as writers; what another axis
    writes they read, as a linear layer's columns do."""
    by_group: set[Axis] = field(default_factory=set)
    """Input axes of grouped convolutions that lose whole groups, so that a group's width stays."""
    bindings: dict[Axis, Binding] = field(default_factory=dict)
    by_module: set[Axis] = field(default_factory=set)
    """Axes that a leaf module's rule has bound: what the module does with the others isn't known."""
    macs: list[Product] = field(default_factory=list)
    owners: list[tuple[int, Axis | None]] = field(default_factory=list)
    """(first label, axis) of each run of fresh labels, in rising order."""
    loose: list[range] = field(default_factory=list)
    """Runs of labels of copies that aren't zeros (see `loosen`): no sum may lose one while other terms of it stay."""
    blanks: dict[fx.Node, fx.Node | None] = field(default_factory=dict)
    """Zeros that the graph makes, of which nobody misses one that goes -> the zeros that a node converts to these."""
    count: int = 0
    """How many labels there are: the next fresh one."""
    trial: bool = False
    """Whether this only tries what operations do to made-up labels (`ops/shuffle.py`)."""
    _squashed: dict[int, list[tuple[IntArray, IntArray]]] = field(default_factory=dict)
    """First label of a run -> grids of its labels, and the slice of each that all its slices were unified with."""
    _subjects: dict[str, IntArray] = field(default_factory=dict)
    """What `same_width` has met first, by subject."""
    _flats: dict[int, tuple[IntArray, IntArray]] = field(default_factory=dict)
    """id of a field -> (the field, its flat array); the field is held, so that its id stays its own."""
    _spreads: dict[tuple[int, int, int], tuple[IntArray, IntArray]] = field(default_factory=dict)
    """(id of a flat array, rank, dimension) -> (the flat array, its field)."""

    # -- what rules say --------------------------------------------------------------------------------------------

    def fresh(self, size: int, owner: Axis | None = None) -> IntArray:
        """`size` new labels, flat, of the axis `owner`. A single position can't be removed, so its label is FIXED; the
        last one of an axis that had others keeps a label, so that its group is still there to be named."""
        if size == 1 and owner not in self.program.origin:
            return np.full(1, FIXED, dtype=np.int64)
        self.owners.append((self.count, owner))
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def own(self, size: int) -> IntArray:
        """`size` new labels, flat, that belong to no parameter: of positions that the graph makes itself (padding,
        zeros, copies).

        Such a position goes with what it meets; so, unlike a `fresh` one, even a single one gets a label.
        """
        self.count += size
        if size:
            self.owners.append((self.count - size, None))
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def loosen(self, labels: IntArray) -> None:
        """Mark `own` labels, one run of them, as those of copies that aren't zeros: a sum over them would miss one.

        Operations that don't carry copies (`Row.carries_copies`), and sums, pin such labels (`broadcast.pin_loose`).
        """
        self.loose.append(range(int(labels.min()), int(labels.max()) + 1))

    def is_settled(self, labels: IntArray) -> bool:
        """Whether each of a field's `own` labels has been unified with one that isn't, as those of zeros are that
        channels are written into."""
        waiting, low, high = np.unique(labels), int(labels.min()), int(labels.max())
        for pair in self.pairs:
            for mine, other in ((pair.left, pair.right), (pair.right, pair.left)):
                if low <= int(mine.max()) and int(mine.min()) <= high and not self.is_own(other):
                    there = np.broadcast_to(mine, np.broadcast_shapes(mine.shape, other.shape))
                    channels = np.broadcast_to(other, there.shape) != FIXED
                    waiting = np.setdiff1d(waiting, there[channels])
        return not waiting.size

    def write(self, axis: Axis, size: int, node: fx.Node, role: str = "writer") -> IntArray:
        """The labels of an axis that produces channels, flat: fresh ones at its first use, the same ones at every
        other."""
        self._note(axis, node)
        bound = self.bindings.get(axis)
        if bound is None:
            bound = self.bindings[axis] = Binding(axis, self.fresh(size, axis), role, node.name)
        return bound.labels

    def bind(self, axis: Axis, labels: IntArray, node: fx.Node, role: str = "reader") -> None:
        """Bind an axis to the flat labels that arrive at a node; if it is bound already, old and new labels unify."""
        self._note(axis, node)
        bound = self.bindings.get(axis)
        if bound is None:
            self.bindings[axis] = Binding(axis, labels, role, node.name)
        elif bound.labels is not labels:
            self.unify(bound.labels, labels, node)

    def _note(self, axis: Axis, node: fx.Node) -> None:
        if node.op == "call_module":
            self.by_module.add(axis)

    def same_width(self, subject: str, labels: IntArray, node: fx.Node) -> None:
        """Unify the labels that `subject` meets in all its calls; pin them where these differ in number.

        For a size that no tensor shows, such as that of a norm without scale and shift: there is no axis to `bind`, but
        the module can be resized only once. `subject` names the module and the dimension.
        """
        first = self._subjects.setdefault(subject, labels)
        if first.shape == labels.shape:
            self.unify(first, labels, node)
        else:
            self.pin_all((first, labels), f"has one of several widths at {node.name}")

    def unify(self, left: IntArray, right: IntArray, node: fx.Node) -> None:
        """Labels that meet, broadcast against each other, go together or not at all; what meets a FIXED position is
        pinned."""
        if left is not right:
            self.pairs.append(Pair(left, right, node.name))

    def meet(self, grid: IntArray, line: IntArray, node: fx.Node) -> None:
        """Of two fields of the same rank, `line` varies along some of the dimensions alone along which `grid` does: see
        `Meeting`."""
        self.meetings.append(Meeting(grid, line, node.name))

    def pin(self, labels: IntArray, reason: str) -> None:
        """These labels may not be removed; `reason` is shown to the user."""
        self.pins.append(Pin(labels, reason))

    def pin_all(self, fields: Iterable[IntArray], reason: str) -> None:
        """None of the fields' labels may be removed."""
        for labels in fields:
            self.pin(labels, reason)

    def weight_along(self, value: object, dim: int, node: fx.Node) -> Axis | None:
        """The axis along which a node multiplies what arrives with a value, and adds it up, where the value is a
        parameter itself."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        tensor = self.program.state.get(str(value.target))
        uses = sum(each is value for each in (*node.args, *node.kwargs.values()))
        if not isinstance(tensor, nn.Parameter) or uses != 1:
            return None
        axis = Axis(str(value.target), dim % tensor.ndim)
        self.weights.setdefault(axis, []).append(node)
        return axis

    def count_matters(
        self, labels: IntArray, reason: str, along: int | None = None, weight: Axis | None = None
    ) -> None:
        """These labels may be removed, but not merged: the node counts or multiplies channels, so that fewer of them
        with added weights would give another result. It does so `along` a dimension, where one is given: then a unit
        that has all positions of it, such as a head with its width, may be merged with another. So may all, where it
        multiplies them with a `weight` that is nothing else (see `weight_along`)."""
        if along is None:
            self.counted.append(Counted(labels, reason, weight=weight))
        else:
            rows = np.moveaxis(labels, along, -1).reshape(-1, labels.shape[along])
            self.counted.append(Counted(rows, reason, True, weight))

    def balance(self, rows: IntArray, node: fx.Node) -> None:
        """Every row of the labels [rows, positions] must lose equally many: these are groups of a grouped layer.

        Where some positions are FIXED, every row loses the same positions.
        """
        if bool((rows == FIXED).any()):
            self.unify(rows, rows[:1], node)
        else:
            self.balanced.append((rows, node.name))

    def divide(
        self, kind: str, node: str, shape: str, names: Iterable[str], fallback: str, labels: Sequence[IntArray] = ()
    ) -> str:
        """Decide the granularity of the block at a node, and note it in `divided`, and its `labels` in `grids`; returns
        the choice.

        The plan's choice for this kind of block (`CHOICES`) counts if one of its patterns fits `names` or the node,
        else `fallback`. `shape` describes the block in words.
        """
        known = (*dict.fromkeys(names), node)
        choice = self.program.granularity.choice(kind, known) or fallback
        self.divided[node] = Block(kind, node, shape, known, choice)
        self.grids[node] = tuple(labels)
        return choice

    def settle(self, node: str, choice: str) -> None:
        """Correct the choice that `divide` noted, where the operation at the node can't be divided as the plan asks."""
        self.divided[node] = replace(self.divided[node], choice=choice)

    # -- what rules ask --------------------------------------------------------------------------------------------

    def fields(self, value: object) -> Fields:
        """The fields of an argument: () unless it is a node with a tensor that carries labels."""
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, tuple) else ()

    def remarked(self) -> tuple[int, ...]:
        """How much rules have said so far of labels that don't stand for themselves."""
        return len(self.pins), len(self.counted), len(self.balanced), len(self.blocks), len(self.meetings)

    def remarks(self, since: tuple[int, ...]) -> list[IntArray]:
        """The labels that rules have said so of since then."""
        pins, counted, balanced, blocks, meetings = since
        arrays = [pin.labels for pin in self.pins[pins:]] + [each.labels for each in self.counted[counted:]]
        arrays += [labels for labels, _ in (*self.balanced[balanced:], *self.blocks[blocks:])]
        return arrays + [side for meeting in self.meetings[meetings:] for side in (meeting.grid, meeting.line)]

    def fields_at(self, value: object, node: fx.Node) -> Fields:
        """The fields of an argument as `node` reads it: its own ones where it selects by itself."""
        entry = self.incoming.get(node)
        return self.selected[node] if entry is not None and value is entry.source else self.fields(value)

    def read_as(self, value: fx.Node, node: fx.Node) -> Labelled:
        """What an argument of `node` carries, as `node` reads it."""
        entry = self.incoming.get(node)
        return self.selected[node] if entry is not None and value is entry.source else self.values.get(value)

    def selections(self) -> Iterator[tuple[Incoming, IntArray, IntArray]]:
        """Each node that selects, the labels along its source's channels, and its own, both flat."""
        for entry in self.incoming.values():
            mine = [labels for labels in self.selected[entry.node] if labels.shape[entry.dim] > 1]
            shared = [labels for labels in self.fields(entry.source) if labels.shape[entry.dim] > 1]
            if mine:
                yield entry, self.flat(shared[0]), self.flat(mine[0])

    def note_incoming(self, entry: Incoming) -> None:
        """Note in `divided` whether a node selects what it reads."""
        own = entry.node in self.incoming
        size = shape_of_argument(entry.source)[entry.dim]
        known = (*entry.names, entry.name)
        shape = f"the {size} channels of {entry.source.name}"
        self.divided[entry.name] = Block("incoming", entry.name, shape, known, "own" if own else "shared")
        labels = [labels for labels in self.selected.get(entry.node, ()) if labels.shape[entry.dim] > 1]
        self.grids[entry.name] = tuple(labels)

    @contextmanager
    def read_by(self, node: fx.Node) -> Iterator[None]:
        """A context in which the source of a node that selects by itself carries the node's own labels."""
        entry = self.incoming.get(node)
        if entry is None:
            yield
            return
        shared = self.values[entry.source]
        mine = next(labels for labels in shared if labels.shape[entry.dim] > 1).reshape(-1)
        self.selected[node] = (
            *(labels for labels in shared if labels.shape[entry.dim] == 1),
            *self.result(self._renewed(mine, entry.axis), shared[0].ndim, entry.dim),
        )
        self.values[entry.source] = self.selected[node]
        yield
        self.values[entry.source] = shared

    def _renewed(self, labels: IntArray, owner: Axis) -> IntArray:
        """New labels in place of old ones: equal ones stay equal, FIXED ones become different ones."""
        apart = np.where(labels == FIXED, -2 - np.arange(labels.size), labels)
        _, first, place = np.unique(apart, return_index=True, return_inverse=True)
        rank = np.empty(first.size, dtype=np.int64)
        rank[np.argsort(first)] = np.arange(first.size)
        new = self.fresh(first.size, owner)
        return new if first.size == labels.size else new[rank[place.reshape(-1)]]

    def along(self, value: object, dim: int, node: fx.Node) -> tuple[IntArray, Fields]:
        """The labels along one dimension, flat (FIXED where it has none), and the fields that don't vary along it.

        A field that varies along `dim` and along others can only be read when all that share a position of `dim` go
        together, so these are unified. Of several that vary along it, one is read, and the others are pinned.
        """
        return self.along_of(self.fields(value), shape_of_argument(value), dim, node)

    def along_of(self, fields: Fields, shape: Sequence[int], dim: int, node: fx.Node) -> tuple[IntArray, Fields]:
        """`along` of a value of that shape, by its fields."""
        dim %= len(shape)
        if len(fields) == 1 and fields[0].size == fields[0].shape[dim] > 1:
            return self.flat(fields[0]), ()
        mine = [labels for labels in fields if labels.shape[dim] > 1]
        rest = tuple(labels for labels in fields if labels.shape[dim] == 1)
        if not mine:
            return np.full(shape[dim], FIXED, dtype=np.int64), rest
        self.pin_all(mine[1:], f"two kinds of channels share a dimension at {node.name}")
        return self.collapse(mine[0], dim, node), rest

    def collapse(self, labels: IntArray, dim: int, node: fx.Node) -> IntArray:
        """A field's labels along `dim`, flat; all labels that share a position of `dim` are unified."""
        if labels.size == labels.shape[dim]:
            return self.flat(labels)
        first = labels[tuple(slice(None) if d == dim else slice(0, 1) for d in range(labels.ndim))]
        self.squash(labels, first, node)
        return np.ascontiguousarray(first).reshape(-1)

    def squash(self, grid: IntArray, first: IntArray, node: fx.Node) -> None:
        """Unify all labels of a grid that differ along the dimensions where `first`, its slice at position 0 of them,
        has size 1."""
        self.unify(grid, np.broadcast_to(first, grid.shape), node)
        self._squashed.setdefault(self._run_of(int(grid.max()))[0], []).append((grid, first))

    def squashed(self, grid: IntArray) -> IntArray:
        """A grid as `squash` has left it so far: labels that it has unified are the same. One with FIXED ones stays."""
        found = self._squashed.get(self._run_of(int(grid.max()))[0], ())
        if not found or bool((grid == FIXED).any()):
            return grid
        low, high = int(grid.min()), int(grid.max())
        names = np.arange(low, high + 1)
        for whole, first in found:
            old, new = whole.ravel(), np.broadcast_to(first, whole.shape).ravel()
            inside = (old >= low) & (old <= high) & (new >= low) & (new <= high)
            names[old[inside] - low] = names[new[inside] - low]
        return names[grid - low]

    def result(self, labels: IntArray, rank: int, dim: int) -> Fields:
        """Flat labels as the fields of a value of that rank that varies along `dim` only; () where all are FIXED.

        A single label is pinned: a dimension of size 1 carries no field, so nothing behind it would know of the
        removal.
        """
        if labels.size == 1 or (labels[0] == FIXED and bool((labels == FIXED).all())):
            if labels.size == 1 and labels[0] != FIXED:
                self.pin(labels, "a single channel stands alone")
            return ()
        return (self._spread(labels, rank, dim % rank),)

    def _spread(self, flat: IntArray, rank: int, dim: int) -> IntArray:
        """Flat labels as a field. The same array gives the same field: identity is what makes long chains cheap."""
        key = (id(flat), rank, dim)
        if key not in self._spreads:
            shape = [1] * rank
            shape[dim] = flat.size
            spread = flat.reshape(shape)
            self._spreads[key] = (flat, spread)
            self._flats[id(spread)] = (spread, flat)
        return self._spreads[key][1]

    def flat(self, labels: IntArray) -> IntArray:
        """A field that varies along one dimension, as the flat array that it was made of."""
        if id(labels) not in self._flats:
            self._flats[id(labels)] = (labels, labels.reshape(-1))
        return self._flats[id(labels)][1]

    def moved(self, fields: Iterable[IntArray], node: fx.Node) -> Fields:
        """The fields of a value whose data a node has moved, from label arrays of the value's rank, written out or not.

        Each is compressed. Those that are FIXED throughout are left out, a single label is pinned, and fields that vary
        along several dimensions are noted as blocks. What is left varies along different dimensions: see `separate`.
        """
        kept = []
        for raw in fields:
            labels = compress(raw)
            if labels.size == 1:
                if labels.item() != FIXED:
                    self.pin(labels.reshape(-1), f"{node.name} picks a single channel")
                continue
            if bool((labels == FIXED).all()):
                continue
            if sum(size > 1 for size in labels.shape) > 1:
                self.blocks.append((labels, node.name))
            kept.append(labels)
        return self.separate(kept, node)

    def separate(self, fields: Sequence[IntArray], node: fx.Node) -> Fields:
        """The fields of a value without those that overlap others, so that a position goes with one label alone.

        Fields that vary along different dimensions all stay. Of those that overlap, one stays, the first that a
        parameter or buffer writes; the others are pinned and left out.
        """
        if len(fields) < 2:
            return tuple(fields)
        taken: list[IntArray] = []
        for labels in sorted(fields, key=lambda labels: not self._written(labels)):
            if any(overlap(labels, other) for other in taken):
                self.pin(labels, f"two kinds of channels share a dimension at {node.name}")
            else:
                taken.append(labels)
        return tuple(labels for labels in fields if any(labels is other for other in taken))

    def _written(self, labels: IntArray) -> bool:
        """Whether an axis owns a field's last label: a parameter's or buffer's, not one of the graph's `own`."""
        return self._run_of(int(labels.max()))[1] is not None

    def _run_of(self, label: int) -> tuple[int, Axis | None]:
        """The first label of the run that a label is in, and the axis that owns the run; (FIXED, None) for FIXED."""
        return self.owners[bisect_right(self.owners, label, key=_first_label) - 1] if label != FIXED else (FIXED, None)

    def writers(self, labels: IntArray) -> list[str]:
        """The names of the modules and tensors that the labels were made for: what a plan may call a block by."""
        starts = np.array([start for start, _ in self.owners], dtype=np.int64)
        runs = np.unique(np.searchsorted(starts, labels[labels != FIXED], side="right") - 1)
        axes = [axis for axis in (self.owners[run][1] for run in runs) if axis is not None]
        return [name for axis in axes for name in (axis.owner, axis.tensor) if name]

    def constant(self, value: object) -> Any:
        """The real value of an argument that doesn't depend on the input: a literal, a number, a buffer of whole
        numbers or truth values, or what is computed of buffers; else None."""
        if not isinstance(value, fx.Node):
            return value
        if value.op == "get_attr":
            found = self.program.state.get(str(value.target))
            return found if isinstance(found, torch.Tensor) and not found.is_floating_point() else None
        known = value.meta.get("val")
        return self.known.value(value) if isinstance(known, torch.Tensor) else known

    def is_own(self, labels: IntArray) -> bool:
        """Whether a field's labels are of one run of `own` ones."""
        start, axis = self._run_of(int(labels.max()))
        return axis is None and int(labels.min()) >= start > FIXED

    @cached_property
    def known(self) -> Known:
        """The program's values that don't depend on its inputs."""
        return Known(self.program)

    @cached_property
    def parameter_free(self) -> ParameterFree:
        """The program's values that no parameter writes."""
        return ParameterFree(self.program)


def _first_label(run: tuple[int, Axis | None]) -> int:
    return run[0]
