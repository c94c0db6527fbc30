"""Centripetal SGD (Ding et al. 2019): the filters of a cluster are trained to become one.

    gradient of filter j in cluster H <-  mean of H's gradients  +  strength * (F_j - mean of H's filters)

All filters of a cluster then move alike, as their mean would under plain SGD, and what sets them apart shrinks by the
factor `1 - lr * strength` a step, whatever the data are; momentum mu makes that about `1 - lr * strength / (1 - mu)`.
The decay part of the update is the optimizer's own weight decay.

    clusters = ClusterSlices.of(program, model)          # the program has the fact `clusters`
    optimizer.zero_grad()
    loss.backward()
    add_centripetal(clusters, 3e-3)
    optimizer.step()
    ...
    sum(chi(clusters).values())                       # falls to nothing
    collapse(clusters)                                   # what is left of it, such as rounding, is taken out

Every tensor takes part that decides what the channels of a cluster are: kernels and biases of all coupled writers,
norms and depthwise kernels behind them, at each place of a concatenation, and the rows of a head. Sums over clusters
are one segmented sum for all tensors whose slices have equally many elements: O(parameters), in one order, so that the
same machine always gives the same bits.

That is exact for steps that are linear in gradients (SGD, momentum, Nesterov). Others, such as Adam, divide gradients
by their own sizes; for these the pull is a step of its own behind the optimizer's, as AdamW's decay is: `F_j -= lr *
strength * (F_j - mean)`. Since all of a cluster have the same gradients, and so the same moments, their steps are equal
and only that pull sets them apart from how they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.compiler.rewrite.merge import Clusters, partners, producers, representatives
from prunec.passes.merge import check_means, mergeable
from prunec.passes.training.masks import masks_of
from prunec.passes.training.slices import slice_rows
from prunec.passes.training.updates import Update, gradient_of

_NORMS = nn.modules.batchnorm._NormBase


class _Along(NamedTuple):
    """A tensor, and the dimension along which its slices belong to clusters; `groups` as in `slices.py`."""

    parameter: nn.Parameter | None
    """None for a buffer, which a move to another device makes anew: it is looked up by its name."""
    name: str
    dim: int
    groups: int
    slot: IntArray
    """[slices]: which are to become equal, as numbers from 0 on; a slice that is in no cluster has one of its own."""
    group: IntArray
    """[slices]: the number of the group that its cluster is of, -1 for none."""
    follows: bool = False
    """Whether it is a norm's running statistics, which follow the kernels by themselves."""


class _Batch:
    """Slices of equally many elements, of several tensors, as the rows of one matrix."""

    def __init__(self, along: Sequence[_Along], groups: int, device: torch.device) -> None:
        self.along = along
        starts = np.cumsum([0, *(each.slot.max() + 1 for each in along)])
        slot = np.concatenate([each.slot + start for each, start in zip(along, starts[:-1], strict=True)])
        group = np.concatenate([np.where(each.group < 0, groups, each.group) for each in along])
        order = np.argsort(slot, kind="stable")
        self.slot, self.order, self.counts, self.group = (
            torch.from_numpy(numbers).to(device) for numbers in (slot, order, np.bincount(slot), group)
        )
        self.sizes = [each.slot.size for each in along]
        self.lengths = torch.tensor(self.sizes, device=device)

    def rows(self, values: Iterable[Tensor]) -> Tensor:
        """[slices, elements] of these values, one for each tensor; half precision is summed in float32."""
        views = (slice_rows(value, each.dim, each.groups) for value, each in zip(values, self.along, strict=True))
        rows = torch.cat([view.reshape(n, -1) for view, n in zip(views, self.sizes, strict=True)])
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def means(self, rows: Tensor) -> Tensor:
        """Every row's cluster mean, in its place."""
        return torch.segment_reduce(rows[self.order], "mean", lengths=self.counts, unsafe=True)[self.slot]

    def laid(self, numbers: Tensor) -> Tensor:
        """[slices, 1]: the number of each tensor, [tensors], at all of its slices."""
        return torch.repeat_interleave(numbers, self.lengths)[:, None]

    def write(self, values: Iterable[Tensor], rows: Tensor) -> None:
        """Put rows into these values, in place."""
        views = [slice_rows(value, each.dim, each.groups) for value, each in zip(values, self.along, strict=True)]
        parts = [part.view(view.shape) for part, view in zip(torch.split(rows, self.sizes), views, strict=True)]
        torch._foreach_copy_(views, parts)


