"""What a unit's readers can't make up for: the error that remains in their outputs once they are refit without it.

    E_g(k)    the least mean squared error of what the readers of group g give, with k of its units gone and their
              weights on all others refit, as a share of the variance of what they give
    score     by how much E_g grows with the unit, in the order in which the cheapest goes first

A unit that others can stand for costs nothing, however large it is. Where a residual sum directly follows a layer, the
share is one of the sum's variance. The scores of a group are the slopes of its curve (`repairing/surgeon.py`), so that
their sums are errors at every width: for the knapsack, and for `repair: least_squares`, which does the refit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from prunec.compiler.groups.analysis import Group
from prunec.compiler.ir.program import IntArray, Program
from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Criterion, Found, Setting
from prunec.passes.repairing.inputs import Inputs, bytes_of_moments, in_lots, look
from prunec.passes.repairing.layers import Layer, Search
from prunec.passes.repairing.surgeon import Formed, Places, Reader, Sampled, curve


class Reconstruction(Criterion):
    """The error that remains in a unit's readers after their least squares refit, as a share of what they give."""

    name: ClassVar[str] = "reconstruction"
    data: ClassVar[bool] = True
    axes: ClassVar[str] = "readers"
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    ridge: Annotated[float, Field(gt=0)] = Field(
        default=1e-3, description="what is added to the inputs' moments, as a share of their mean diagonal"
    )
    relative_to: Literal["sum", "own", "none"] = Field(
        default="sum",
        description="what errors are shares of: the variance of the residual sum that a layer's output goes into, or "
        "of that output alone; `none` for errors as they are",
    )

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence about the units of every group that a layer reads which can be refit."""
        program = setting.program.deployed
        # A depthwise layer's outputs go with its inputs: nothing of it is left to be made up for.
        every = [
            each for each in Search(program, program).found(everywhere=True).layers if not _is_depthwise(each, program)
        ]
        layers = {layer.weight: layer for layer in every if not layer.form.turned}

        def needed(group: Group) -> int:
            return sum(bytes_of_moments(program.tensors[weight]) for weight in _read_by(group, layers))

        for groups in in_lots(setting.groups, needed):
            asked = {weight: layers[weight] for group in groups for weight in _read_by(group, layers)}
            known = look(asked.values(), program, setting.calibration, setting.context)
            for group in groups:
                readers = [reader for seen in _read_by(group, known) for reader in self._readers(group, known[seen])]
                if not readers:
                    continue
                left = curve(readers, group.free)
                scores = left.scores(group.size)
                units = np.flatnonzero(~np.isnan(scores))
                yield group.name, Evidence("the readers' refit", units, scores[units], remaining=left.error)

    def _readers(self, group: Group, seen: Inputs) -> Iterator[Reader]:
        """The least squares of one layer that reads the group, one for each of its own groups."""
        members = [m for m in group.readers if m.axis.tensor == seen.layer.weight]
        places, units = (np.concatenate([getattr(m, name) for m in members]) for name in ("positions", "units"))
        taps = seen.weight.shape[1] // seen.channels
        counts = (seen.counts / self._whole(seen)).sqrt().unsqueeze(1) * seen.weight
        moments = seen.centred_rows() if seen.is_wide else seen.second_moments()
        for number, (each, weight) in enumerate(zip(moments, counts, strict=True)):
            mine = places // seen.channels == number
            rows = _rows(places[mine] % seen.channels, units[mine], group.size, taps)
            size = float(each.square().sum() if seen.is_wide else each.diagonal().sum()) / len(weight)
            if size > 0 and mine.any():
                kind = Sampled if seen.is_wide else Formed
                yield kind(each, weight, Places.of(rows, each.device), self.ridge * size)

    def _whole(self, seen: Inputs) -> float:
        """What the layer's errors are shares of."""
        if self.relative_to == "none":
            return 1.0
        if self.relative_to == "sum" or seen.is_wide:
            return max(seen.variance(), 1e-300)
        each = (seen.weight * (seen.second_moments() @ seen.weight)).sum(1)
        return max(float((each * seen.counts).sum()), 1e-300)


def _is_depthwise(layer: Layer, program: Program) -> bool:
    """Whether each of the layer's groups reads one channel."""
    return (
        getattr(program.state.get(str(layer.node.target)), "groups", 1) > 1
        and program.tensors[layer.weight].shape[1] == 1
    )


def _read_by(group: Group, layers: Mapping[str, Layer] | Mapping[str, Inputs]) -> list[str]:
    """The weights that read the group, of layers that are known."""
    return list(dict.fromkeys(m.axis.tensor for m in group.readers if m.axis.dim == 1 and m.axis.tensor in layers))


def _rows(channels: IntArray, units: IntArray, size: int, taps: int) -> list[IntArray]:
    """The rows of the weight that belong to each of `size` units, from the channel and the unit of each position."""
    order = np.argsort(units, kind="stable")
    rows = channels[order][:, None] * taps + np.arange(taps)
    ends = np.searchsorted(units[order], np.arange(size + 1))
    return [rows[low:high].ravel() for low, high in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
