"""From labels to units and groups: everything that the label flow has collected is solved here, once.

    conv1 -> bn1 -> conv2     unit 3: conv1.weight[0] at 3, bn1.weight[0] at 3, ..., conv2.weight[1] at 3
                              group conv1: units 0..7; conv1 writes them, conv2 reads them

A *unit* is a connected component of labels: positions, over all axes, that go together or not at all. A *group* joins
the units of axes that produce channels together. Units are numbered through, group by group, in the order of the graph,
so that a group's units are one run of numbers and every figure about units is one flat array.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from prunec.compiler import ops  # noqa: F401  (with it come the rules of all operations)
from prunec.compiler.groups.balance import NO_UNIT, Balance, Balanced, balances
from prunec.compiler.groups.blocks import components, first_along, square_blocks
from prunec.compiler.groups.incoming import Streams, candidates, streams
from prunec.compiler.ir.gc_pause import gc_paused
from prunec.compiler.ir.program import Axis, BoolArray, IntArray, Program
from prunec.compiler.labels.flow import FIXED, Flow, Incoming, Pin
from prunec.compiler.labels.propagate import run_rules


class Member(NamedTuple):
    """One axis of a group: `positions[i]` of the axis belongs to unit `units[i]` of the group (0 is its first)."""

    axis: Axis
    role: str
    cause: str
    positions: IntArray
    units: IntArray


@dataclass(frozen=True)
class Group:
    """Units that the same axes produce, from number `start` on. `pinned[u]` says why unit u must stay, '' where it may
    go."""

    name: str
    start: int
    size: int
    pinned: tuple[str, ...]
    writers: tuple[Member, ...]
    """The members that produce channels."""
    table: Memberships = field(repr=False, compare=False)
    incoming: bool = False
    """Whether a reader selects these channels of what others write: its first axis stands before all writers then."""

    @cached_property
    def free(self) -> BoolArray:
        """Which units may be removed."""
        return np.array([not reason for reason in self.pinned], dtype=bool)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every axis that has a part in the group, the writers first."""
        followers = self.table.followers[self.start]
        return (*(member for member in self.writers if member.role == "writer"), *followers)

    @property
    def readers(self) -> tuple[Member, ...]:
        """The members that consume channels."""
        return tuple(m for m in self.members if m.role == "reader")

    @property
    def where(self) -> slice:
        """The group's run of the program-wide unit numbers."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Memberships:
    """Which axes belong to which groups. Those that don't write are found when they are first asked for."""

    flow: Flow
    runs: Runs
    written: frozenset[int]
    """The first units of groups that have other writers than weights which read."""

    @cached_property
    def followers(self) -> Mapping[int, list[Member]]:
        """The first unit of each group -> its members that aren't writers."""
        found: dict[int, list[Member]] = {start: [] for start in self.runs.starts}
        for binding in self.flow.bindings.values():
            reading = binding.axis in self.flow.reading
            if binding.role != "writer" or reading:
                role = "reader" if reading else binding.role
                for start, positions, units in self.runs.parts(binding.labels):
                    if not reading or start in self.written:
                        found[start].append(Member(binding.axis, role, binding.cause, positions, units))
        return found


@dataclass(frozen=True)
class AtLeast:
    """Units of which at least `count` must stay."""

    units: IntArray
    count: int
    reason: str


