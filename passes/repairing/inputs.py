"""What is seen of layers over calibration data, in one run for many of them: second moments of what they read, and the
variance of what they give.

    layer       u [rows, groups, p]        A = E[u u^T] - E[u] E[u]^T                    a convolution, a linear layer
    wide layer  u [n, 1, p], n < p         the rows themselves, as many as say enough    a classifier behind a flatten
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import torch
from torch import Tensor, fx

from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context
from prunec.compiler.verify.interpreter import Interpreter, StepError, precision_of
from prunec.passes.calibration.calibration import SAMPLES, Calibration, bytes_of_a_sample
from prunec.passes.repairing.layers import Layer, affine_of
from prunec.passes.repairing.moments import Moments
from prunec.passes.repairing.refit import HELD_OUT
from prunec.passes.repairing.rows import chosen, of_inputs, of_outputs, positions
from prunec.passes.repairing.walk import AT_ONCE, feeds_of, numbers_of

ROWS: Final = 32_000
"""About how many output positions of a layer are looked at."""
WIDE: Final = 5_000
"""A layer that reads more keeps rows in place of moments."""
WIDE_ROWS: Final = 1_024
_MEMORY: Final = 2**30
"""About how many bytes the moments of all layers that are looked at together may take."""

Each = TypeVar("Each")


def bytes_of_moments(layer: Layer, program: Program) -> int:
    """What the moments of a layer take."""
    laid = layer.laid_in(program)
    return 8 * int(laid.shape[0]) * min(laid[0, ..., 0].numel(), WIDE) ** 2


def in_lots(every: Iterable[Each], needs: Callable[[Each], int]) -> Iterator[list[Each]]:
    """Layers, or what is made of several, in lots of as many as memory holds the moments of."""
    lot, held = list[Each](), 0
    for each in every:
        needed = needs(each)
        if lot and held + needed > _MEMORY:
            yield lot
            lot, held = [], 0
        lot.append(each)
        held += needed
    if lot:
        yield lot


@dataclass
class Inputs:
    """What was seen of one layer."""

    layer: Layer
    weight: Tensor
    """[groups, p, outputs of a group], in float64."""
    counts: Tensor
    """[groups, outputs of a group]: how much the squared error of an output counts: as its batch norm scales it."""
    moments: Moments
    """Of inputs; of a wide layer the count and the sum alone."""
    held: Moments | None = None
    """The same of the samples that aren't fitted, but say how good a fit is: about one in `HELD_OUT`, by what a sample
    is alone; None where all are fitted."""
    rows: list[Tensor] = field(default_factory=list)
    """Of a wide layer: [some rows, groups, p]."""
    held_rows: list[Tensor] = field(default_factory=list)
    outputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[2, channels]: the sums of what the target gives, and of its squares."""
    leaves_out: bool = False
    """Whether values that aren't finite are left out; else they are in all sums."""
    left_out: set[int] = field(default_factory=set)
    """The numbers of samples of which some values are left out, since they aren't finite."""

    @staticmethod
    def of(layer: Layer, program: Program, *, hold: bool) -> Inputs:
        """Nothing seen yet; with `hold`, some samples will be held out."""
        groups, rows = layer.form.groups, layer.laid_in(program).double().flatten(1, -2)
        p, outputs = rows.shape[1], groups * rows.shape[2]
        counts = torch.ones(outputs, dtype=torch.float64, device=rows.device)
        if layer.norm is not None:
            counts = affine_of(program.state[str(layer.norm.target)]).scale.square()

        def nothing() -> Moments:
            moments = Moments.none(groups, 0 if p > WIDE else p, 0, rows.device)
            moments.inputs = rows.new_zeros(groups, p)
            return moments

        held, given = nothing() if hold else None, rows.new_zeros(2, outputs)
        return Inputs(layer, rows, counts.reshape(groups, -1), nothing(), held, outputs=given)

    @property
    def is_wide(self) -> bool:
        """Whether rows are kept in place of moments."""
        return self.weight.shape[1] > WIDE

    def add(self, layer: Layer, x: Tensor, given: Tensor, samples: Sequence[int], rows: int) -> None:
        """Take in what a call of the layer reads and what its target gives, at about `rows` positions of each
        sample."""
        batch, form, key = layer.batch, layer.form, zlib.crc32(layer.node.name.encode())
        at = chosen(samples, positions(given, batch, form), rows, key)
        u = of_inputs(form, x, given, batch, at)
        t = of_outputs(given, batch, at, form).double()
        fine, sample = u.isfinite().flatten(1).all(1) & t.isfinite().all(1), at.sample
        if self.leaves_out and not bool(fine.all()):
            self.left_out |= {samples[index] for index in torch.unique(sample[~fine.cpu()]).tolist()}
            u, t, sample = u[fine], t[fine], sample[fine.cpu()]
        self.outputs += torch.stack([t.sum(0), t.square().sum(0)])
        if self.held is None:
            self._take(u, self.moments, self.rows)
            return
        held = torch.tensor([number % HELD_OUT == 0 for number in samples])[sample].to(u.device)
        self._take(u[held], self.held, self.held_rows)
        self._take(u[~held], self.moments, self.rows)

    def _take(self, u: Tensor, moments: Moments, rows: list[Tensor]) -> None:
        if self.is_wide:
            rows.append(u)
            moments.count += len(u)
            moments.inputs += u.double().sum(0)
        else:
            moments.add(u, u.new_zeros(len(u), u.shape[1], 0))

    @property
    def is_judged(self) -> bool:
        """Whether there are both samples that are fitted and samples that are held out."""
        return self.held is not None and self.held.count > 0 and self.moments.count > 0

    @property
    def _fitted(self) -> tuple[Moments, list[Tensor]]:
        """What is fitted: what was held out, where there is nothing else."""
        if self.held is None or self.moments.count:
            return self.moments, self.rows
        return self.held, self.held_rows

    @property
    def mean(self) -> Tensor:
        """[groups, p]: what is taken from the inputs, since the bias makes up for it; zero where there is none."""
        moments, _ = self._fitted
        mean: Tensor = moments.inputs / moments.count
        return mean if self.layer.bias is not None else torch.zeros_like(mean)

    def second_moments(self) -> Tensor:
        """A, [groups, p, p], of what is fitted; not of a wide layer."""
        return _about(self._fitted[0], self.mean)

    def held_moments(self) -> Tensor:
        """The same of what is held out, about the mean of what is fitted."""
        assert self.held is not None, "it is judged"
        return _about(self.held, self.mean)

    def centred_rows(self) -> Tensor:
        """[groups, n, p]: of a wide layer, whose A is their product with themselves."""
        moments, rows = self._fitted
        return _centred(rows, moments.count, self.mean)

    def held_centred_rows(self) -> Tensor:
        """The same of what is held out, about the mean of what is fitted."""
        assert self.held is not None, "it is judged"
        return _centred(self.held_rows, self.held.count, self.mean)

    def variance(self) -> float:
        """Of all that the target gives, in the unit of `counts`."""
        count = self.moments.count + (0 if self.held is None else self.held.count)
        mean = self.outputs[0] / count
        each = (self.outputs[1] / count - mean.square()).clamp(min=0)
        return float((each if self.layer.through_norm else each * self.counts.reshape(-1)).sum())


