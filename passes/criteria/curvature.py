"""Second order, from weights: by how much the loss would rise if the unit's weights became zero.

    obd           1/2 w_Q' H_QQ w_Q          H is the Hessian of the mean loss, met in products with random vectors
    obd_fisher    1/2 mean_n (g_n,Q' w_Q)^2  H is the empirical Fisher information mean_n g_n g_n'
    obs           1/2 w_Q' ([H^-1]_QQ)^-1 w_Q, the other weights of the layer being free to make up for it

(LeCun et al. 1990, Hassibi and Stork 1993; there, Q is a single weight.) Q are all weights of a unit: by default those
that *read* it, since these are what its removal takes. Zeros in its writer wouldn't remove it where a batch norm
follows: the unit goes on with batch norm's shift.

`diagonal: true` is the sum over single weights, 1/2 sum h_ii w_i^2, as if the weights of a unit didn't act together. It
orders the units of a group about as a norm does, and says little of units of different groups, since what it leaves out
differs from layer to layer: use it with `normalize: mean`. Signs are kept: the Hessian may be negative along a unit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Found, LossCriterion, Setting, numbers
from prunec.passes.criteria.weights import Weighed, Weights, gradients_of, times


class _Sum(ABC):
    """Adds up, over the data, what makes half the curvature along weights."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @abstractmethod
    def add_fisher(self, gradients: Mapping[str, Tensor]) -> None:
        """Add a sample's part of the Fisher information."""

    @abstractmethod
    def add_hessian(self, gradients: Mapping[str, Tensor], rng: np.random.Generator) -> None:
        """Add a piece's product of the Hessian with a random vector; one seed gives the same vector for every piece."""

    @abstractmethod
    def evidence(self, count: int) -> Iterator[Found]:
        """Half the mean of `count` parts, as evidence about units."""

    def curved(self, gradients: Mapping[str, Tensor], along: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The product of the Hessian with a vector, by tensor; tied tensors share theirs."""
        distinct = {id(leaf): name for name, leaf in self.weights.leaves.items()}
        names = list(distinct.values())
        leaves = [self.weights.leaves[name] for name in names]
        products = gradients_of([gradients[name] for name in names], leaves, [along[name] for name in names])
        found = dict(zip(distinct, products, strict=True))
        return {name: found[id(leaf)].detach() for name, leaf in self.weights.leaves.items()}


def _signs(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(2.0 * rng.integers(0, 2, shape) - 1)


class _Diagonal(_Sum):
    """Of single weights: h_ii, by Hutchinson's estimate E[v * Hv] with v of +-1."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.total = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in weights.leaves.items()}

    def add_fisher(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            self.total[name] += gradient.double().square()

    def add_hessian(self, gradients: Mapping[str, Tensor], rng: np.random.Generator) -> None:
        drawn: dict[int, Tensor] = {}
        for leaf in self.weights.leaves.values():
            if id(leaf) not in drawn:
                drawn[id(leaf)] = _signs(tuple(leaf.shape), rng).to(leaf)
        along = {name: drawn[id(leaf)] for name, leaf in self.weights.leaves.items()}
        for name, product in self.curved(gradients, along).items():
            self.total[name] += along[name] * product

    def terms(self, count: int) -> dict[str, Tensor]:
        """1/2 h_ii w_i^2 of every element, by tensor."""
        leaves = self.weights.leaves
        return {name: h / count * leaves[name].detach().double().square() / 2 for name, h in self.total.items()}

    def evidence(self, count: int) -> Iterator[Found]:
        terms = self.terms(count)
        for weighed in self.weights.asked:
            yield weighed.evidence(weighed.rows(self.weights.setting.program, terms).sum(1))


class _Whole(_Sum):
    """Of all weights of a unit together: w_Q' H_QQ w_Q, by the estimate E[s_Q w_Q' H sum_P s_P w_P] with s of +-1."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.total = torch.zeros(weights.setting.analysis.size, dtype=torch.float64)

    def add_fisher(self, gradients: Mapping[str, Tensor]) -> None:
        self.total += self._along_units(gradients).square()

    def add_hessian(self, gradients: Mapping[str, Tensor], rng: np.random.Generator) -> None:
        signs = _signs((len(self.total),), rng)
        along = times(self._spread(signs), self.weights.leaves)
        self.total += signs * self._along_units(self.curved(gradients, along))

    def evidence(self, count: int) -> Iterator[Found]:
        known = np.zeros(len(self.total), dtype=bool)
        for weighed in self.weights.asked:
            known[self._units(weighed).numpy(force=True)] = True
        figures = np.where(known, numbers(self.total / count / 2), np.nan)
        yield from self.weights.setting.split("weights", figures)

    def _along_units(self, values: Mapping[str, Tensor]) -> Tensor:
        """[units]: the sum of `w * values` over each unit's weights."""
        return self._sums(times(values, self.weights.leaves))

    def _sums(self, terms: Mapping[str, Tensor]) -> Tensor:
        found = torch.zeros_like(self.total)
        for weighed in self.weights.asked:
            rows = weighed.rows(self.weights.setting.program, terms).sum(1, dtype=torch.float64).cpu()
            found = found.index_add(0, self._units(weighed), rows[torch.from_numpy(weighed.member.positions)])
        return found

    def _spread(self, signs: Tensor) -> dict[str, Tensor]:
        """For every element, the sum of the signs of the units that it belongs to; tied tensors share theirs."""
        leaves = self.weights.leaves
        ones = {id(leaf): torch.ones_like(leaf).requires_grad_() for leaf in leaves.values()}
        total = (self._sums({name: ones[id(leaf)] for name, leaf in leaves.items()}) * signs).sum()
        found = dict(zip(ones, torch.autograd.grad(total, list(ones.values()), materialize_grads=True), strict=True))
        return {name: found[id(leaf)] for name, leaf in leaves.items()}

    def _units(self, weighed: Weighed) -> Tensor:
        return torch.from_numpy(weighed.group.start + weighed.member.units)


class Damage(LossCriterion):
    """What both forms of optimal brain damage share."""

    axes: ClassVar[str] = "readers"
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    diagonal: bool = Field(default=False, description="of single weights, 1/2 sum h_ii w_i^2, not of the whole unit")

    def _sum(self, weights: Weights) -> _Sum:
        return _Diagonal(weights) if self.diagonal else _Whole(weights)


class Obd(Damage):
    """Optimal brain damage: half the loss's curvature along the unit's weights, from products with the Hessian.

    Of units of all groups, near a minimum of the loss. It needs `probes` runs backwards, and few leave so much noise
    that a norm orders units better: `fisher_gate` is cheaper and steadier.
    """

    name: ClassVar[str] = "obd"

    probes: Annotated[int, Field(ge=1)] = Field(default=8, description="random vectors that the estimate averages over")

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence about units. Raises `PassError` where the loss has no second derivative."""
        total = self._sum(Weights.of(setting))
        yield from total.evidence(_add_hessians(total, self.probes))


class ObdFisher(Damage):
    """Optimal brain damage with the empirical Fisher information for the Hessian: one run a sample.

    For the knapsack, over units of all groups. Of readers it is what `fisher_gate` finds in one run a batch.
    """

    name: ClassVar[str] = "obd_fisher"

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence about units."""
        total = self._sum(Weights.of(setting))
        yield from total.evidence(_add_fishers(total))


def _add_hessians(total: _Sum, probes: int) -> int:
    """Take up products of the Hessian with so many random vectors, over the data; gives how many parts that makes."""
    weights, count = total.weights, 0
    for piece in weights.pieces():
        count += piece.count
        gradients = weights.gradients(weights.loss(piece), keep=True)
        for probe in range(probes):
            total.add_hessian(gradients, weights.setting.context.rng("obd", str(probe)))
    return count * probes


def _add_fishers(total: _Sum) -> int:
    """Take up the gradients of single samples; gives how many."""
    weights, count = total.weights, 0
    for piece in weights.pieces(at_once=1):
        count += piece.count
        total.add_fisher(weights.gradients(weights.loss(piece)))
    return count


def damage_of_elements(setting: Setting, names: Iterable[str], criterion: Damage) -> dict[str, Tensor]:
    """1/2 h_ii w_i^2 of every element of these tensors, by tensor, in float64; h as the criterion finds it."""
    total = _Diagonal(Weights(setting, (), tuple(names)))
    count = _add_hessians(total, criterion.probes) if isinstance(criterion, Obd) else _add_fishers(total)
    return total.terms(count)


class Obs(LossCriterion):
    """Optimal brain surgeon of whole units, layer by layer, with the empirical Fisher information as Hessian.

    H = mean_n g_n g_n' + damping * mean diagonal * I of one layer's weights. It is never formed: what is inverted is as
    large as there are samples. With fewer samples than the layer has weights, most of a figure is the damping's, whose
    scale is each layer's own; and the other weights make up for nothing unless they are trained on. So it orders units
    within a group, for plans that train on, and is no loss that could be added up.
    """

    name: ClassVar[str] = "obs"
    axes: ClassVar[str] = "readers"
    aggregate: ClassVar[str] = "sum"

    gradients: Annotated[int, Field(ge=1)] = Field(default=64, description="samples whose gradients make the Hessian")
    damping: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="what is added to the diagonal, as a share of its mean"
    )

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence of each writer, with its bias; layers take turns where `memory` can't hold all gradients."""
        weights = Weights.of(setting)
        for some in self._rounds(weights):
            rows: list[list[Tensor]] = [[] for _ in some]
            for count, piece in enumerate(weights.pieces(at_once=1), start=1):
                found = weights.gradients(weights.loss(piece))
                for kept, weighed in zip(rows, some, strict=True):
                    kept.append(weighed.rows(setting.program, found))
                if count == self.gradients:
                    break
            for kept, weighed in zip(rows, some, strict=True):
                yield self._evidence(setting, weighed, torch.stack(kept).double(), weights.leaves)

    def _rounds(self, weights: Weights) -> Iterator[list[Weighed]]:
        """The axes, in lots of as many as memory holds gradients of."""
        limit, held, some = weights.setting.calibration.memory, 0, list[Weighed]()
        for weighed in weights.asked:
            needed = 8 * self.gradients * sum(weights.leaves[name].numel() for name in weighed.tensors)
            if some and limit is not None and held + needed > limit:
                yield some
                held, some = 0, []
            held, some = held + needed, [*some, weighed]
        if some:
            yield some

    def _evidence(self, setting: Setting, weighed: Weighed, g: Tensor, leaves: Mapping[str, Tensor]) -> Found:
        w = weighed.rows(setting.program, {name: leaves[name].detach() for name in weighed.tensors}).double()
        member = weighed.member
        units, index = np.unique(member.units, return_inverse=True)
        figures = surgeon(
            g[:, member.positions], w[member.positions], torch.from_numpy(index).to(w.device), self.damping, g
        )
        return weighed.group.name, Evidence(str(member.axis), units, numbers(figures))


def surgeon(g: Tensor, w: Tensor, unit: Tensor, damping: float, layer: Tensor) -> Tensor:
    """`1/2 w_Q' ([H^-1]_QQ)^-1 w_Q` of every unit: [units].

    `g` [samples, positions, elements] are gradients of `w` [positions, elements], `unit` [positions] says which unit a
    position belongs to, and `layer` [samples, ...] are the gradients of all weights that may make up for a unit.
    With K = G G' over all weights and K_Q over the unit's, both [samples, samples], and l added to the diagonal:

        s_Q = l/2 ( |w_Q|^2 + (G_Q w_Q)' (N l I + K - K_Q)^-1 (G_Q w_Q) )
    """
    samples, count = len(g), int(unit.max()) + 1
    flat = layer.flatten(1)
    added = damping * float(flat.square().sum()) / flat.numel() or 1.0
    gram = flat @ flat.T + samples * added * torch.eye(samples, dtype=g.dtype, device=g.device)
    size = w.new_zeros(count).index_add_(0, unit, w.square().sum(1))
    along = g.new_zeros(count, samples).index_add_(0, unit, torch.einsum("npe,pe->pn", g, w))
    made_up = [_others(gram, g[:, unit == u].flatten(1), along[u]) for u in range(count)]
    return added / 2 * (size + torch.stack(made_up))


def _others(gram: Tensor, own: Tensor, along: Tensor) -> Tensor:
    """`a' (gram - K_Q)^-1 a`."""
    solved: Tensor = torch.linalg.solve(gram - own @ own.T, along)
    return torch.dot(along, solved)
