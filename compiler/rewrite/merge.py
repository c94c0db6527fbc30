"""The tensors of units that are merged: which units agree, how far they are apart, and their sums and means.

    conv1.weight[0]    rows a, b, a, c        units 0 and 2 write the same values: a cluster (0, 2)
    conv2.weight[1]    columns p, q, r, s     their reader: p + r, q, s, and unit 2 can go

Which units may be merged at all is told by `groups/interchangeable.py`: those of one kind, which take the same places,
relative to each other, in every value and every axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from prunec.compiler.groups.analysis import Analysis, Group, Member, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.interchangeable import kinds
from prunec.compiler.ir.modules import clone_module, module_tensors
from prunec.compiler.ir.program import Axis, IntArray, Program, State

Clusters = tuple[tuple[int, ...], ...]
"""Units within a group that become one, two or more in each; each cluster sorted, clusters by their smallest unit."""


class Counted(tuple[tuple[str, IntArray, int], ...]):
    """Clusters that aren't known yet: (group, units of one kind, how many clusters they are to become)."""


PRODUCERS = frozenset({"writer", "carrier", "buffer"})
"""The roles of axes that decide which values a channel has."""


# -- the elements of units -----------------------------------------------------------------------------------------


def representatives(size: int, clusters: Clusters) -> IntArray:
    """unit -> the first unit of its cluster, [units]; the unit itself where it is in none."""
    into = np.arange(size)
    for cluster in clusters:
        into[list(cluster)] = cluster[0]
    return into


def partners(member: Member, into: IntArray) -> IntArray:
    """For each of a member's positions, the corresponding position of unit `into[u]`, where u is its own unit.

    The k-th position of a unit corresponds to the k-th of another of its kind: after a flatten, the same pixel.
    """
    order = np.argsort(member.units, kind="stable")
    ordered = member.units[order]
    starts = np.searchsorted(ordered, np.arange(into.size))
    nth = np.empty(order.size, dtype=np.int64)
    nth[order] = np.arange(order.size) - starts[ordered]
    return np.asarray(member.positions[order][starts[into[member.units]] + nth], dtype=np.int64)


def unit_rows(program: Program, member: Member, units: Sequence[int] | IntArray) -> torch.Tensor:
    """The elements of units of one kind along an axis, `[units, elements]`."""
    picked = [member.positions[member.units == unit] for unit in units]
    positions = np.stack(picked) if picked else np.zeros((0, 0), dtype=np.int64)
    rows = Tensors(program).rows(member.axis, positions.ravel())
    return rows.reshape(len(picked), -1)