def _about(moments: Moments, mean: Tensor) -> Tensor:
    """E[(u - mean) (u - mean)^T], [groups, p, p]."""
    aside = (moments.inputs / moments.count).unsqueeze(2) * mean.unsqueeze(1)
    about: Tensor = moments.gram / moments.count - aside - aside.transpose(1, 2)
    return about.add_(mean.unsqueeze(2) * mean.unsqueeze(1))


def _centred(rows: Sequence[Tensor], count: int, mean: Tensor) -> Tensor:
    centred: Tensor = (torch.cat(list(rows)).double() - mean) / math.sqrt(count)
    return centred.movedim(0, 1)


def look(
    layers: Iterable[Layer],
    program: Program,
    calibration: Calibration,
    context: Context,
    *,
    hold: bool = False,
    leave_out: bool = False,
) -> Mapping[Hashable, Inputs]:
    """What is seen of each layer's weight (`Part.key`), in one run over the data; `program` is `deployed`. Calls that
    share a weight are seen together. With `hold`, some samples are held out; with `leave_out`, values that aren't
    finite say nothing.

    Raises `DataError` where the model can't take the data.
    """
    found: dict[Hashable, Inputs] = {}
    by_target: dict[fx.Node, list[tuple[Layer, Inputs]]] = defaultdict(list)
    for layer in layers:
        key = layer.part.key(program)
        if key not in found:
            found[key] = replace(Inputs.of(layer, program, hold=hold), leaves_out=leave_out)
        by_target[layer.target].append((layer, found[key]))
    sources = {layer.source for each in by_target.values() for layer, _ in each}
    wanted = calibration.samples or SAMPLES
    dtype = precision_of(program)
    for piece in calibration.pieces(program, context, bytes_of_a_sample(program), AT_ONCE):
        samples, read = numbers_of(piece), dict[fx.Node, Tensor]()
        try:
            for node, value in Interpreter(program, dtype).steps(tuple(feeds_of(program, piece.inputs))):
                if node in sources:
                    read[node] = value.clone()  # what follows may write into it
                for layer, each in by_target.get(node, ()):
                    most = (WIDE_ROWS if each.is_wide else ROWS) // layer.calls
                    each.add(layer, read[layer.source], value, samples, -(-most // wanted))
        except StepError as error:
            raise piece.refused(error) from error
    return found
