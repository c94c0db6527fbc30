"""What a unit's readers can't make up for: the error that remains in their outputs once they are refit without it.

    E_g(k)    the least mean squared error of what the readers of group g give, with k of its units gone and their
              weights on all others refit, as a share of the variance of what they give
    R_g       by how much more of the variance of the model's outputs that is (`repairing/reach.py`)
    score     by how much R_g E_g grows with the unit, in the order in which the cheapest goes first

A unit that others can stand for costs nothing, however large it is. R_g is tried: so many units go that E_g is 3%, the
readers are refit, and the model is run. Shares of what readers give, without R_g, are of the residual sum where one
directly follows. The scores of a group are the slopes of its curve (`repairing/surgeon.py`), so that their sums are
errors at every width: for the knapsack, and for `repair: least_squares`, which does the refit. Errors are those on
samples that weren't fitted: on the others a layer that reads more than there are samples has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prunec.compiler.groups.analysis import Group, Member
from prunec.compiler.ir.program import IntArray, Note, Program
from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Criterion, Found, Setting
from prunec.passes.repairing.inputs import Inputs, bytes_of_moments, in_lots, look
from prunec.passes.repairing.layers import Layer, Search, called
from prunec.passes.repairing.reach import Change, changed, reach
from prunec.passes.repairing.surgeon import Curve, Formed, Places, Reader, Sampled, best_ridge, curve

_RIDGES: Final = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Those that are tried, without half of a group's units."""
_USUAL: Final = 1e-3
"""Where no sample can be held out."""
_TRIED: Final = 0.03
"""Where a group's error is so large is tried how far it reaches: about what budgets take."""
_NOTHING: Final = 1e-9
"""Of an error below it nothing can be told."""


@dataclass(frozen=True)
class _Read:
    """The least squares of a layer, or of one of its groups."""

    reader: Reader
    seen: Inputs
    number: int
    """Which of the layer's groups."""
    scale: Tensor
    """[outputs of a group]: the root of what an output's error counts, by which the reader's weights are scaled."""


class Reconstruction(Criterion):
    """The error that remains in a unit's readers after their least squares refit, as a share of what they give."""

    name: ClassVar[str] = "reconstruction"
    data: ClassVar[bool] = True
    axes: ClassVar[str] = "readers"
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    ridge: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="what is added to the inputs' moments, as a share of their mean diagonal, with errors as they are "
        "on all samples; by default a fifth of the samples isn't fitted, and says which ridge is best and what remains",
    )
    relative_to: Literal["outputs", "sum", "own", "none"] = Field(
        default="outputs",
        description="what errors are shares of: the variance of the model's outputs, as far as they reach these; of "
        "the residual sum that a layer's output goes into; or of that output alone; `none` for errors as they are",
    )

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence about the units of every group that a layer reads which can be refit."""
        program = setting.program.deployed
        # A depthwise layer's outputs go with its inputs: nothing of it is left to be made up for.
        every = Search(program, program).found(everywhere=True, shared=True).layers
        layers: dict[str, list[Layer]] = defaultdict(list)
        for layer in every:
            if not _is_depthwise(layer, program):
                layers[layer.weight].append(layer)

        def needed(group: Group) -> int:
            each = sum(bytes_of_moments(layer, program) for layer in _read_by(group, layers))
            return each * (2 if self.ridge is None else 1)

        for groups in in_lots(setting.groups, needed):
            asked = {layer.node: layer for group in groups for layer in _read_by(group, layers)}
            hold = self.ridge is None
            known = look(asked.values(), program, setting.calibration, setting.context, hold=hold, leave_out=True)
            _tell(known.values(), setting)
            keys = {g.name: dict.fromkeys(layer.part.key(program) for layer in _read_by(g, layers)) for g in groups}
            seen = [(group, [known[key] for key in keys[group.name]]) for group in groups]
            sizes = {group.name: group.size for group in groups}
            for name, left in self._curves(seen, setting).items():
                scores = left.scores(sizes[name])
                units = np.flatnonzero(~np.isnan(scores))
                yield name, Evidence("the readers' refit", units, scores[units], remaining=left.error)

    def _curves(self, seen: Sequence[tuple[Group, Sequence[Inputs]]], setting: Setting) -> Mapping[str, Curve]:
        """The curve of each group that has readers, by name, from what is seen of these."""
        program, tried = setting.program.deployed, _TRIED if self.relative_to == "outputs" else None
        curves, trials = dict[str, Curve](), dict[str, Mapping[str, Tensor]]()
        for group, layers in seen:
            reads = [read for layer in layers for read in self._reads(group, layer, program)]
            if not reads:
                continue
            found = curve([read.reader for read in reads], group.free, tried)
            if found.changed is not None:
                trials[group.name] = changed(program, _changes(reads, found.changed.weights))
                found = replace(found, changed=replace(found.changed, weights=()))  # they take much memory
            curves[group.name] = found
        return self._reaching(curves, trials, setting) if trials else curves

    def _reaching(
        self, curves: Mapping[str, Curve], trials: Mapping[str, Mapping[str, Tensor]], setting: Setting
    ) -> Mapping[str, Curve]:
        """The curves of what reaches the model's outputs, by what groups' readers were tried with; as they were, where
        the outputs can't tell."""
        program, tensors = setting.program.deployed, list(trials.values())
        shares = reach(program, tensors, setting.calibration, setting.context, hold=self.ridge is None)
        if np.isnan(shares).any():
            return curves
        found = dict(curves)
        for name, share in zip(trials, shares.tolist(), strict=True):
            own = curves[name].at_change
            if own > _NOTHING:
                found[name] = curves[name].times(share / own)
        return found

    def _reads(self, group: Group, seen: Inputs, program: Program) -> Iterator[_Read]:
        """The least squares of one layer that reads the group, one for each of its own groups."""
        units = _units(group, seen.layer, program)
        scale = (seen.counts / self._whole(seen)).sqrt()
        counts = scale.unsqueeze(1) * seen.weight
        moments = seen.centred_rows() if seen.is_wide else seen.second_moments()
        held = (seen.held_centred_rows() if seen.is_wide else seen.held_moments()) if seen.is_judged else None
        half = np.flatnonzero(group.free)[::2]
        for number, (each, weight, mine) in enumerate(zip(moments, counts, units, strict=True)):
            size = float(each.square().sum() if seen.is_wide else each.diagonal().sum()) / len(weight)
            if not size > 0 or not (mine >= 0).any():
                continue
            kind, ridge, judge = Sampled if seen.is_wide else Formed, (self.ridge or _USUAL) * size, None
            if held is not None:
                judge, tried = held[number], [share * size for share in _RIDGES]
                ridge = best_ridge(each, judge, weight, np.isin(mine, half), tried, sampled=seen.is_wide)
            places = Places.of(_rows(mine, group.size), each.device)
            yield _Read(kind(each, weight, places, ridge, judge), seen, number, scale[number])

    def _whole(self, seen: Inputs) -> float:
        """What the layer's errors are shares of."""
        if self.relative_to == "none":
            return 1.0
        if self.relative_to in ("outputs", "sum") or seen.is_wide:
            return max(seen.variance(), 1e-300)
        each = (seen.weight * (seen.second_moments() @ seen.weight)).sum(1)
        return max(float((each * seen.counts).sum()), 1e-300)