@dataclass(frozen=True)
class ClusterSlices:
    """The slices of a model's tensors that belong to clusters."""

    module: nn.Module
    groups: tuple[str, ...]
    """The groups that have clusters."""
    along: tuple[_Along, ...]
    _batches: dict[Any, list[_Batch]] = field(default_factory=dict)

    @staticmethod
    def of(program: Program, module: nn.Module, clusters: Mapping[str, Clusters] | None = None) -> ClusterSlices:
        """The slices of these clusters, by default those of the program's fact `clusters`, as far as their units can
        stand for each other. The module has the program's parameter names: the model that was traced, or the program's
        own module.

        Raises `PassError` where there are no such groups or units, where channels differ in what has no mean, or where
        a tensor of the program isn't one of the module's.
        """
        if clusters is None and "clusters" not in program.facts:
            raise PassError("the program has no clusters", hint="run `cluster` on it, or name them")
        asked = program if clusters is None else program.with_facts(clusters=clusters)
        found, _ = mergeable(asked)
        check_means(program, found)
        analysis = analyse(program)
        names = tuple(found)
        along: dict[tuple[int, int], _Along] = {}
        known = _Known(module)
        for axis, (target, group) in _by_axis(analysis, found).items():
            tensor = known[axis.tensor]
            along.setdefault((id(tensor), axis.dim), _along(program, axis, tensor, target, group))
        return ClusterSlices(module, names, tuple(along.values()))

    def tensor(self, along: _Along) -> Tensor:
        """The tensor itself."""
        return along.parameter if along.parameter is not None else attrgetter(along.name)(self.module)

    @property
    def learning(self) -> list[_Batch]:
        """The parameters that are trained now."""
        return self._in_batches(
            tuple(p is not None and p.requires_grad for p in (each.parameter for each in self.along))
        )

    @property
    def every(self) -> list[_Batch]:
        """All tensors."""
        return self._in_batches((True,) * len(self.along))

    def tensors(self, batch: _Batch) -> list[Tensor]:
        """The tensors of a batch."""
        return [self.tensor(each) for each in batch.along]

    def _in_batches(self, chosen: tuple[bool, ...]) -> list[_Batch]:
        """Those of one kind together; a tensor that has clusters along two dimensions is in two batches, in turn."""
        some = [each for each, wanted in zip(self.along, chosen, strict=True) if wanted]
        device = self.tensor(some[0]).device if some else torch.device("cpu")
        if (chosen, device) not in self._batches:
            kinds: dict[Any, list[_Along]] = {}
            turns: dict[str, int] = {}
            for each in some:
                tensor = self.tensor(each)
                turn = turns[each.name] = turns.get(each.name, -1) + 1
                elements = tensor.numel() // each.slot.size
                kind = (turn, tensor.dtype, each.parameter is None, tensor.ndim > 1, elements)
                kinds.setdefault(kind, []).append(each)
            self._batches[chosen, device] = [_Batch(alike, len(self.groups), device) for alike in kinds.values()]
        return self._batches[chosen, device]