@dataclass(frozen=True)
class Analysis:
    """What may be removed from a program, and what goes with it. Arrays [units] stand in the order of the groups."""

    program: Program
    flow: Flow
    unit_of: IntArray
    """label -> unit; NO_UNIT where no axis produces the label."""
    groups: Mapping[str, Group]
    covers: tuple[IntArray, ...]
    """Sets of units of which one must stay, such as those of a piece of a split."""
    least: tuple[AtLeast, ...] = ()
    """Sets of units of which several must stay."""
    counted: Mapping[int, str] = field(default_factory=dict)
    """unit -> why it can't be merged with another."""
    balanced: tuple[Balanced, ...] = ()
    """Blocks of units of which every row must lose equally many."""
    balances: tuple[Balance, ...] = ()
    """Which units leave together, in packs, so that the rows of `balanced` do."""
    streams: Streams = field(default_factory=Streams)
    """The units that go by themselves where no reader keeps them."""

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
        """unit -> the number of its group, in the order of `groups`."""
        sizes = [g.size for g in self.groups.values()]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def _with_fixed(self) -> IntArray:
        """`unit_of`, and NO_UNIT at its end, where FIXED finds it."""
        return with_fixed(self.unit_of)

    def units(self, labels: IntArray) -> IntArray:
        """The unit of each label, NO_UNIT for FIXED ones."""
        return self._with_fixed[labels]

    def line(self, labels: IntArray) -> IntArray:
        """The labels, flat, along the one dimension of a field that can lose positions: what a width is counted by. All
        labels of the field inside a shuffle that is divided freely, where several dimensions can."""
        if labels.size == max(labels.shape):
            return self.flow.flat(labels)
        units = self.units(labels)
        units = np.where(np.append(self.free, False)[units], units, NO_UNIT)
        wide = [d for d in range(labels.ndim) if labels.shape[d] > 1]
        dim = next((d for d in wide if bool((units == first_along(units, d)).all())), None)
        return np.ascontiguousarray(labels if dim is None else first_along(labels, dim)).reshape(-1)

    def settled(self, keep: BoolArray) -> BoolArray:
        """[units]: which stay when those in `keep` do: some go by themselves (`Streams`)."""
        return self.streams.settled(keep)

    def kept(self, labels: IntArray, keep: BoolArray) -> BoolArray:
        """Which labels stay, in the array's shape, when the units in `keep` [units] do."""
        return self.stays(keep)[labels]

    def stays(self, keep: BoolArray) -> BoolArray:
        """Which labels stay when the units in `keep` [units] do; read at an array of labels, FIXED ones included."""
        return np.append(keep, True)[self._with_fixed]


def with_fixed(unit_of: IntArray) -> IntArray:
    """label -> unit, and at the end what FIXED, which is -1, finds: NO_UNIT."""
    return np.append(unit_of, NO_UNIT)


@gc_paused()
def analyse(program: Program) -> Analysis:
    """The units and groups of a program; computed once for each program."""
    return program.cached("analysis", lambda: _analysed(program))


def _analysed(program: Program) -> Analysis:
    flow = Flow(program)
    run_rules(flow)
    if not program.granularity.incoming:
        return solve(flow)
    shared = solve(flow)
    pinned = {g.start + unit: reason for g in shared.groups.values() for unit, reason in enumerate(g.pinned) if reason}
    known = candidates(flow, shared.unit_of, pinned)
    selecting = Flow(program, {entry.node: entry for entry in known if _selects(program, entry)})
    run_rules(selecting)
    for entry in known:
        selecting.note_incoming(entry)
    return solve(selecting)


def _selects(program: Program, entry: Incoming) -> bool:
    """Whether a node selects what it reads. Where the plan says so of every node, one doesn't if others keep the source
    from losing anything then."""
    pattern, choice = program.granularity.decided("incoming", (*entry.names, entry.name))
    return choice == "own" and not entry.useless and not (entry.held and pattern == "*")


def hand_on(analysis: Analysis, program: Program) -> Program:
    """Give a program the analysis of one that differs in its tensors' values alone; returns the program. Tied tensors
    still go together, though by now they may be two."""
    handed = program.cached("analysis", lambda: replace(analysis, program=program))
    assert handed.program is program, "the program has no analysis of its own yet"
    return program


