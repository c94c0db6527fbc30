"""Second order, from weights: by how much the loss would rise, at a minimum, if the unit's weights became zero.

    obd           1/2 sum h_ii w_i^2        h_ii by Hutchinson's estimate, E[v * Hv] with v of +-1
    obd_fisher    1/2 sum h_ii w_i^2        h_ii = mean_n g_n,i^2, the empirical Fisher information
    obs           1/2 w_Q' ([H^-1]_QQ)^-1 w_Q, the other weights of the layer being free to make up for it

(LeCun et al. 1990, Hassibi and Stork 1993.) H is the Hessian of the mean loss, Q the unit's weights. Signs are kept:
Hutchinson's estimate of a diagonal may be negative, and so is the diagonal itself where the loss curves downwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Criterion, Found, Setting, numbers
from prunec.passes.criteria.weights import Weighed, Weights, gradients_of


class Obd(Criterion):
    """Optimal brain damage: half the Hessian's diagonal, by Hutchinson's estimate, times the squared weights."""

    name: ClassVar[str] = "obd"
    data: ClassVar[bool] = True
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    probes: Annotated[int, Field(ge=1)] = Field(default=8, description="random vectors that the estimate averages over")

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence of each writer, with its bias. Raises `PassError` where the loss has no second derivative."""
        weights, count = Weights.of(setting), 0
        diagonal = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in weights.leaves.items()}
        for piece in weights.pieces():
            count += piece.count
            gradients = weights.gradients(weights.loss(piece), keep=True)
            for probe in range(self.probes):
                for name, found in self._probed(weights, gradients, probe).items():
                    diagonal[name] += found
        yield from _damage(weights, diagonal, count * self.probes)

    def _probed(self, weights: Weights, gradients: Mapping[str, Tensor], probe: int) -> dict[str, Tensor]:
        """`v * Hv` by tensor. The same v meets every piece, so that the pieces' sizes make no difference."""
        rng = weights.setting.context.rng("obd", str(probe))
        signs: dict[int, Tensor] = {}
        for leaf in weights.leaves.values():
            if id(leaf) not in signs:
                drawn = torch.from_numpy(2 * rng.integers(0, 2, tuple(leaf.shape)) - 1)
                signs[id(leaf)] = drawn.to(leaf.dtype).to(leaf.device)
        distinct = {id(leaf): name for name, leaf in weights.leaves.items()}
        names = list(distinct.values())
        leaves = [weights.leaves[name] for name in names]
        along = [signs[key] for key in distinct]
        curved = gradients_of([gradients[name] for name in names], leaves, along)
        found = {id(leaf): v * hv for leaf, v, hv in zip(leaves, along, curved, strict=True)}
        return {name: found[id(leaf)] for name, leaf in weights.leaves.items()}


class ObdFisher(Criterion):
    """Optimal brain damage with the empirical Fisher information for the Hessian's diagonal: one run a sample."""

    name: ClassVar[str] = "obd_fisher"
    data: ClassVar[bool] = True
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """Evidence of each writer, with its bias."""
        weights, count = Weights.of(setting), 0
        diagonal = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in weights.leaves.items()}
        for piece in weights.pieces(at_once=1):
            count += piece.count
            for name, gradient in weights.gradients(weights.loss(piece)).items():
                diagonal[name] += gradient.double().square()
        yield from _damage(weights, diagonal, count)


def _damage(weights: Weights, diagonal: Mapping[str, Tensor], count: int) -> Iterator[Found]:
    terms = {name: h / count * weights.leaves[name].detach().double().square() / 2 for name, h in diagonal.items()}
    for weighed in weights.asked:
        yield weighed.evidence(weighed.rows(weights.setting.program, terms).sum(1))


class Obs(Criterion):
    """Optimal brain surgeon of whole units, layer by layer, with the empirical Fisher information as Hessian.

    H = mean_n g_n g_n' + damping * mean diagonal * I of one layer's weights. It is never formed: what is inverted is as
    large as there are samples.
    """

    name: ClassVar[str] = "obs"
    data: ClassVar[bool] = True
    normalize: ClassVar[str] = "none"
    aggregate: ClassVar[str] = "sum"
    losses: ClassVar[bool] = True

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
        figures = surgeon(g[:, member.positions], w[member.positions], torch.from_numpy(index), self.damping, g)
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
