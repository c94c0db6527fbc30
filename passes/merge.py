"""Join the channels of each cluster: one writer stays, the readers' columns of the others are added into its own.

    before    conv1.weight [4, ...]  rows a b a c        conv2.weight [..., 4]  columns p q r s
    after     conv1.weight [3, ...]  rows a b c          conv2.weight [..., 3]  columns p+r q s

Where the channels of a cluster are identical the program computes what it did before. Where they differ, `inexact:
mean` gives all of them the mean of their weights, biases and norm vectors first; the result is then compared with the
old program with these means in it. Truth values and whole numbers have no mean: where they differ, nothing is merged.

The unit that stays is the smallest of its cluster. Behind a flatten a channel has a block of columns, and each is added
to the same pixel's. A depthwise convolution, and any grouped one that loses whole groups, reads no other channel: its
kernels belong to the channel like a batch norm's scale, and nothing is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, Member, analyse, hand_on
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.interchangeable import kinds, unmergeable
from prunec.compiler.ir.modules import clone_module
from prunec.compiler.ir.program import Axis, Edge, IntArray, Note, Program, State
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.rewrite.merge import (
    Clusters,
    Counted,
    Gap,
    Tensors,
    chi,
    crowded,
    discrete,
    gaps,
    producers,
    representatives,
)
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.verify.reference import Masked, Reference, Replaced, Same
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.repairing.audit import audit_merge
from prunec.passes.repairing.combining import Read, fold, moments, reads_of, share_left
from prunec.passes.selection.budgets import budgets

_SLACK: Final = 0.002
"""A share of the traced model's cost by which a budget may be missed without a word."""
_WAY_OUT: Final = "train until they agree, or merge their means: {inexact: mean}"