def solve(flow: Flow) -> Analysis:
    """Join the labels that must go together, pin those that may not go, and sort the rest into groups."""
    flow.count = max(flow.count, 1)
    left, right, pins = _edges(flow)
    component = components(flow.count, left, right)
    component, more = square_blocks(flow, component)
    reasons = _pinned(component, [*pins, *more, *flow.pins])
    unit_of, starts = _number_units(flow, component)
    runs = Runs(with_fixed(unit_of), starts)
    units = unit_of[list(reasons)].tolist()
    pinned = {unit: reason for unit, reason in zip(units, reasons.values(), strict=True) if unit != NO_UNIT}
    pieces = _covers(flow, runs)
    for unit in (start for start, size in zip(runs.starts, runs.sizes, strict=True) if size == 1):
        pinned.setdefault(unit, "is the only one of its group")
    for unit in (int(piece[0]) for piece in pieces if piece.size == 1):
        pinned.setdefault(unit, "is all that one piece of a split has")
    least = tuple(
        AtLeast(distinct(runs.units(part.labels), unit_of.size), part.count, part.reason) for part in flow.least
    )
    for part in least:
        if part.units.size <= part.count:
            pinned.update({int(unit): pinned.get(int(unit), part.reason) for unit in part.units})
    balanced = tuple(Balanced(runs.units(labels), node) for labels, node in flow.balanced)
    tied = balances(balanced)
    _pin_unbalanced(balanced, tied, pinned, runs.total)
    met = {int(u): p.reason for p in flow.counted for u in np.unique(runs.units(p.labels)) if u != NO_UNIT}
    single = _inside_one(flow, runs, met)
    counted = {unit: reason for unit, reason in met.items() if unit not in single}
    counted |= {int(u): f"stands in a block of {b.nodes[0]}, whose rows stay even" for b in tied for u in b.units}
    passing = Streams()
    if flow.incoming:
        own = {int(u): f"is selected at {e.node.name}" for e, _, mine in flow.selections() for u in runs.units(mine)}
        counted = {unit: reason for unit, reason in own.items() if unit != NO_UNIT} | counted
        whole = [np.arange(start, end) for start, end in zip(runs.starts, runs.ends, strict=True)]
        bound = met | counted | {int(u): part.reason for part in least for u in part.units}
        passing = streams(flow, unit_of, pinned, bound, (*whole, *pieces))
    groups = _groups(flow, runs, pinned)
    covers = tuple(piece for piece in pieces if not any(int(unit) in pinned for unit in piece))
    return Analysis(flow.program, flow, unit_of, groups, covers, least, counted, balanced, tied, passing)


def _inside_one(flow: Flow, runs: Runs, counted: Iterable[int]) -> frozenset[int]:
    """The counted units of which every contraction has all positions of a row: these can be merged."""
    mixed: set[int] = set()
    for part in flow.counted:
        units = runs.units(part.labels)
        rows = units[(units != units[:, :1]).any(axis=1)] if part.inside else units
        mixed.update(np.unique(rows).tolist())
    return frozenset(counted) - mixed


def _edges(flow: Flow) -> tuple[IntArray, IntArray, list[Pin]]:
    """All pairs of labels as two flat arrays, without FIXED ones, and pins for the labels that met those."""
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


def _pin_unbalanced(balanced: Iterable[Balanced], tied: Iterable[Balance], pinned: dict[int, str], size: int) -> None:
    """Pin the units of blocks whose rows don't hold equally many, and of balances that no pack can leave."""
    for block in balanced:
        if not block.fits:
            for unit in (int(unit) for unit in np.unique(block.units) if unit != NO_UNIT):
                pinned.setdefault(unit, f"shares a block with fixed positions at {block.node}")
    free = np.ones(size, dtype=bool)
    free[list(pinned)] = False
    for balance in tied:
        if not balance.packs(free):
            for unit in balance.units.tolist():
                pinned.setdefault(unit, f"can't leave every row of a block of {balance.nodes[0]} in equal numbers")


def _pinned(component: IntArray, pins: list[Pin]) -> dict[int, str]:
    """Component -> why its labels may not be removed, for all that hold a pinned one."""
    reason_of: dict[int, str] = {}
    for pin in pins:
        labels = pin.labels.ravel()
        for root in distinct(component[labels[labels != FIXED]], component.size).tolist():
            reason_of.setdefault(root, pin.reason)
    return reason_of