class _Known(dict[str, Tensor]):
    """A module's parameters and buffers by all of their names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.named_buffers(remove_duplicate=False))
        self.update(module.named_parameters(remove_duplicate=False))

    def __missing__(self, name: str) -> Tensor:
        message = f"the model that is trained has no tensor '{name}', which its program has"
        raise PassError(message, hint=nearest(name, self) or "train the program's own module, `program.module`")


def _by_axis(analysis: Analysis, clusters: Mapping[str, Clusters]) -> dict[Axis, tuple[IntArray, IntArray]]:
    """Axis -> (the position whose place each of its positions takes, the number of its group; -1 for none)."""
    found: dict[Axis, tuple[IntArray, IntArray]] = {}
    for number, (name, some) in enumerate(clusters.items()):
        group = analysis.groups[name]
        into = representatives(group.size, some)
        joined = np.bincount(into, minlength=into.size)[into] > 1
        for member in producers(group):
            inside = joined[member.units]
            if not inside.any():
                continue
            if member.axis not in found:
                size = analysis.program.size(member.axis)
                found[member.axis] = np.arange(size), np.full(size, -1)
            target, of_group = found[member.axis]
            target[member.positions] = partners(member, into)
            of_group[member.positions[inside]] = number
    return found


def _along(program: Program, axis: Axis, tensor: Tensor, target: IntArray, group: IntArray) -> _Along:
    slot = np.unique(target, return_inverse=True)[1].astype(np.int64)
    parameter = tensor if isinstance(tensor, nn.Parameter) else None
    follows = parameter is None and isinstance(program.state.get(axis.owner), _NORMS)
    return _Along(parameter, axis.tensor, axis.dim, program.groups_along(axis), slot, group, follows)


def joined_masks(program: Program) -> dict[str, Tensor]:
    """The program's masks, where filters that are to become equal have the zeros that all of their cluster have. Others
    would keep them apart."""
    masks = masks_of(program)
    clusters, _ = mergeable(program) if masks else ({}, ())
    for axis, (target, _) in _by_axis(analyse(program), clusters).items():
        if axis.tensor in masks:
            mask = masks[axis.tensor].clone()
            rows = slice_rows(mask, axis.dim, program.groups_along(axis))
            slot = torch.from_numpy(np.unique(target, return_inverse=True)[1])
            stays = rows.reshape(len(slot), -1).to(torch.int32)
            any_stays = stays.new_zeros(int(slot.max()) + 1, stays.shape[1]).index_add_(0, slot, stays) > 0
            rows.copy_(any_stays[slot].view(rows.shape))
            masks[axis.tensor] = mask
    return masks


# -- the update ----------------------------------------------------------------------------------------------------


def _of(batch: _Batch, strength: float, vectors: float) -> float:
    """The pull on the kernels of a batch, or on its biases and norms, which have one dimension."""
    parameter = batch.along[0].parameter
    return strength * (vectors if parameter is not None and parameter.ndim == 1 else 1.0)


@torch.no_grad()
def merge_gradients(clusters: ClusterSlices) -> None:
    """Give every filter the mean of its cluster's gradients: `Gamma @ G` of the paper, for all tensors."""
    for batch in clusters.learning:
        gradients = [gradient_of(each.parameter) for each in batch.along if each.parameter is not None]
        batch.write(gradients, batch.means(batch.rows(gradients)))


@torch.no_grad()
def add_centripetal(clusters: ClusterSlices, strength: float, vectors: float = 1.0) -> None:
    """Average the gradients in every cluster and add the centripetal pull: between `backward()` and `step()` of SGD.

    `vectors` is the share of `strength` that pulls biases and norms. With `optimizer`'s weight decay eta, that is the
    update `Gamma @ G + Lambda @ W` of the paper. A filter that is alone gets its own gradient, bit for bit.
    """
    for batch in clusters.learning:
        gradients = [gradient_of(each.parameter) for each in batch.along if each.parameter is not None]
        rows = batch.rows(clusters.tensors(batch))
        pull = (rows - batch.means(rows)).mul_(_of(batch, strength, vectors))
        batch.write(gradients, pull.add_(batch.means(batch.rows(gradients))))


@torch.no_grad()
def pull_together(clusters: ClusterSlices, share: float | Mapping[Tensor, float], vectors: float = 1.0) -> None:
    """Move every filter a share of the way to its cluster's mean; biases and norms, `vectors` times that.

    To be called behind the step of an optimizer other than SGD, with the learning rate times the strength: for all
    parameters, or for each. See the module's text.
    """
    for batch in clusters.learning:
        tensors = clusters.tensors(batch)
        rows = batch.rows(tensors)
        each = [share if isinstance(share, float) else share.get(tensor, 0.0) for tensor in tensors]
        pulls = torch.tensor([_of(batch, pull, vectors) for pull in each], device=rows.device, dtype=rows.dtype)
        batch.write(tensors, rows.sub_((rows - batch.means(rows)).mul_(batch.laid(pulls))))


@torch.no_grad()
def chi(clusters: ClusterSlices) -> dict[str, float]:
    """Group -> the sum over its clusters, and over all tensors, of `||filter - cluster mean||^2`: 0 where all have
    collapsed.

    Running statistics of norms count relative to the largest of their tensor, since they only follow the kernels.
    """
    sums = np.zeros(len(clusters.groups) + 1)
    for batch in clusters.every:
        tensors = clusters.tensors(batch)
        rows = batch.rows(tensors)
        apart = (rows - batch.means(rows)).double()
        if batch.along[0].parameter is None:
            apart /= batch.laid(torch.stack([_size(each, x) for each, x in zip(batch.along, tensors, strict=True)]))
        sums += np.bincount(batch.group.cpu(), apart.square().sum(1).cpu(), sums.size)
    return dict(zip(clusters.groups, sums.tolist(), strict=False))


