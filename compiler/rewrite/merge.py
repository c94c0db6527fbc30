"""What merging channels asks of a program: which units are alike, how far apart they are, and their sums and means.

    conv1.weight[0]    rows a, b, a, c        units 0 and 2 write the same values: a cluster (0, 2)
    conv2.weight[1]    columns p, q, r, s     their reader: p + r, q, s, and unit 2 can go

Two units may stand for each other when every operation treats them alike: they take the same places, relative to each
other, in every value of the program and in every axis. The halves of a split, one of which meets another activation,
don't; neither do channels of which only one is padded into a wider stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from prunec.compiler.groups.analysis import Group, Member
from prunec.compiler.ir.modules import clone_module, module_tensors
from prunec.compiler.ir.program import Axis, IntArray, Program, State

Clusters = tuple[tuple[int, ...], ...]
"""Units within a group that are to become one, two or more in each; sorted, and by their smallest."""

PRODUCERS = frozenset({"writer", "carrier", "buffer"})
"""The roles of axes that decide what a channel's values are."""


# -- the elements of units -----------------------------------------------------------------------------------------


def representatives(size: int, clusters: Clusters) -> IntArray:
    """unit -> the first unit of its cluster, itself where it is in none."""
    into = np.arange(size)
    for cluster in clusters:
        into[list(cluster)] = cluster[0]
    return into


def partners(member: Member, into: IntArray) -> IntArray:
    """For each of a member's positions, the one that corresponds to it in unit `into[its unit]`.

    The k-th position of a unit corresponds to the k-th of another of its kind: after a flatten, the same pixel.
    """
    order = np.argsort(member.units, kind="stable")
    ordered = member.units[order]
    starts = np.searchsorted(ordered, np.arange(into.size))
    nth = np.empty(order.size, dtype=np.int64)
    nth[order] = np.arange(order.size) - starts[ordered]
    return np.asarray(member.positions[order][starts[into[member.units]] + nth], dtype=np.int64)


def unit_rows(program: Program, member: Member, units: Sequence[int] | IntArray) -> torch.Tensor:
    """What the units write into an axis, `[units, elements]`; they are of one kind."""
    picked = [member.positions[member.units == unit] for unit in units]
    positions = np.stack(picked) if picked else np.zeros((0, 0), dtype=np.int64)
    rows = Tensors(program).rows(member.axis, positions.ravel())
    return rows.reshape(len(picked), -1)


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
    return member.positions[np.isin(member.units, [unit for cluster in clusters for unit in cluster])]


@dataclass
class Tensors:
    """A program's tensors under change; what isn't touched is shared. Half precision is summed in float32."""

    program: Program
    _changed: dict[str, torch.Tensor] = field(default_factory=dict)

    def rows(self, axis: Axis, positions: IntArray) -> torch.Tensor:
        """The elements that belong to each of an axis's positions, `[positions, elements]`; a copy."""
        tensor = self._changed.get(axis.tensor)
        if tensor is None:
            tensor = self.program.tensors[axis.tensor].detach()
        return _blocks(self.program, axis, tensor)[_places(self.program, axis, positions)].unsqueeze(-1).flatten(1)

    def add(self, member: Member, into: IntArray) -> None:
        """Add the columns of every unit that isn't its own representative into its representative's."""
        target = partners(member, into)
        moved = target != member.positions
        if moved.any():
            rows = self.rows(member.axis, member.positions[moved])
            self._write(member.axis, target[moved], rows, accumulate=True)

    def average(self, member: Member, into: IntArray) -> None:
        """Give every unit the mean of the units that have its representative, where they aren't equal already."""
        target = partners(member, into)
        mine = (np.bincount(into, minlength=into.size)[into] > 1)[member.units]
        if not mine.any():
            return
        rows = self.rows(member.axis, member.positions[mine]).double()
        _, number, count = np.unique(target[mine], return_inverse=True, return_counts=True)
        where, size = torch.from_numpy(number), torch.from_numpy(count)
        sums = torch.zeros(count.size, rows.shape[1], dtype=rows.dtype).index_add_(0, where, rows)
        means = (sums / size[:, None])[where]
        if not torch.equal(means, rows):
            self._write(member.axis, member.positions[mine], means)

    def finish(self) -> Program:
        """The program with the changed tensors, in their own precision."""
        state: dict[str, State] = dict(self.program.state)
        for name, value in self.program.state.items():
            if not isinstance(value, nn.Module):
                if name in self._changed:
                    state[name] = _like(value, self._changed[name])
                continue
            own = {n: t for n, t in module_tensors(name, value) if n in self._changed}
            if own:
                state[name] = clone_module(value, {n[len(name) + 1 :]: self._changed[n].to(t) for n, t in own.items()})
        return self.program.derive(state=state)

    def _write(self, axis: Axis, positions: IntArray, rows: torch.Tensor, accumulate: bool = False) -> None:
        if axis.tensor not in self._changed:
            old = self.program.tensors[axis.tensor].detach()
            self._changed[axis.tensor] = old.to(torch.promote_types(old.dtype, torch.float32), copy=True)
        blocks = _blocks(self.program, axis, self._changed[axis.tensor])
        values = rows.to(blocks.dtype).reshape(len(positions), *blocks.shape[2:])
        blocks.index_put_(_places(self.program, axis, positions), values, accumulate=accumulate)


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    new = new.to(old.dtype)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _blocks(program: Program, axis: Axis, tensor: torch.Tensor) -> torch.Tensor:
    """A view `[groups, positions of a group, ...]` of a tensor."""
    groups = program.groups_along(axis)
    if groups == 1:
        return tensor.movedim(axis.dim, 0).unsqueeze(0)
    return tensor.view(groups, -1, *tensor.shape[1:]).movedim(2, 1)