@dataclass
class Tensors:
    """A program's tensors while they are changed; those that aren't are shared. Half precision is summed in float32.

    A tensor that several layers have is changed once for all of them that write, or read, the same units by it; these
    go on sharing it.
    """

    program: Program
    _changed: dict[str, torch.Tensor] = field(default_factory=dict)
    """By the first name of those that go on sharing a tensor."""
    _added: set[tuple[str, int, bytes]] = field(default_factory=set)
    """What `add` has done: along which axis of a tensor, and at which positions."""

    @cached_property
    def _first(self) -> Mapping[str, str]:
        """Name -> the first name of the same tensor in the same use."""
        uses: dict[str, set[tuple[object, ...]]] = {}
        for group in analyse(self.program).groups.values():
            for each in group.members:
                use = each.role, each.axis.dim, each.positions.tobytes(), each.units.tobytes(), group.name
                uses.setdefault(each.axis.tensor, set()).add(use)
        names: dict[tuple[int, frozenset[tuple[object, ...]]], str] = {}
        return {
            name: names.setdefault((id(tensor), frozenset(uses.get(name, ()))), name)
            for name, tensor in self.program.tensors.items()
        }

    def shared_axis(self, axis: Axis) -> Axis:
        """The axis, by the first name of its tensor."""
        return Axis(self._first[axis.tensor], axis.dim)

    def rows(self, axis: Axis, positions: IntArray) -> torch.Tensor:
        """The elements that belong to each of an axis's positions, `[positions, elements]`; a copy."""
        tensor = self._changed.get(self._first[axis.tensor])
        if tensor is None:
            tensor = self.program.tensors[axis.tensor].detach()
        return _blocks(self.program, axis, tensor)[_places(self.program, axis, positions)].unsqueeze(-1).flatten(1)

    def add(self, member: Member, into: IntArray) -> None:
        """Add to each representative's elements those of the rest of its cluster; `into` is unit -> representative."""
        target = partners(member, into)
        moved = target != member.positions
        key = self._first[member.axis.tensor], member.axis.dim, member.positions.tobytes()
        if moved.any() and key not in self._added:
            self._added.add(key)
            rows = self.rows(member.axis, member.positions[moved])
            self._write(member.axis, target[moved], rows, accumulate=True)

    def accumulate(self, axis: Axis, positions: IntArray, rows: torch.Tensor) -> None:
        """Add rows, `[positions, elements]`, to the elements of an axis's positions."""
        self._write(axis, positions, rows, accumulate=True)

    def average(self, member: Member, into: IntArray) -> None:
        """Give every unit the mean of its cluster, unless all are equal already. `into` is unit -> representative."""
        target = partners(member, into)
        mine = (np.bincount(into, minlength=into.size)[into] > 1)[member.units]
        if not mine.any():
            return
        rows = self.rows(member.axis, member.positions[mine]).double()
        _, number, count = np.unique(target[mine], return_inverse=True, return_counts=True)
        where, size = (torch.from_numpy(x).to(rows.device) for x in (number, count))
        sums = rows.new_zeros(count.size, rows.shape[1]).index_add_(0, where, rows)
        means = (sums / size[:, None])[where]
        if not torch.equal(means, rows):
            self._write(member.axis, member.positions[mine], means)

    def finish(self) -> Program:
        """The program with the changed tensors, in their old precision."""
        state: dict[str, State] = dict(self.program.state)
        made = {name: _like(self.program.tensors[name], new) for name, new in self._changed.items()}
        for name, value in self.program.state.items():
            if not isinstance(value, nn.Module):
                state[name] = made.get(self._first[name], value)
                continue
            own = {n: made[self._first[n]] for n, _ in module_tensors(name, value) if self._first[n] in made}
            if own:
                state[name] = clone_module(value, {n[len(name) + 1 :]: new for n, new in own.items()})
        return self.program.derive(state=state)

    def _write(self, axis: Axis, positions: IntArray, rows: torch.Tensor, accumulate: bool = False) -> None:
        name = self._first[axis.tensor]
        if name not in self._changed:
            old = self.program.tensors[name].detach()
            self._changed[name] = old.to(torch.promote_types(old.dtype, torch.float32), copy=True)
        blocks = _blocks(self.program, axis, self._changed[name])
        values = rows.to(blocks.dtype).reshape(len(positions), *blocks.shape[2:])
        blocks.index_put_(_places(self.program, axis, positions), values, accumulate=accumulate)


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    new = new.to(old.dtype)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _blocks(program: Program, axis: Axis, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as a view `[groups, positions of a group, ...]` along one of its axes."""
    groups = program.groups_along(axis)
    if groups == 1:
        return tensor.movedim(axis.dim, 0).unsqueeze(0)
    return tensor.view(groups, -1, *tensor.shape[1:]).movedim(2, 1)


def _places(program: Program, axis: Axis, positions: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Where an axis's positions lie in `_blocks`: the group, and the position within it."""
    width = program.size(axis) // program.groups_along(axis)
    return torch.from_numpy(positions // width), torch.from_numpy(positions % width)


# -- which units have means ----------------------------------------------------------------------------------------


def discrete(program: Program, group: Group) -> Iterator[Member]:
    """The producers of a group that hold truth values or whole numbers: where these differ, there is no mean."""
    for member in producers(group):
        dtype = program.tensors[member.axis.tensor].dtype
        if not (dtype.is_floating_point or dtype.is_complex):
            yield member


def kinds_with_means(analysis: Analysis) -> IntArray:
    """The kind of each unit, [units], as `kinds` has it; units that differ in truth values or whole numbers are of
    different kinds."""
    found = kinds(analysis).copy()
    for group in analysis.groups.values():
        for member in discrete(analysis.program, group):
            kind = found[group.where]
            apart = np.zeros((group.size, 2), dtype=np.int64)
            apart[:, 0] = kind
            for each in np.unique(kind[kind != NO_UNIT]):
                units = np.intersect1d(np.flatnonzero(kind == each), member.units)
                rows = unit_rows(analysis.program, member, units).numpy(force=True)
                apart[units, 1] = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1) + 1
            _, number = np.unique(apart, axis=0, return_inverse=True)
            found[group.where] = np.where(kind == NO_UNIT, NO_UNIT, number.reshape(-1))
    return found


# -- how far units are apart ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """The largest difference inside a cluster, relative to the largest value of the axis it was found in."""

    size: float
    group: str
    cluster: tuple[int, ...]
    axis: Axis


def producers(group: Group) -> tuple[Member, ...]:
    """The members of a group that decide which values its channels have."""
    return tuple(member for member in group.members if member.role in PRODUCERS)


def gaps(program: Program, group: Group, clusters: Clusters) -> Iterator[Gap]:
    """For each producer of a group, the largest difference of a unit from the first one of its cluster."""
    into = representatives(group.size, clusters)
    of_unit = {unit: cluster for cluster in clusters for unit in cluster}
    tensors = Tensors(program)
    for member in producers(group):
        target = partners(member, into)
        moved = np.flatnonzero(target != member.positions)
        if not moved.size:
            continue
        rows, kept = (tensors.rows(member.axis, places[moved]) for places in (member.positions, target))
        apart = (rows.double() - kept.double()).abs().amax(1)
        worst = int(apart.argmax())
        scale = float(program.tensors[member.axis.tensor].detach().double().abs().max()) or 1.0
        yield Gap(float(apart[worst]) / scale, group.name, of_unit[int(member.units[moved[worst]])], member.axis)


def crowded(program: Program, group: Group, units: IntArray, count: int, tolerance: float) -> int:
    """How many of these units differ by more than twice the tolerance from each other, where that is more than `count`:
    then some cluster of theirs holds a unit that differs from its first by more than the tolerance. 0 where it isn't.
    """
    joined = identical(program, group, units, 2 * tolerance)
    different = len(units) - sum(len(cluster) - 1 for cluster in joined)
    return different if different > count else 0


def identical(program: Program, group: Group, units: IntArray, tolerance: float) -> Clusters:
    """Clusters of those units, all of one kind, that agree along every producer of their group.

    Each unit joins the first that it agrees with; `tolerance` is relative to the largest value of each tensor.
    """
    parts = []
    for member in producers(group):
        if np.isin(units, member.units).all():
            scale = program.tensors[member.axis.tensor].detach().double().abs().max().clamp_min(1e-300)
            parts.append(unit_rows(program, member, units).double() / scale)
    values = torch.cat(parts, 1).numpy(force=True)
    return tidy(tuple(units[found].tolist()) for found in _agreeing(values, tolerance))


def _agreeing(values: npt.NDArray[np.float64], tolerance: float) -> Iterator[IntArray]:
    """Row numbers of `values`, in lists of those that agree with the first of the list. Sums of rows rule out most
    pairs before any is compared in full."""
    sums = values.sum(axis=1)
    slack = (tolerance + 1e-12) * values.shape[1]
    left = np.arange(len(values))
    while left.size:
        near = left[np.abs(sums[left] - sums[left[0]]) <= slack]
        found = near[(np.abs(values[near] - values[left[0]]) <= tolerance).all(axis=1)]
        yield found
        left = np.setdiff1d(left, found, assume_unique=True)


def tidy(clusters: Iterable[Iterable[int]]) -> Clusters:
    """Clusters in the form of `Clusters`, without those of one unit."""
    ordered = (tuple(sorted(cluster)) for cluster in clusters)
    return tuple(sorted(cluster for cluster in ordered if len(cluster) > 1))


def spread(program: Program, group: Group, clusters: Clusters) -> float:
    """How far a group's clusters are from having collapsed: the sum over writers of `||unit - cluster mean||^2`."""
    total = 0.0
    for member in group.writers:
        tensors, moved = Tensors(program), _clustered(member, clusters)
        if moved.size:
            before = tensors.rows(member.axis, moved)
            tensors.average(member, representatives(group.size, clusters))
            total += float((before - tensors.rows(member.axis, moved)).double().square().sum())
    return total


def _clustered(member: Member, clusters: Clusters) -> IntArray:
    """The positions of a member whose units are in a cluster."""
    return member.positions[np.isin(member.units, [unit for cluster in clusters for unit in cluster])]


def chi(program: Program, groups: Mapping[str, Group], clusters: Mapping[str, Clusters]) -> float:
    """`spread`, summed over the groups: 0 where every cluster has collapsed."""
    return sum(spread(program, groups[name], found) for name, found in clusters.items())
