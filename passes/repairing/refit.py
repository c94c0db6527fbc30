"""The repair of one place: what is gathered over the calibration data there, and the values that are written.

LeastSquares   weights and bias, from sampled rows          Bias   the bias alone, from all of them
Statistics     a batch norm's running mean and variance
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx

from prunec.compiler.ir.program import Program
from prunec.passes.repairing.layers import Layer, affine_of
from prunec.passes.repairing.moments import Choice, Fit, Moments, choose, growth
from prunec.passes.repairing.rows import Chosen, chosen, of_inputs, of_outputs, positions
from prunec.passes.repairing.walk import Piece
from prunec.passes.repairing.wide import Rows, WideChoice
from prunec.passes.repairing.wide import choose as choose_wide

HELD_OUT: Final = 5
"""One of so many samples isn't fitted, and says which ridge is best."""
_OUTPUTS: Final = 256
"""How many outputs of a wide layer are computed at a time."""


class Place(ABC):
    """What is repaired at one place. Positions of samples whose values aren't finite there are left out."""

    def __init__(self) -> None:
        self.left_out: set[int] = set()
        """The numbers of the samples that such positions are of."""

    def leave_out(self, piece: Piece, which: Tensor) -> None:
        """Note samples of a piece, by their places in it."""
        self.left_out |= {piece.samples[index] for index in torch.unique(which).tolist()}

    @abstractmethod
    def see(self, piece: Piece) -> None:
        """Add what a piece gives here."""

    @property
    @abstractmethod
    def is_scarce(self) -> bool:
        """Whether too little was seen."""

    @abstractmethod
    def finish(self) -> Choice | WideChoice | bool | None:
        """Write what is best, where it is better than what is there; None or False where nothing can be said."""


class _OfLayer(Place):
    """A layer in the slim program, whose tensors may be written."""

    def __init__(self, layer: Layer, program: Program) -> None:
        super().__init__()
        self.layer, self.program = layer, program
        norm = program.state[str(layer.norm.target)] if layer.norm is not None else None
        self.affine = affine_of(norm) if norm is not None else None

    def move(self, layer: Layer) -> None:
        """Look at another layer from now on, which has the same weight."""
        self.layer = layer

    def wanted(self, full: Tensor, other: Tensor | None, at: Chosen | None) -> Tensor:
        """[rows, o], in float64: what the layer itself should give at some positions (all of them where none are
        named), where `full` is the target's value, and `other` that of the other summand."""
        layer = self.layer
        target = self.values(full, at)[:, layer.left.to(self.device)].double()
        if other is None:
            return target
        target = target - self.values(other, at).double()
        if self.affine is None:
            return target
        dead = self.affine.scale == 0
        return ((target - self.affine.shift) / self.affine.scale.masked_fill(dead, 1.0)).masked_fill(dead, 0.0)

    def other(self, piece: Piece) -> Tensor | None:
        """The other summand of the target, where that is a sum."""
        return None if self.layer.other is None else piece.slim.env[self.layer.other]

    def values(self, value: Tensor, at: Chosen | None) -> Tensor:
        """[rows, channels] of a value that has the shape of what the layer gives."""
        if at is None:
            channels = self.layer.form.channels
            last = value.movedim(channels, tuple(range(-len(channels), 0)))
            return last.flatten(-len(channels)).flatten(0, -2)
        return of_outputs(value, self.layer.batch, at, self.layer.form)

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return self.program.tensors[self.layer.weight].device

    @property
    def counts(self) -> Tensor:
        """[o]: how much each output's error counts: as its batch norm scales it. Outputs of scale 0 are left alone."""
        laid = self.layer.laid_in(self.program)
        ones = torch.ones(laid.shape[0] * laid.shape[-1], dtype=torch.float64, device=self.device)
        return ones if self.affine is None else self.affine.scale.square()

    def shift(self, by: Tensor) -> None:
        """Move the layer's outputs, [o]: by its bias, or by the running mean of its batch norm."""
        assert self.layer.shift is not None, "it has one"
        tensor = self.layer.shift.of(self.program.tensors[self.layer.shift.name])
        by = -by if self.layer.moves_norm else by
        with torch.no_grad():
            tensor.add_(by.to(tensor))


