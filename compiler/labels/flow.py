"""Channel labels: which positions of which parameters belong together, found by letting labels flow like data.

Every tensor value carries *fields*: integer arrays of the value's rank, of size 1 along every dimension where they
don't vary. Element (n, c, h, w) of a value with the field of shape [1, C, 1, 1] carries the label `field[0, c, 0, 0]`.
A value may carry several fields along different dimensions (a weight that is itself a value has one along each), and no
field at all (the image, a constant).

    conv1 writes      [1, 8, 1, 1]   labels 0..7
    relu  passes      [1, 8, 1, 1]   the same array
    cat   with image  [1, 11, 1, 1]  labels 0..7, FIXED, FIXED, FIXED
    conv2 reads       weight[1] is bound to those eleven, and writes labels 8..

What the rules of `rules.py` report is only collected here: pairs of labels that must be removed together, labels that
may not be removed, blocks that must stay rectangular or balanced, and the axis that each array of labels is bound to.
`units.py` solves it all at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.granularity import Block
from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.compiler.labels.fields import compress, overlap
from prunec.compiler.labels.parameter_free import ParameterFree

FIXED = -1
"""The label of a position that is never removed: the image's, a constant's."""

Fields = tuple[IntArray, ...]
Labelled = Any
"""What a node carries: `Fields` for a tensor, a list of `Labelled` for a tuple, `None` for anything else."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two arrays of labels (broadcast against each other) that node `cause` couples, element by element."""

    left: IntArray
    right: IntArray
    cause: str


@dataclass(frozen=True, slots=True)
class Pin:
    """Labels that may not be removed, and why."""

    labels: IntArray
    reason: str


@dataclass(frozen=True, slots=True)
class Binding:
    """An axis and the label of each of its positions, as node `cause` binds them."""

    axis: Axis
    labels: IntArray
    role: str
    cause: str