class Merge(Pass):
    """Join the channels of each cluster into one."""

    name = "merge"
    rewrites = True
    needs = frozenset({"clusters"})
    shorthand = "inexact"

    inexact: Literal["refuse", "mean", "least_squares"] = Field(
        default="refuse",
        description="what to do where channels of a cluster differ: stop, give them their mean first, or write those "
        "that go as combinations of those that stay, on calibration data",
    )
    samples: int = Field(512, ge=1, description="`least_squares`: how many samples are looked at; labels aren't")
    split: str = Field("train", description="`least_squares`: the split of the data that they are of")
    tolerance: float = Field(1e-6, ge=0, description="what counts as different, relative to the tensor's largest value")

    def check(self, program: Program) -> None:
        """Raise PassError where the weights say that channels of expected clusters differ, and they may not."""
        expected = program.facts.get("expected_clusters")
        if expected is None:
            return
        groups = analyse(program).groups
        if not isinstance(expected, Counted):
            clusters, _ = mergeable(program.with_facts(clusters=expected))
            check_means(program, clusters)
            self._refuse_wide(_widest(gap for n, part in clusters.items() for gap in gaps(program, groups[n], part)))
            return
        for name, units, count in expected if self.inexact == "refuse" else ():
            if different := crowded(program, groups[name], units, count, self.tolerance):
                raise PassError(
                    f"group '{name}': {units.size} channels are to become {count}, but {different} of them differ by "
                    f"more than the tolerance {self.tolerance:.2g}",
                    hint=_WAY_OUT,
                )

    def _refuse_wide(self, worst: Gap | None) -> None:
        if self.inexact == "refuse" and worst is not None and worst.size > self.tolerance:
            raise _refusal(worst, self.tolerance)

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` where data are needed and there are none, `DataError` where they don't fit."""
        if self.inexact == "least_squares":
            self._calibration.ready(program, context, "merge: least_squares")

    @property
    def _calibration(self) -> Calibration:
        return Calibration(samples=self.samples, split=self.split)

    def run(self, program: Program, context: Context) -> PassResult:
        """Merge. Raises PassError where channels differ and may not."""
        analysis = analyse(program)
        clusters, notes = mergeable(program)
        if self.inexact == "least_squares":
            return self._combined(program, clusters, notes, context)
        apart = {n: _widest(gaps(program, analysis.groups[n], part)) for n, part in clusters.items()}
        worst = _widest(gap for gap in apart.values() if gap)
        if not context.structural:
            check_means(program, clusters)
            self._refuse_wide(worst)
        details = {
            "removed": {name: sum(len(cluster) - 1 for cluster in part) for name, part in clusters.items()},
            "largest_difference": 0.0 if worst is None else worst.size,
            "chi": chi(program, analysis.groups, clusters),
        }
        differing = {name for name, gap in apart.items() if gap and gap.size}
        after = _merged(analysis, clusters, differing) if clusters else program
        missed, told = _missed(program, after, notes, context)
        return PassResult(after, (*notes, *_untied(program, after)), details | missed, told)

    def _combined(
        self, program: Program, clusters: Mapping[str, Clusters], notes: tuple[Note, ...], context: Context
    ) -> PassResult:
        """The program without the units that others stand for."""
        analysis = analyse(program)
        kind, reads, left = kinds(analysis), dict[str, list[Read]](), list(notes)
        for name in clusters:
            found = reads_of(analysis, analysis.groups[name])
            if isinstance(found, str):
                left.append(Note(name, f"its units stay: {found}"))
            else:
                reads[name] = found
        seen = moments([read for some in reads.values() for read in some], analysis.program, self._calibration, context)
        waiting, errors = iter(seen), dict[str, float]()
        tensors, keep = Tensors(analysis.program), np.ones(analysis.size, dtype=bool)
        for name, some in reads.items():
            group, grams = analysis.groups[name], [next(waiting) for _ in some]
            stays = representatives(group.size, clusters[name]) == np.arange(group.size)
            for value in np.unique(kind[group.where][~stays]):
                mine = kind[group.where] == value
                kept, gone = np.flatnonzero(mine & stays), np.flatnonzero(mine & ~stays)
                errors[name] = max(errors.get(name, 0.0), share_left(some, grams, kept, gone))
                for read, gram in _by_axis(tensors, some, grams):
                    fold(tensors, read, gram, kept, gone)
            keep[group.where] = stays
        details = {
            "removed": {name: int((~keep[analysis.groups[name].where]).sum()) for name in reads},
            "error_left": {name: float(f"{error:.3g}") for name, error in errors.items()},
        }
        after = remove_units(hand_on(analysis, tensors.finish()), keep) if reads else program
        missed, told = _missed(program, after, left, context)
        return PassResult(after, (*left, *_untied(program, after)), details | missed, told)

    def reference(self, before: Program, after: Program) -> Reference:
        """The old program; with the clusters' means in its weights where their channels differ. For combinations it is
        the old program with the merged columns of those that stay, and the others masked."""
        if self.inexact == "least_squares":
            return _masked(before, after)
        means = _means(before)
        return Replaced(before, means) if means else Same(before)

    def audit(self, program: Program, result: PassResult, context: Context) -> None:
        """That new columns are combinations of old ones, and those of least squares."""
        if self.inexact == "least_squares":
            audit_merge(program, result.program, list(result.details["removed"]), self._calibration, context)


def mergeable(program: Program) -> tuple[dict[str, Clusters], tuple[Note, ...]]:
    """The clusters whose units can stand for each other, and notes on why others stay as they are."""
    analysis = analyse(program)
    kind = kinds(analysis)
    clusters: dict[str, Clusters] = {}
    notes = []
    clustered = program.facts["clusters"]
    if not isinstance(clustered, Mapping):
        raise PassError("the clusters must be lists of units by group")
    for name, found in clustered.items():
        group = analysis.groups.get(name)
        if group is None:
            raise PassError(f"the clusters name group '{name}', which isn't there", hint=nearest(name, analysis.groups))
        found = _checked(name, found, group.size)
        alike = tuple(cluster for cluster in found if _same_kind(kind[group.where], cluster))
        for cluster in (c for c in found if c not in alike):
            reason = unmergeable(analysis, group, cluster)
            notes.append(Note(name, f"cluster {_spelled(cluster)} isn't merged: {reason}"))
        if alike:
            clusters[name] = alike
    return clusters, tuple(notes)


def check_means(program: Program, clusters: Mapping[str, Clusters]) -> None:
    """Raise `PassError` where the channels of a cluster differ in truth values or whole numbers, which have no mean."""
    groups = analyse(program).groups
    for name, found in clusters.items():
        axes = {member.axis for member in discrete(program, groups[name])}
        for gap in gaps(program, groups[name], found) if axes else ():
            if gap.axis in axes and gap.size:
                dtype = program.tensors[gap.axis.tensor].dtype
                what = "truth values" if dtype == torch.bool else "whole numbers"
                raise PassError(
                    f"group '{name}': the channels of cluster {_spelled(gap.cluster)} aren't identical: {gap.axis} "
                    f"holds {what}, which differ, and have no mean",
                    hint="leave channels in which they differ apart, as `cluster` does where it finds the clusters",
                )


def _checked(name: str, found: object, size: int) -> Clusters:
    """The clusters of a group. Raises PassError where they aren't lists of its units, each unit in one at most."""
    rows = (list, tuple, np.ndarray)
    clusters: list[Any] = list(found) if isinstance(found, rows) else [None]
    if not all(isinstance(cluster, rows) and len(cluster) and _are_whole(cluster) for cluster in clusters):
        raise PassError(f"the clusters of '{name}' must be lists of units")
    checked = tuple(tuple(int(unit) for unit in cluster) for cluster in clusters)
    units = [unit for cluster in checked for unit in cluster]
    odd = next((unit for unit in units if not 0 <= unit < size), None)
    if odd is not None:
        raise PassError(f"the clusters name unit {odd} of '{name}', which has units 0 to {size - 1}")
    if len(set(units)) < len(units):
        raise PassError(f"the clusters of '{name}' name a unit twice")
    return checked


def _are_whole(cluster: Iterable[Any]) -> bool:
    return all(isinstance(unit, int | np.integer) and not isinstance(unit, bool) for unit in cluster)


def _same_kind(kind: IntArray, cluster: tuple[int, ...]) -> bool:
    return bool((kind[list(cluster)] == kind[cluster[0]]).all()) and kind[cluster[0]] != NO_UNIT


def _widest(found: Iterable[Gap]) -> Gap | None:
    return max(found, key=lambda gap: gap.size, default=None)


def _merged(analysis: Analysis, clusters: Mapping[str, Clusters], differing: Set[str]) -> Program:
    """Write means into writers of `differing` groups, add up readers' columns, and remove the joined units."""
    tensors = Tensors(analysis.program)
    keep = np.ones(analysis.size, dtype=bool)
    for name, found in clusters.items():
        group = analysis.groups[name]
        into = representatives(group.size, found)
        for member in producers(group) if name in differing else ():
            tensors.average(member, into)
        for member in group.readers:
            if member.axis not in analysis.flow.by_group:
                tensors.add(member, into)
        keep[group.where] = into == np.arange(group.size)
    return remove_units(hand_on(analysis, tensors.finish()), keep)


def _refusal(gap: Gap, tolerance: float) -> PassError:
    return PassError(
        f"group '{gap.group}': the channels of cluster {_spelled(gap.cluster)} aren't identical: they differ by "
        f"{gap.size:.2g} of the largest value of {gap.axis}, more than the tolerance {tolerance:.2g}",
        hint=_WAY_OUT,
    )


def _spelled(cluster: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(unit) for unit in cluster) + "]"


def _missed(
    before: Program, after: Program, notes: Sequence[Note], context: Context
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """For the report, what is left of each budget's resource, and what the clusters would have left, where that is
    less; and the warning of it."""
    planned = before.facts.get("clusters_leave") or {}
    used = {b.name: float(b.resource.now / b.whole) for b in budgets(dict.fromkeys(planned, "100%"), after, context)}
    over = {name: share for name, share in used.items() if share > planned[name] + _SLACK}
    if not over:
        return {}, ()
    shares = " and ".join(f"{share:.1%} of the {name} (not {planned[name]:.1%})" for name, share in over.items())
    why = f"; the first reason: {notes[0]}" if notes else ""
    figures = {name: {"planned": planned[name], "reached": share} for name, share in over.items()}
    return {"missed": figures}, (f"merge: {shares} are left, since some clusters aren't merged{why}",)


def _untied(before: Program, after: Program) -> list[Note]:
    """Notes on tensors that had been one, and are no longer: one of them writes what the other reads."""
    first: dict[int, str] = {}
    notes = []
    for name, tensor in before.tensors.items():
        other = first.setdefault(id(tensor), name)
        if name in after.tensors and other in after.tensors and after.tensors[name] is not after.tensors[other]:
            notes.append(
                Note(name, f"no longer is the same tensor as {other}: one writes the units, the other reads them")
            )
    return notes


def _by_axis(
    tensors: Tensors, reads: Iterable[Read], grams: Iterable[torch.Tensor]
) -> Iterable[tuple[Read, torch.Tensor]]:
    """Each axis once, with the moments of all that it reads: a layer that is called twice reads two values, as two
    layers do that share a weight."""
    found: dict[Axis, tuple[Read, torch.Tensor]] = {}
    for read, gram in zip(reads, grams, strict=True):
        axis = tensors.shared_axis(read.member.axis)
        known = found.get(axis)
        found[axis] = (read, gram) if known is None else (read, known[1] + gram)
    return found.values()


def _masked(before: Program, after: Program) -> Reference:
    """What the removal must leave, where the merged columns are taken from the new program."""
    removed: dict[Axis | Edge, IntArray] = {}
    for axis, left in after.origin.items():
        known = before.origin.get(axis, np.arange(before.size(axis)))
        removed[axis] = np.flatnonzero(~np.isin(known, left))
    state: dict[str, State] = dict(before.state)
    reading = {member.axis for group in analyse(before).groups.values() for member in group.readers}
    for axis in [axis for axis in removed if isinstance(axis, Axis) and axis in reading]:
        module, whole = state.get(axis.owner), before.tensors[axis.tensor].detach().clone()
        if before.groups_along(axis) > 1 or whole.ndim < 2:
            continue
        rows, columns = (
            np.setdiff1d(np.arange(whole.shape[dim]), removed.get(Axis(axis.tensor, dim), ())) for dim in (0, 1)
        )
        whole[rows[:, None], columns] = after.tensors[axis.tensor].detach()
        if isinstance(module, nn.Module):
            state[axis.owner] = clone_module(module, {axis.tensor.removeprefix(f"{axis.owner}."): whole})
        else:
            state[axis.tensor] = nn.Parameter(whole, requires_grad=before.tensors[axis.tensor].requires_grad)
    return Masked(before.derive(state=state), removed)


# -- the reference: means by plain loops, apart from what the rewrite uses ------------------------------------------


def _means(program: Program) -> dict[str, torch.Tensor]:
    """Name -> value, for tensors that the clusters' means change."""
    changed: dict[str, torch.Tensor] = {}
    groups = analyse(program).groups
    clusters, _ = mergeable(program)
    for name, found in clusters.items():
        for member in producers(groups[name]):
            tensor = changed.get(member.axis.tensor)
            if tensor is None:
                tensor = program.tensors[member.axis.tensor].detach().clone()
            if _level(program, member, tensor, found):
                changed[member.axis.tensor] = tensor
    return changed


def _level(program: Program, member: Member, tensor: torch.Tensor, clusters: Clusters) -> bool:
    """Write each cluster's mean into a tensor, in place; whether its channels differed."""
    differed = False
    for cluster in clusters:
        places = [member.positions[member.units == unit].tolist() for unit in cluster]
        for corresponding in zip(*places, strict=True):
            lines = [_line(program, member.axis, tensor, position) for position in corresponding]
            if all(torch.equal(line, lines[0]) for line in lines):
                continue
            mean = torch.stack([line.double() for line in lines]).mean(0)
            differed = True
            for line in lines:
                line.copy_(mean)
    return differed


def _line(program: Program, axis: Axis, tensor: torch.Tensor, position: int) -> torch.Tensor:
    """The part of a tensor that belongs to one position of an axis, as a view."""
    blocks = getattr(program.state.get(axis.owner), "groups", 1) if axis.dim == 1 else 1
    width = tensor.shape[axis.dim]
    return tensor.chunk(blocks)[position // width].select(axis.dim, position % width)
