"""A layer as two thinner ones, by the outputs that it gives: what a rank loses, and the best layers of that rank.

    y = u W + b      C = cov(y), each output by the root of what its error counts      C = Q L Q'

    y ~ u (W Q_r) Q_r' + c      c = b + E[u] W (I - Q_r Q_r')      mean squared error: the sum of the other eigenvalues

No other layers of rank r are nearer on these inputs (Eckart and Young 1936, for outputs): W Q_r Q_r' is what singular
vectors of the weight behind whitened inputs give, without inverting their moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import FloatArray
from prunec.passes.repairing.inputs import Inputs


@dataclass(frozen=True)
class Spectrum:
    """What a layer's outputs are made of."""

    weight: Tensor
    """W, [p, o], in float64."""
    basis: Tensor
    """Q, [o, o]: columns, the direction of the largest variance first."""
    roots: Tensor
    """[o]: of what an output's error counts; where it counts for nothing, 1."""
    mean: Tensor
    """[o]: E[u] W."""
    error: FloatArray
    """[o + 1], falling: the share of the target's variance that is lost with 0, 1, 2, ... directions."""

    @staticmethod
    def of(seen: Inputs) -> Spectrum:
        """From what was seen of a layer that isn't grouped."""
        weight, counts = seen.weight[0], seen.counts[0]
        roots = counts.sqrt().masked_fill(counts == 0, 1.0)
        counted = weight * counts.sqrt()
        if seen.is_wide:
            rows = seen.centred_rows()[0] @ counted
            covariance = rows.T @ rows
        else:
            covariance = counted.T @ seen.second_moments()[0] @ counted
        if not bool(covariance.isfinite().all()):
            hint = "the model gives infinite values or NaN there; leave these samples out"
            raise PassError(f"what {seen.layer.weight} reads on some samples isn't finite", hint=hint)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        lost = np.concatenate([np.cumsum(values.cpu().numpy()[::-1])[::-1], [0.0]])
        mean = (seen.moments.inputs[0] / seen.moments.count) @ weight
        if seen.layer.bias is None:
            mean = torch.zeros_like(mean)
        return Spectrum(weight, vectors, roots, mean, lost / max(seen.variance(), 1e-300))

    def split(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """(first weight [p, r], second weight [r, o], what is added to the outputs [o])."""
        basis = self.basis[:, :rank]
        first, second = (self.weight * self.roots) @ basis, basis.T / self.roots
        kept = ((self.mean * self.roots) @ basis) @ second
        return first, second, self.mean - kept