def _number_units(flow: Flow, component: IntArray) -> tuple[IntArray, IntArray]:
    """label -> unit, [labels], and the first unit of each group.

    Units that a parameter writes are numbered by group, groups in the order of their first label; what must lose
    equally many is in one group. What no parameter writes (a buffer's labels, a padding's) is NO_UNIT.
    """
    writers = [b.labels for b in flow.bindings.values() if b.role == "writer"]
    writers += [labels for _, _, labels in flow.selections()]
    roots = [component[labels[labels != FIXED]] for labels in writers]
    roots = [r for r in roots if r.size]
    unit_of = np.full(component.size, NO_UNIT, dtype=np.int64)
    if not roots:
        return unit_of, np.zeros(0, dtype=np.int64)
    even = [component[labels.ravel()] for labels, _ in flow.balanced]
    joined = [*roots, *even]
    left = np.concatenate(roots)
    right = np.repeat([r[0] for r in joined], [r.size for r in joined])
    family = components(component.size, np.concatenate(joined), right)
    written = distinct(left, component.size)
    order = np.lexsort((written, family[written]))
    ranked = written[order]
    number = np.full(component.size, NO_UNIT, dtype=np.int64)
    number[ranked] = np.arange(ranked.size)
    families = family[ranked]
    starts = np.flatnonzero(np.r_[True, families[1:] != families[:-1]])
    return number[component], starts


def distinct(numbers: IntArray, below: int) -> IntArray:
    """The distinct numbers of an array, rising; all lie in [0, below). Marking them is faster than sorting."""
    if numbers.size < 32:
        return np.array(sorted(set(numbers.tolist())), dtype=np.int64)
    marks = np.zeros(below, dtype=bool)
    marks[numbers] = True
    return np.flatnonzero(marks)


class Runs:
    """Units as they are numbered, a run of numbers for each group. `unit_of` has NO_UNIT at its end, for FIXED labels;
    `first` are the groups' first units."""

    def __init__(self, unit_of: IntArray, first: IntArray) -> None:
        self.total = int(unit_of.max(initial=NO_UNIT)) + 1
        self.first = first
        self.starts: list[int] = first.tolist()
        self.ends = [*self.starts[1:], self.total][: len(self.starts)]
        self.sizes = [end - start for start, end in zip(self.starts, self.ends, strict=True)]
        self._unit_of = unit_of
        self._span = np.arange(unit_of.size)
        self._parts: dict[int, tuple[IntArray, Sequence[Part]]] = {}

    def units(self, labels: IntArray) -> IntArray:
        """The unit of each label."""
        return self._unit_of[labels]

    def group_at(self, unit: int) -> int:
        """The number of a unit's group."""
        return bisect_right(self.starts, unit) - 1

    def parts(self, labels: IntArray) -> Sequence[Part]:
        """For each group that an axis with these labels, flat, takes part in: its first unit, the axis's positions, and
        their units within the group."""
        known = self._parts.get(id(labels))
        if known is None:
            known = self._parts[id(labels)] = labels, tuple(self._find(self.units(labels)))
        return known[1]

    def is_whole(self, units: IntArray) -> bool:
        """Whether these are the units of one group, each once, in order."""
        first = int(units.flat[0])
        if first == NO_UNIT or self.sizes[number := self.group_at(first)] != units.size:
            return False
        return bool((units == self._span[first : first + units.size]).all()) and first == self.starts[number]

    def _find(self, units: IntArray) -> Iterator[Part]:
        if not units.size:
            return
        if self.is_whole(units):
            yield int(units[0]), self._span[: units.size], self._span[: units.size]
            return
        placed = np.flatnonzero(units != NO_UNIT)
        if not placed.size:
            return
        mine = units[placed]
        numbers = np.searchsorted(self.first, mine, side="right") - 1
        edges = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), numbers.size]
        first = numbers[edges[:-1]].tolist()
        if len(set(first)) < len(first):  # a group's part is torn apart: a split whose pieces changed places
            order = np.argsort(numbers, kind="stable")
            yield from _parts_of(placed[order], mine[order], numbers[order], self.first)
        else:
            for number, low, high in zip(first, edges[:-1], edges[1:], strict=True):
                start = self.starts[number]
                yield start, placed[low:high], mine[low:high] - start


