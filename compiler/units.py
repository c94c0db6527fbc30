"""From labels to units and groups: everything that the label flow has collected is solved here, once.

A *unit* is a connected component of labels: positions, over all axes, that go together or not at all. A *group* joins the
units of axes that produce channels together. Units are numbered through, group by group, in the order of the graph, so
that a group's units are one run of numbers and every figure about units is one flat array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunec.compiler.ir import Axis, IntArray, Program
from prunec.compiler.labels import FIXED, Binding, Flow, Pin
from prunec.compiler.rules import run_rules

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

LOOSE = -1
"""The unit of a position that belongs to none: it is fixed."""


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of a group: `positions[i]` of the axis belongs to unit `units[i]` of the group (0 is its first)."""

    axis: Axis
    role: str
    cause: str
    positions: IntArray
    units: IntArray


@dataclass(frozen=True)
class Group:
    """Units that the same axes produce. `pinned[u]` holds why unit u may not be removed, '' where it may."""

    name: str
    start: int
    size: int
    pinned: tuple[str, ...]
    members: tuple[Member, ...]

    @cached_property
    def free(self) -> BoolArray:
        """Which units may be removed."""
        return np.array([not reason for reason in self.pinned], dtype=bool)

    @property
    def writers(self) -> tuple[Member, ...]:
        """The members that produce channels."""
        return tuple(m for m in self.members if m.role == "writer")

    @property
    def readers(self) -> tuple[Member, ...]:
        """The members that consume channels."""
        return tuple(m for m in self.members if m.role == "reader")

    @property
    def where(self) -> slice:
        """The group's run of the program-wide unit numbers."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Analysis:
    """What may be removed from a program, and what goes with it."""

    program: Program
    flow: Flow
    unit_of: IntArray
    """label -> unit, LOOSE where the label belongs to none that an axis produces."""
    groups: Mapping[str, Group]
    covers: tuple[IntArray, ...]
    """Sets of units of which one must stay (the pieces of a split)."""
    counted: Mapping[int, str] = field(default_factory=dict)
    """unit -> why it can't be merged."""

    @cached_property
    def size(self) -> int:
        """How many units there are."""
        return sum(group.size for group in self.groups.values())

    @cached_property
    def free(self) -> BoolArray:
        """Which units may be removed."""
        return np.concatenate([g.free for g in self.groups.values()] or [np.zeros(0, dtype=bool)])

    @cached_property
    def group_of(self) -> IntArray:
        """unit -> the number of its group."""
        sizes = [g.size for g in self.groups.values()]
        return np.repeat(np.arange(len(sizes)), sizes)

    def units(self, labels: IntArray) -> IntArray:
        """The unit of each label, LOOSE for FIXED ones."""
        return np.where(labels == FIXED, LOOSE, self.unit_of[labels])

    def kept(self, labels: IntArray, keep: BoolArray) -> BoolArray:
        """Which labels stay when the units in `keep` do."""
        units = self.units(labels)
        return np.where(units == LOOSE, True, np.append(keep, True)[units])


def analyse(program: Program) -> Analysis:
    """The units and groups of a program; computed once for each program."""
    known = program.__dict__.get("_analysis")
    if known is None:
        flow = Flow(program)
        run_rules(flow)
        known = solve(flow)
        program.__dict__["_analysis"] = known
    assert isinstance(known, Analysis)
    return known


def solve(flow: Flow) -> Analysis:
    """Join what must go together, pin what may not go, and sort the rest into groups."""
    flow.count = max(flow.count, 1)
    left, right, pins = _edges(flow)
    component = _components(flow.count, left, right)
    component = _square_blocks(flow, component)
    reasons = _pinned(component, [*pins, *flow.pins])
    unit_of, starts = _number_units(flow, component)
    pinned = {int(unit_of[label]): reason for label, reason in reasons.items() if unit_of[label] != LOOSE}
    groups = _groups(flow, unit_of, starts, pinned)
    counted = {int(u): p.reason for p in flow.counted for u in np.unique(_units(unit_of, p.labels)) if u != LOOSE}
    return Analysis(flow.program, flow, unit_of, groups, _covers(flow, unit_of, groups), counted)