def _tell(known: Collection[Inputs], setting: Setting) -> None:
    """Note that some samples' values are left out."""
    spoilt = [seen for seen in known if seen.left_out]
    if spoilt:
        count = len(set[int]().union(*(seen.left_out for seen in spoilt)))
        samples = "a sample makes" if count == 1 else f"{count} samples make"
        why = f"{samples} values infinite or NaN; these are left out"
        setting.memo.setdefault("notes", []).append(Note(called(spoilt[0].layer.node), why))


def _changes(reads: Sequence[_Read], found: Sequence[Tensor]) -> Iterator[Change]:
    """What becomes of layers, from how the weights of their least squares are changed; means stay as they were, where
    a bias can see to that."""
    seen, weights = dict[int, Inputs](), dict[int, Tensor]()
    for read, each in zip(reads, found, strict=True):
        seen[id(read.seen)] = read.seen
        whole = weights.setdefault(id(read.seen), torch.zeros_like(read.seen.weight))
        whole[read.number] = torch.where(read.scale > 0, each / read.scale, 0.0)
    for key, weight in weights.items():
        yield Change(seen[key].layer, weight, -(seen[key].mean.unsqueeze(1) @ weight).flatten())


def _is_depthwise(layer: Layer, program: Program) -> bool:
    """Whether each of the layer's groups reads one channel."""
    return layer.form.groups > 1 and layer.form.inputs(layer.weight_in(program)) == 1


def _read_by(group: Group, layers: Mapping[str, Sequence[Layer]]) -> list[Layer]:
    """The layers that are known whose weights read the group."""
    found = (
        layer
        for member in group.members
        for layer in layers.get(member.axis.tensor, ())
        if _reads(member, layer) and (layer.part.views or member.axis.dim in layer.form.reading)
    )
    return list(dict.fromkeys(found))


def _reads(member: Member, layer: Layer) -> bool:
    """Whether a layer's weight has the axis, and reads by it; an einsum's dimensions all count as writers."""
    return member.axis.tensor == layer.weight and (member.role == "reader" or layer.form.order is not None)


def _units(group: Group, layer: Layer, program: Program) -> IntArray:
    """[groups of the layer, rows of the weight of each]: the unit that the row belongs to; -1 for none of the group."""
    laid = layer.laid_in(program)
    found = np.full((laid.shape[0], laid[0, ..., 0].numel()), -1)
    shape, form, is_matrix = program.tensors[layer.weight].shape, layer.form, layer.form.conv is None
    for member in (member for member in group.members if _reads(member, layer)):
        if layer.is_plain and member.axis.dim not in form.reading:
            continue
        numbers = np.full(program.size(member.axis), -1)
        numbers[member.positions] = member.units
        if not is_matrix:  # a position is one of all channels that the layer reads
            each = numbers.reshape(laid.shape[0], -1, 1) + np.zeros((1, 1, laid[0, 0, ..., 0].numel()), dtype=np.int64)
            found = np.maximum(found, each.reshape(found.shape))
            continue
        spread = torch.from_numpy(numbers).view([-1 if d == member.axis.dim else 1 for d in range(len(shape))])
        mine = form.laid(layer.part.of(spread.expand(shape).contiguous() if layer.part.views else spread.expand(shape)))
        if layer.is_plain or bool((mine == mine[..., :1]).all()):  # else the axis tells outputs apart
            found = np.maximum(found, mine[..., 0].reshape(found.shape).numpy())
    return found


def _rows(units: IntArray, size: int) -> list[IntArray]:
    """The rows of a weight that belong to each of `size` units, from the unit of each row."""
    order = np.argsort(units, kind="stable")
    ends = np.searchsorted(units[order], np.arange(size + 1))
    return [order[low:high] for low, high in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