def _size(along: _Along, buffer: Tensor) -> Tensor:
    """What the entries of a buffer are relative to."""
    size = buffer.double().abs().max()
    return size if along.follows and size else torch.ones_like(size)


@torch.no_grad()
def collapse(clusters: ClusterSlices) -> None:
    """Give every filter, bias and norm entry its cluster's mean, running statistics among them."""
    for batch in clusters.every:
        tensors = clusters.tensors(batch)
        batch.write(tensors, batch.means(batch.rows(tensors)))


class Collapse(Update):
    """Trains the filters of each cluster to become one, by any optimizer.

    Where chi has fallen below `below`, the training may end, unless it goes on `to_the_end`, and what is left of the
    differences is taken out, so that a merge is exact. `schedule` is what the strength is multiplied by, given the
    share of the steps that are done.
    """

    def __init__(
        self,
        clusters: ClusterSlices,
        strength: float,
        vectors: float = 1.0,
        *,
        below: float = 0.0,
        to_the_end: bool = False,
        schedule: Callable[[float], float] = lambda done: 1.0,
    ) -> None:
        self.clusters, self.start, self.vectors = clusters, strength, vectors
        self.below, self.to_the_end, self.schedule = below, to_the_end, schedule
        self.optimizer: Optimizer | None = None
        self.steps, self.total = 0, 0
        self._is_due = False
        self._reached: Mapping[str, float] | None = None

    @property
    def strength(self) -> float:
        """The pull of the next step."""
        return self.start * self.schedule(min(self.steps / self.total, 1.0) if self.total else 0.0)

    def attach(self, optimizer: Optimizer) -> None:
        """The optimizer; what it remembers of earlier steps is averaged, too."""
        self.optimizer = optimizer
        for batch in self.clusters.learning:
            known = [optimizer.state.get(tensor, {}) for tensor in self.clusters.tensors(batch)]
            for key in {key for state in known for key in state}:
                values = [state.get(key) for state in known]
                if all(isinstance(value, Tensor) and value.ndim for value in values):
                    batch.write(values, batch.means(batch.rows(values)))

    def planned(self, steps: int) -> None:
        """How many steps the schedule has."""
        self.total = steps

    @property
    def is_linear(self) -> bool:
        """Whether the optimizer's step is linear in the gradients."""
        return type(self.optimizer) is SGD and not self.optimizer.defaults.get("maximize")

    def before_step(self) -> None:
        """Average the gradients; add the pull, where the step is linear."""
        if self.is_linear:
            add_centripetal(self.clusters, self.strength, self.vectors)
        else:
            merge_gradients(self.clusters)
        self._is_due = True

    def after_step(self) -> None:
        """Pull, behind a step that isn't linear; and count the step."""
        if not self._is_due:
            return
        self._is_due = False
        if not self.is_linear:
            assert self.optimizer is not None, "attach the optimizer first"
            groups = self.optimizer.param_groups
            shares = {p: float(group["lr"]) * self.strength for group in groups for p in group["params"]}
            pull_together(self.clusters, shares, self.vectors)
        self.steps += 1

    def measures(self) -> Mapping[str, float]:
        """`chi`, over all groups; once it has finished, what it was before."""
        return {"chi": sum(self._chi().values())}

    def figures(self) -> Mapping[str, float]:
        """`chi` of each group, where there are several."""
        found = self._chi()
        return {f"chi {name}": value for name, value in found.items()} if len(found) > 1 else {}

    def _chi(self) -> Mapping[str, float]:
        return chi(self.clusters) if self._reached is None else self._reached

    @property
    def collapsed(self) -> bool:
        """Whether chi is below the bound."""
        return bool(self.clusters.groups) and self.measures()["chi"] < self.below

    def ends(self) -> str:
        """That the clusters have collapsed, if they have."""
        if self.to_the_end or not self.collapsed:
            return ""
        return f"chi is below {self.below:g}: the clusters have collapsed"

    def finish(self) -> None:
        """Take out what is left of the differences, if the clusters have collapsed."""
        self._reached = chi(self.clusters)
        if self.collapsed:
            collapse(self.clusters)

    def state_dict(self) -> dict[str, Any]:
        """The steps so far."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.steps = int(state["steps"])