def _edges(flow: Flow) -> tuple[IntArray, IntArray, list[Pin]]:
    """All couplings as two flat arrays, and pins for labels that met FIXED positions."""
    flat = [
        (p.left, p.right) if p.left.shape == p.right.shape else np.broadcast_arrays(p.left, p.right) for p in flow.pairs
    ]
    if not flat:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), []
    left, right = (np.concatenate([pair[side].ravel() for pair in flat]) for side in (0, 1))
    source = np.repeat(np.arange(len(flat)), [pair[0].size for pair in flat])
    mixed = (left == FIXED) != (right == FIXED)
    both = (left != FIXED) & (right != FIXED)
    pins = [
        Pin(np.array([max(a, b)]), f"meets positions that are fixed at {flow.pairs[s].cause}")
        for a, b, s in zip(left[mixed], right[mixed], source[mixed], strict=True)
    ]
    return left[both], right[both], pins


def _components(count: int, left: IntArray, right: IntArray) -> IntArray:
    """label -> the smallest label that it is joined with."""
    graph = coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max() + 1, count, dtype=np.int64)
    np.minimum.at(smallest, component, np.arange(count))
    return np.asarray(smallest[component], dtype=np.int64)


def _square_blocks(flow: Flow, component: IntArray) -> IntArray:
    """Join labels until every value that varies along several dimensions stays rectangular whatever is removed.

    A value [g, n] is rectangular if whole rows go, or the same positions of each row. Where neither holds yet, the
    choice that leaves more units is taken. Joining may disturb another block, so it is repeated until nothing changes;
    units only ever grow, so that ends.
    """
    blocks = list({(labels.shape, labels.tobytes()): labels for labels, _ in flow.blocks}.values())
    while True:
        extra = [pair for labels in blocks if (pair := _squared(component, labels)) is not None]
        if not extra:
            return component
        left = np.concatenate([np.arange(component.size), *(a for a, _ in extra)])
        right = np.concatenate([component, *(b for _, b in extra)])
        component = _components(component.size, left, right)


def _squared(component: IntArray, labels: IntArray) -> tuple[IntArray, IntArray] | None:
    joined = np.where(labels == FIXED, FIXED, component[labels])
    candidates = []
    for dim in range(labels.ndim):
        if labels.shape[dim] == 1:
            continue
        first = joined[tuple(slice(None) if d == dim else slice(0, 1) for d in range(labels.ndim))]
        if bool((joined == first).all()):
            return None
        candidates.append(first)
    best = max(candidates, key=lambda first: np.unique(first).size)
    left, right = joined.ravel(), np.broadcast_to(best, joined.shape).ravel()
    valid = (left != FIXED) & (right != FIXED)
    return left[valid], right[valid]


def _pinned(component: IntArray, pins: list[Pin]) -> dict[int, str]:
    """label -> why it may not be removed, spread over everything that it is joined with."""
    reason_of: dict[int, str] = {}
    for pin in pins:
        labels = pin.labels.ravel()
        for root in np.unique(component[labels[labels != FIXED]]):
            reason_of.setdefault(int(root), pin.reason)
    if not reason_of:
        return {}
    return {int(label): reason_of[int(component[label])] for label in np.flatnonzero(np.isin(component, list(reason_of)))}