class LeastSquares(_OfLayer):
    """Weights and bias of a layer by least squares: from sums over its rows, or from the rows themselves where it reads
    more than there are rows."""

    def __init__(self, layer: Layer, program: Program, known: Sequence[int], rows: int) -> None:
        super().__init__(layer, program)
        self.groups = layer.form.groups
        self.weight = layer.laid_in(program)
        """[groups, inputs, kernel..., outputs]: what `_write` writes here is written into the program."""
        self.fitted: Moments | Rows | None = None
        self.held: Moments | Rows | None = None
        self.each = -(-rows // len(known))
        """At how many positions of a sample is looked."""
        self.samples = len(known)
        self.last_held = known[max(1, len(known) // HELD_OUT) - 1]
        """Of the samples' numbers, in rising order, the last that is held out."""
        self.key = zlib.crc32(layer.node.name.encode())

    def see(self, piece: Piece) -> None:
        """Add a piece's rows."""
        full = piece.dense.value(self.layer.target)
        count = positions(full, self.layer.batch, self.layer.form)
        at = chosen(piece.samples, count, self.each, self.key)
        u = of_inputs(self.layer.form, piece.slim.env[self.layer.source], full, self.layer.batch, at)
        self.add(piece, u, self.wanted(full, self.other(piece), at), at)

    def add(self, piece: Piece, u: Tensor, t: Tensor, at: Chosen) -> None:
        """Add rows: u [rows, groups, p] and what the layer should give there, t [rows, o]."""
        t = t.reshape(len(t), self.groups, -1)
        fine = _finite(u) & _finite(t)
        held = self._held(piece.samples, at).to(self.device)
        if not bool(fine.all()):
            self.leave_out(piece, at.sample[~fine.cpu()])
            u, t, held = u[fine], t[fine], held[fine]
        if self.fitted is None or self.held is None:
            seen = len(at.position) // len(piece.samples) * self.samples * self.layer.calls
            self.fitted, self.held = self._nothing(seen), self._nothing(seen)
        if isinstance(self.fitted, Rows) and isinstance(self.held, Rows):
            given = self._given(u)
            self.held.aim(t[held], given[held])
            self.fitted.aim(t[~held], given[~held])
            t = t - given
        self.held.add(u[held], t[held])
        self.fitted.add(u[~held], t[~held])

    def _nothing(self, rows: int) -> Moments | Rows:
        """What is gathered of so many rows, before the first."""
        inputs, outputs = self.weight[0, ..., 0].numel(), self.weight.shape[-1]
        return Rows() if rows < inputs else Moments.none(self.groups, inputs, outputs, self.device)

    def _given(self, u: Tensor) -> Tensor:
        """What the layer gives now for rows u [rows, groups, p]: [rows, groups, o], in float64."""
        u = u.double().movedim(0, 1)
        found = [u @ some.double().flatten(1, -2) for some in torch.split(self.weight, _OUTPUTS, dim=-1)]
        return torch.cat(found, 2).movedim(0, 1) + self._bias().reshape(self.groups, -1)

    def _held(self, samples: Sequence[int], at: Chosen) -> Tensor:
        """[rows]: which aren't fitted: those of a fifth of the samples, or of one sample alone a fifth of its own."""
        if self.samples == 1:
            return torch.arange(len(at.position)) % HELD_OUT == HELD_OUT - 1
        return torch.tensor([number <= self.last_held for number in samples])[at.sample]

    @property
    def is_scarce(self) -> bool:
        """Whether too few rows were seen to fit some and hold others out."""
        return not (self.fitted and self.held and self.fitted.count and self.held.count)

    def finish(self) -> Choice | WideChoice | None:
        """Write what is best, where it is better than what is there; None where nothing can be said."""
        fitted, held = self.fitted, self.held
        if not (fitted and held and fitted.count and held.count and fitted.is_finite and held.is_finite):
            return None
        if isinstance(fitted, Rows) and isinstance(held, Rows):
            return self._finish_wide(fitted, held)
        assert isinstance(fitted, Moments), "both are of one kind"
        assert isinstance(held, Moments), "both are of one kind"
        old = self.weight.double().flatten(1, -2)
        bias = self._bias().reshape(self.groups, -1)
        whole = fitted + held
        counts = self._reached(whole.squares / whole.count, whole.size(Fit(old, bias)))
        intercept, precision = self.layer.bias is not None, torch.finfo(self.weight.dtype).eps
        choice = choose(fitted, held, Fit(old, bias), counts, intercept=intercept, precision=precision)
        if choice.ridge is None:
            return choice
        self._write(slice(None), choice.fit.weight, counts)
        if self.layer.bias is not None:
            self.shift(((choice.fit.bias - bias) * (counts > 0)).reshape(-1))
        return choice

    def _reached(self, wanted: Tensor, given: Tensor) -> Tensor:
        """[groups, o]: how much each output's error counts, by the mean squares of what it should give and gives. One
        that a batch norm scales to next to nothing would have to give too much, and is left alone."""
        counts = self.counts.reshape(self.groups, -1)
        if not self.layer.through_norm:
            return counts
        far = wanted > growth(torch.finfo(self.weight.dtype).eps) ** 2 * given
        return counts.masked_fill(far, 0.0)

    def _write(self, some: slice, new: Tensor, counts: Tensor) -> None:
        """New weights, [groups, p, those], of some outputs of each group; those that don't count keep theirs."""
        old = self.weight[..., some]
        alive = (counts[:, some] > 0).view(self.groups, *[1] * (old.ndim - 2), -1)
        old.copy_(torch.where(alive, new.view(old.shape).to(old.dtype), old))
        self.layer.form.put(self.weight, self.layer.weight_in(self.program).detach())

    def _finish_wide(self, fitted: Rows, held: Rows) -> WideChoice:
        counts = self._reached(fitted.size + held.size, fitted.given + held.given)
        intercept = self.layer.bias is not None
        choice = choose_wide(fitted, held, counts, intercept=intercept, precision=torch.finfo(self.weight.dtype).eps)
        if choice.ridge is None:
            return choice
        for some, change in choice.solver.changes(choice.a):
            self._write(some, self.weight[..., some].double().flatten(1, -2) + change, counts)
        if self.layer.bias is not None:
            self.shift((choice.solver.shift(choice.a) * (counts > 0)).reshape(-1))
        return choice

    def _bias(self) -> Tensor:
        shift = self.layer.shift
        if shift is not None and not self.layer.moves_norm:
            return shift.of(self.program.tensors[shift.name]).detach().double()
        return torch.zeros_like(self.counts)


class Bias(_OfLayer):
    """The bias of a layer, so that the mean of its output is the dense layer's."""

    def __init__(self, layer: Layer, program: Program) -> None:
        super().__init__(layer, program)
        self.sum: Tensor | None = None
        self.count = 0

    def see(self, piece: Piece) -> None:
        """Add what a piece's outputs lack."""
        found = self.values(piece.slim.given(self.layer.node), None).double()
        full = piece.dense.value(self.layer.target)
        lacking = self.wanted(full, self.other(piece), None) - found
        fine = _finite(lacking)
        if not bool(fine.all()):
            dim, rows = self.layer.batch
            along = [-1 if d == dim else 1 for d in range(full.ndim)]
            each = torch.arange(full.shape[dim], device=full.device).view(along).expand(full.shape)
            self.leave_out(piece, self.values(each, None)[:, 0][~fine] // rows)
            lacking = lacking[fine]
        self.sum = lacking.sum(0) + (0.0 if self.sum is None else self.sum)
        self.count += len(lacking)

    @property
    def is_scarce(self) -> bool:
        """Whether no samples were seen."""
        return self.sum is None

    def finish(self) -> bool:
        """Write the bias; whether it could be."""
        if self.sum is None or not bool(self.sum.isfinite().all()):
            return False
        self.shift(torch.where(self.counts > 0, self.sum / self.count, 0.0))
        return True


class Statistics(Place):
    """The running mean and variance of a batch norm, over all of the data."""

    def __init__(self, node: fx.Node, program: Program) -> None:
        super().__init__()
        self.source = node.all_input_nodes[0]
        self.norm: Any = program.state[str(node.target)]
        self.count, self.mean, self.apart = 0, torch.zeros(()), torch.zeros(())

    def see(self, piece: Piece) -> None:
        """Add a piece's values, by the rule for means and squares of two parts (Chan et al. 1983)."""
        x = piece.slim.env[self.source].movedim(1, -1)
        fine = _finite(x.flatten(0, -2))
        if not bool(fine.all()):
            each = torch.arange(len(x), device=x.device) * len(piece.samples) // len(x)
            self.leave_out(piece, each.repeat_interleave(len(fine) // len(x))[~fine])
        x = x.flatten(0, -2)[fine].double()
        if not len(x):
            return
        count, mean = len(x), x.mean(0)
        apart = (x - mean).square().sum(0)
        total = self.count + count
        between = mean - self.mean.to(mean)
        self.apart = self.apart.to(mean) + apart + between.square() * (self.count * count / total)
        self.mean = self.mean.to(mean) + between * (count / total)
        self.count = total

    @property
    def is_scarce(self) -> bool:
        """Whether too few values were seen for a variance."""
        return self.count < 2

    def finish(self) -> bool:
        """Write them; a channel that doesn't vary keeps its variance. Whether they could be."""
        if self.count < 2 or not bool((self.mean.isfinite() & self.apart.isfinite()).all()):
            return False
        var = self.apart / (self.count - 1)
        with torch.no_grad():
            self.norm.running_mean.copy_(self.mean)
            self.norm.running_var.copy_(torch.where(var > 0, var, self.norm.running_var.double()))
        return True


def _finite(rows: Tensor) -> Tensor:
    """[rows]: which hold no infinite value and no NaN."""
    return rows.isfinite().flatten(1).all(1)