Part = tuple[int, IntArray, IntArray]
"""A group's first unit, positions of an axis, and their units within the group."""


def _groups(flow: Flow, runs: Runs, pinned: Mapping[int, str]) -> dict[str, Group]:
    writers: dict[int, list[Member]] = {start: [] for start in runs.starts}
    for binding in flow.bindings.values():
        if binding.role == "writer":
            for start, positions, units in runs.parts(binding.labels):
                writers[start].append(Member(binding.axis, binding.role, binding.cause, positions, units))
    reasons = [""] * runs.total
    for unit, reason in pinned.items():
        reasons[unit] = reason
    writing = {start: [m for m in mine if m.axis not in flow.reading] for start, mine in writers.items()}
    table = Memberships(flow, runs, frozenset(start for start, mine in writing.items() if mine))
    selected = _selected(flow, runs)
    written = {start: mine for start, mine in writers.items() if start not in selected}
    names = dict(zip(written, _names(list(written.values())), strict=True))
    groups: dict[str, Group] = {}
    for (start, mine), end in zip(writers.items(), runs.ends, strict=True):
        if start in selected:
            called, first = selected[start]
            called = called if called not in groups else str(first.axis)
            axes = [first, *(member for member in writing[start] or mine if member.axis != first.axis)]
        else:
            called, axes = names[start], writing[start] or mine
        why = tuple(reasons[start:end])
        groups[called] = Group(called, start, end - start, why, tuple(axes), table, start in selected)
    return groups


def _selected(flow: Flow, runs: Runs) -> dict[int, tuple[str, Member]]:
    """The first unit of each group that a reader selects -> its name, and the reader's first axis. A group that some
    reader selects from isn't one, though it may be tied to what a reader selects."""
    found: dict[int, tuple[str, Member]] = {}
    shared = {start for _, labels, _ in flow.selections() for start, _, _ in runs.parts(labels)}
    for entry, _, _ in flow.selections():
        binding = flow.bindings[entry.axis]
        for start, positions, units in runs.parts(binding.labels):
            if start not in shared:
                member = Member(binding.axis, binding.role, binding.cause, positions, units)
                found.setdefault(start, (entry.name, member))
    return found


def _parts_of(
    placed: IntArray, units: IntArray, numbers: IntArray, starts: IntArray
) -> Iterator[tuple[int, IntArray, IntArray]]:
    """`_parts` of an axis in which the positions of a group don't stand together."""
    for number in distinct(numbers, starts.size):
        inside = numbers == number
        yield int(starts[number]), placed[inside], units[inside] - starts[number]


def _names(members: list[list[Member]]) -> list[str]:
    """A group is called after the module of its first writer; where two would share a name, after the axis."""
    first = [group[0].axis for group in members]
    short = [axis.owner if axis.tensor.endswith(".weight") else axis.tensor for axis in first]
    counts = {name: short.count(name) for name in set(short)} if len(set(short)) < len(short) else {}
    return [str(axis) if counts.get(name, 1) > 1 else name for axis, name in zip(first, short, strict=True)]


def _covers(flow: Flow, runs: Runs) -> list[IntArray]:
    """The units of each value that could lose them all: no position without a unit, and not a whole group.

    Such are the pieces of a split, and what a layer writes that is padded to the width of its group.
    """
    found: dict[bytes, IntArray] = {}
    written = [binding.labels for binding in flow.bindings.values() if binding.role == "writer"]
    written += [labels for _, _, labels in flow.selections()]
    for labels in {id(labels): labels for labels in (*flow.covers, *written)}.values():
        units = runs.units(labels).ravel()
        if not units.size or runs.is_whole(units) or units.min() == NO_UNIT:
            continue
        units = distinct(units, runs.total)
        numbers = np.searchsorted(runs.first, units, side="right") - 1
        counts = np.bincount(numbers - numbers[0])
        sizes = runs.sizes[numbers[0] : numbers[0] + counts.size]
        if not bool((counts == sizes).any()):
            found[units.tobytes()] = units
    return list(found.values())