def _number_units(flow: Flow, component: IntArray) -> tuple[IntArray, IntArray]:
    """label -> unit number, and the first unit of each group.

    Units that a parameter writes are numbered by group, groups in the order of their first label. What no parameter
    writes (a buffer's own, a padding's own) is LOOSE.
    """
    writers = [b.labels for b in flow.bindings.values() if b.role == "writer"]
    roots = [component[labels[labels != FIXED]] for labels in writers]
    roots = [r for r in roots if r.size]
    unit_of = np.full(component.size, LOOSE, dtype=np.int64)
    if not roots:
        return unit_of, np.zeros(0, dtype=np.int64)
    left = np.concatenate(roots)
    right = np.repeat([r[0] for r in roots], [r.size for r in roots])
    family = _components(component.size, left, right)
    written = np.unique(left)
    order = np.lexsort((written, family[written]))
    ranked = written[order]
    number = np.full(component.size, LOOSE, dtype=np.int64)
    number[ranked] = np.arange(ranked.size)
    families = family[ranked]
    starts = np.flatnonzero(np.r_[True, families[1:] != families[:-1]])
    return number[component], starts


def _units(unit_of: IntArray, labels: IntArray) -> IntArray:
    return np.where(labels == FIXED, LOOSE, unit_of[labels])


def _groups(flow: Flow, unit_of: IntArray, starts: IntArray, pinned: Mapping[int, str]) -> dict[str, Group]:
    total = int(unit_of.max()) + 1
    ends = [*starts[1:], total]
    members: list[list[Member]] = [[] for _ in starts]
    parts: dict[int, list[tuple[int, IntArray, IntArray]]] = {}
    for binding in flow.bindings.values():
        key = id(binding.labels)
        if key not in parts:
            parts[key] = list(_parts(_units(unit_of, binding.labels), starts))
        for number, positions, units in parts[key]:
            members[number].append(Member(binding.axis, binding.role, binding.cause, positions, units))
    names = _names(members)
    groups: dict[str, Group] = {}
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        reasons = tuple(pinned.get(unit, "") for unit in range(start, end))
        ordered = sorted(members[number], key=lambda m: m.role != "writer")
        groups[names[number]] = Group(names[number], int(start), int(end - start), reasons, tuple(ordered))
    return groups


def _parts(units: IntArray, starts: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
    """(group number, positions, units within the group) of an axis, for each group that it has a part of."""
    placed = np.flatnonzero(units != LOOSE)
    numbers = np.searchsorted(starts, units[placed], side="right") - 1
    if numbers.size and numbers[0] == numbers[-1] and bool((numbers == numbers[0]).all()):
        yield int(numbers[0]), placed, units[placed] - starts[numbers[0]]
        return
    for number in np.unique(numbers):
        mine = placed[numbers == number]
        yield int(number), mine, units[mine] - starts[number]


def _names(members: list[list[Member]]) -> list[str]:
    """A group is called after the module of its first writer; where two would share a name, after the axis."""
    first = [next(m.axis for m in group if m.role == "writer") for group in members]
    short = [axis.owner if axis.tensor.endswith(".weight") else axis.tensor for axis in first]
    counts = {name: short.count(name) for name in set(short)} if len(set(short)) < len(short) else {}
    return [str(axis) if counts.get(name, 1) > 1 else name for axis, name in zip(first, short, strict=True)]


def _covers(flow: Flow, unit_of: IntArray, groups: Mapping[str, Group]) -> tuple[IntArray, ...]:
    """The pieces of splits that hold a part of a group only; a piece with a fixed position is never empty."""
    whole = {group.start: group.size for group in groups.values()}
    found: dict[bytes, IntArray] = {}
    for labels in flow.covers:
        units = np.unique(_units(unit_of, labels))
        complete = any(units[0] <= s and s + n - 1 <= units[-1] and np.isin(np.arange(s, s + n), units).all()
                       for s, n in whole.items() if s in units)
        if units[0] != LOOSE and not complete:
            found[units.tobytes()] = units
    return tuple(found.values())


def bindings_of(analysis: Analysis) -> Mapping[Axis, Binding]:
    """Every axis and the labels that it is bound to."""
    return analysis.flow.bindings