def _places(program: Program, axis: Axis, positions: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    width = program.size(axis) // program.groups_along(axis)
    return torch.from_numpy(positions // width), torch.from_numpy(positions % width)


# -- how far units are apart ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """The largest difference inside a cluster, relative to the largest value of the axis it was found in."""

    size: float
    group: str
    cluster: tuple[int, ...]
    axis: Axis


def gaps(program: Program, group: Group, clusters: Clusters) -> Iterator[Gap]:
    """The largest difference from a cluster's first unit, for each axis that decides what the channels' values are."""
    into = representatives(group.size, clusters)
    of_unit = {unit: cluster for cluster in clusters for unit in cluster}
    tensors = Tensors(program)
    for member in producers(group):
        target = partners(member, into)
        moved = np.flatnonzero(target != member.positions)
        if not moved.size:
            continue
        rows, kept = (tensors.rows(member.axis, places[moved]) for places in (member.positions, target))
        apart = (rows - kept).double().abs().amax(1)
        worst = int(apart.argmax())
        scale = float(program.tensors[member.axis.tensor].detach().abs().max()) or 1.0
        yield Gap(float(apart[worst]) / scale, group.name, of_unit[int(member.units[moved[worst]])], member.axis)


def producers(group: Group) -> tuple[Member, ...]:
    """The members that decide what the channels' values are."""
    return tuple(member for member in group.members if member.role in PRODUCERS)


def identical(program: Program, group: Group, units: IntArray, tolerance: float) -> Clusters:
    """The units of one kind that agree with each other on every axis that decides what their channels' values are.

    Each unit joins the first that it agrees with; `tolerance` is relative to the largest value of each tensor.
    """
    parts = []
    for member in producers(group):
        if np.isin(units, member.units).all():
            scale = program.tensors[member.axis.tensor].detach().abs().max().double().clamp_min(1e-300)
            parts.append(unit_rows(program, member, units).double() / scale)
    values = torch.cat(parts, 1).numpy()
    return tidy(tuple(units[found].tolist()) for found in _agreeing(values, tolerance))


def _agreeing(values: npt.NDArray[np.float64], tolerance: float) -> Iterator[IntArray]:
    """Rows that agree with the first of them; sums of rows rule out most before any is compared in full."""
    sums = values.sum(axis=1)
    slack = (tolerance + 1e-12) * values.shape[1]
    left = np.arange(len(values))
    while left.size:
        near = left[np.abs(sums[left] - sums[left[0]]) <= slack]
        found = near[(np.abs(values[near] - values[left[0]]) <= tolerance).all(axis=1)]
        yield found
        left = np.setdiff1d(left, found, assume_unique=True)


def tidy(clusters: Iterable[Iterable[int]]) -> Clusters:
    """Clusters as the fact holds them: sorted, by their smallest unit, without those of one unit."""
    ordered = (tuple(sorted(cluster)) for cluster in clusters)
    return tuple(sorted(cluster for cluster in ordered if len(cluster) > 1))


def chi(program: Program, groups: Mapping[str, Group], clusters: Mapping[str, Clusters]) -> float:
    """`spread`, summed over the groups: 0 where every cluster has collapsed."""
    return sum(spread(program, groups[name], found) for name, found in clusters.items())