@dataclass(frozen=True, slots=True)
class Product:
    """A cost of `coefficient` times the number of kept positions of each array in `widths`."""

    node: str
    coefficient: float
    widths: tuple[IntArray, ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """A value that holds the positions `order` of dimension `dim` of `source`, and nothing else is changed by the nodes
    between the two."""

    source: fx.Node
    dim: int
    order: IntArray
    inner: tuple[fx.Node, ...] = ()
    """The nodes between: what they carry needn't be rectangular."""
    blocks: tuple[IntArray, ...] | None = None
    """The labels that must stay rectangular, or else the operations can't be kept; None where they never are."""


@dataclass(frozen=True, slots=True)
class Pick:
    """Of `source`, which has no labels along `dim`, a node reads the positions that are left of `labels`."""

    source: fx.Node
    dim: int
    labels: IntArray


@dataclass
class Flow:
    """What flowing the labels through a program has found; filled by the rules, solved by `units.solve`."""

    program: Program
    values: dict[fx.Node, Labelled] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    blocks: list[tuple[IntArray, str]] = field(default_factory=list)
    balanced: list[tuple[IntArray, str]] = field(default_factory=list)
    """Labels [rows, positions] of which every row must lose the same number, and the node that asks for it."""
    gathers: dict[fx.Node, Gather] = field(default_factory=dict)
    """What may be written as a gather, and is where its operations don't fit what is left."""
    picks: dict[fx.Node, tuple[Pick, ...]] = field(default_factory=dict)
    """By the node that reads them."""
    divided: dict[str, Block] = field(default_factory=dict)
    """Node -> the block that is divided there."""
    covers: list[IntArray] = field(default_factory=list)
    counted: list[Pin] = field(default_factory=list)
    """Labels whose *number* matters (statistics over channels): they may be removed, but not merged."""
    by_group: set[Axis] = field(default_factory=set)
    """Input axes of grouped convolutions that lose whole groups, so that a group's width stays."""
    bindings: dict[Axis, Binding] = field(default_factory=dict)
    by_module: set[Axis] = field(default_factory=set)
    """Axes that a leaf module's rule has bound: what the module does with the others isn't known."""
    macs: list[Product] = field(default_factory=list)
    owners: list[tuple[int, Axis | None]] = field(default_factory=list)
    """(first label, axis) of each run of fresh labels, in rising order."""
    loose: list[range] = field(default_factory=list)
    """Labels of copies that aren't zeros: no sum may lose one while other terms of it stay."""
    count: int = 0
    trial: bool = False
    """Whether this only tries what operations do to made-up labels."""
    _subjects: dict[str, IntArray] = field(default_factory=dict)
    _flats: dict[int, tuple[IntArray, IntArray]] = field(default_factory=dict)
    _spreads: dict[tuple[int, int, int], tuple[IntArray, IntArray]] = field(default_factory=dict)

    # -- what rules say --------------------------------------------------------------------------------------------

    def fresh(self, size: int, owner: Axis | None = None) -> IntArray:
        """`size` new labels; FIXED where there is one position only, since that can't be removed."""
        if size == 1:
            return np.full(1, FIXED, dtype=np.int64)
        self.owners.append((self.count, owner))
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def write(self, axis: Axis, size: int, node: fx.Node, role: str = "writer") -> IntArray:
        """The labels of an axis that produces channels: fresh ones, or its first ones where it is used again."""
        self._note(axis, node)
        if axis not in self.bindings:
            self.bindings[axis] = Binding(axis, self.fresh(size, axis), role, node.name)
        return self.bindings[axis].labels

    def bind(self, axis: Axis, labels: IntArray, node: fx.Node, role: str = "reader") -> None:
        """Tie an axis to the labels that arrive; an axis that is bound already has its labels unified with them."""
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
        """What `subject` (a size that a module holds and no tensor shows) meets here is what it meets everywhere."""
        first = self._subjects.setdefault(subject, labels)
        if first.shape == labels.shape:
            self.unify(first, labels, node)
        else:
            self.pin_all((first, labels), f"has one of several widths at {node.name}")

    def unify(self, left: IntArray, right: IntArray, node: fx.Node) -> None:
        """Labels that meet must be removed together; one that meets a FIXED position may not be removed."""
        if left is not right:
            self.pairs.append(Pair(left, right, node.name))

    def pin(self, labels: IntArray, reason: str) -> None:
        """These labels may not be removed."""
        self.pins.append(Pin(labels, reason))

    def pin_all(self, fields: Iterable[IntArray], reason: str) -> None:
        """None of the fields' labels may be removed."""
        for labels in fields:
            self.pin(labels, reason)

    def count_matters(self, labels: IntArray, reason: str) -> None:
        """These labels may be removed, but merging them would change the result."""
        self.counted.append(Pin(labels, reason))

    def balance(self, rows: IntArray, node: fx.Node) -> None:
        """Every row must lose the same number; where one holds fixed positions, the same positions of each."""
        if bool((rows == FIXED).any()):
            self.unify(rows, rows[:1], node)
        else:
            self.balanced.append((rows, node.name))

    def divide(self, kind: str, node: str, shape: str, names: Iterable[str], fallback: str) -> str:
        """How the block at a node is divided: as the plan says, else by `fallback`."""
        known = (*dict.fromkeys(names), node)
        choice = self.program.granularity.choice(kind, known) or fallback
        self.divided[node] = Block(kind, node, shape, known, choice)
        return choice

    def settle(self, node: str, choice: str) -> None:
        """The block at a node is divided in another way than was asked for."""
        self.divided[node] = replace(self.divided[node], choice=choice)

    @cached_property
    def parameter_free(self) -> ParameterFree:
        """The values that no parameter writes."""
        return ParameterFree(self.program)

    # -- what rules ask --------------------------------------------------------------------------------------------

    def fields(self, value: object) -> Fields:
        """The fields of an argument: of a node that carries a tensor, else none."""
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, tuple) else ()

    def along(self, value: object, dim: int, node: fx.Node) -> tuple[IntArray, Fields]:
        """The labels along one dimension, flat, and the fields that don't vary along it.

        A field that varies along `dim` and along others can only be read when all that share a position of `dim` go
        together, so these are unified. Of several that vary along it, one is read, and the others are pinned.
        """
        shape = shape_of_argument(value)
        dim %= len(shape)
        mine = [labels for labels in self.fields(value) if labels.shape[dim] > 1]
        rest = tuple(labels for labels in self.fields(value) if labels.shape[dim] == 1)
        if not mine:
            return np.full(shape[dim], FIXED, dtype=np.int64), rest
        self.pin_all(mine[1:], f"two kinds of channels share a dimension at {node.name}")
        return self.collapse(mine[0], dim, node), rest

    def collapse(self, labels: IntArray, dim: int, node: fx.Node) -> IntArray:
        """The flat labels along `dim`, with everything that shares a position of it unified."""
        if labels.size == labels.shape[dim]:
            return self.flat(labels)
        first = labels[tuple(slice(None) if d == dim else slice(0, 1) for d in range(labels.ndim))]
        self.unify(labels, np.broadcast_to(first, labels.shape), node)
        return np.ascontiguousarray(first).reshape(-1)

    def own(self, size: int) -> IntArray:
        """Labels of a constant: new even for a single position, since it goes with what it meets."""
        self.count += size
        if size:
            self.owners.append((self.count - size, None))
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def loosen(self, labels: IntArray) -> None:
        """These are the graph's own labels, of values that aren't zeros (any more)."""
        self.loose.append(range(int(labels.min()), int(labels.max()) + 1))

    def is_own(self, labels: IntArray) -> bool:
        """Whether the labels are of a constant that the graph makes, and that has met no channels."""
        start, axis = self._run_of(int(labels.max()))
        return axis is None and int(labels.min()) >= start > FIXED

    def result(self, labels: IntArray, rank: int, dim: int) -> Fields:
        """A flat array of labels as the field of a value of that rank that varies along `dim` only."""
        if labels.size == 1 or (labels[0] == FIXED and bool((labels == FIXED).all())):
            if labels.size == 1 and labels[0] != FIXED:
                self.pin(labels, "a single channel stands alone")
            return ()
        return (self._spread(labels, rank, dim % rank),)

    def _spread(self, flat: IntArray, rank: int, dim: int) -> IntArray:
        """A flat array as a field. The same array gives the same field: identity is what makes long chains cheap."""
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
        """The fields of a value whose data was moved: compressed, with their blocks and covers noted."""
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
        """Fields that vary along different dimensions stay apart. Of those that overlap, one keeps its freedom: the
        first that a parameter writes. The others are pinned, so that a position goes with the one label alone."""
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
        """Whether a parameter or buffer owns a field's last label; a constant that the graph makes owns none."""
        return self._run_of(int(labels.max()))[1] is not None

    def _run_of(self, label: int) -> tuple[int, Axis | None]:
        """The first label of the run that one is in, and the axis that owns it."""
        return self.owners[bisect_right(self.owners, label, key=_first_label) - 1] if label != FIXED else (FIXED, None)

    def writers(self, labels: IntArray) -> list[str]:
        """The modules and tensors whose axes the labels were made for."""
        starts = np.array([start for start, _ in self.owners], dtype=np.int64)
        runs = np.unique(np.searchsorted(starts, labels[labels != FIXED], side="right") - 1)
        axes = [axis for axis in (self.owners[run][1] for run in runs) if axis is not None]
        return [name for axis in axes for name in (axis.owner, axis.tensor) if name]

    def constant(self, value: object) -> Any:
        """The real value of an argument that doesn't depend on the input: a literal, a number, a buffer; else None."""
        if not isinstance(value, fx.Node):
            return value
        if value.op == "get_attr":
            found = self.program.state.get(str(value.target))
            return found if isinstance(found, torch.Tensor) and not found.is_floating_point() else None
        known = value.meta.get("val")
        return None if isinstance(known, torch.Tensor) else known


def _first_label(run: tuple[int, Axis | None]) -> int:
    return run[0]
