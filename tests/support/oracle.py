"""What a slim program has to compute, found in two ways, and selections to try it on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.program import Axis, BoolArray, IntArray, Program
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.tracing.parametrizations import without_parametrizations
from prunec.compiler.verify.reference import Masked


def legal(analysis: Analysis, keep: BoolArray) -> bool:
    """Whether only free units go, no group and no piece of a split is emptied, and as many stay as have to."""
    groups = all(keep[group.where].any() for group in analysis.groups.values())
    least = all(int(keep[part.units].sum()) >= part.count for part in analysis.least)
    return groups and least and bool((keep | analysis.free).all()) and all(keep[u].any() for u in analysis.covers)


def selection(analysis: Analysis, seed: int, share: float) -> BoolArray:
    """A random legal selection: every free unit goes with the probability `share`, unless it has to stay."""
    rng = np.random.default_rng(seed)
    keep = np.ones(analysis.size, dtype=bool)
    for unit in rng.permutation(np.flatnonzero(analysis.free)):
        keep[unit] = rng.random() >= share
        keep[unit] = keep[unit] or not legal(analysis, keep)
    return keep


def difference(got: Any, want: Any) -> float:
    """The largest relative difference of two nests of tensors and numbers; infinite where they don't match."""
    new, old = pytree.tree_leaves(got), pytree.tree_leaves(want)
    return max(_leaf(a, b) for a, b in zip(new, old, strict=True)) if len(new) == len(old) else float("inf")


def _leaf(got: Any, want: Any) -> float:
    if not isinstance(want, Tensor):
        return 0.0 if got == want else float("inf")
    if got.shape != want.shape:
        return float("inf")
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))


def masked(program: Program, keep: BoolArray, inputs: tuple[Tensor, ...]) -> Any:
    """What the verifier's reference gives: the old program with the removed channels masked."""
    return Masked(program, removed_positions(analyse(program), keep)).run(inputs, torch.float64)


def zeroed(model: nn.Module, removed: dict[Axis, IntArray]) -> nn.Module:
    """The old model with zeros in everything that is removed: rows of writers, columns of readers, norms' entries.

    That is what the slim model computes wherever nothing counts or mixes the channels.
    """
    model = copy.deepcopy(without_parametrizations(model))
    tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    for axis, positions in removed.items():
        owner = model.get_submodule(axis.owner)
        tensor = tensors[axis.tensor].data
        groups = int(getattr(owner, "groups", 1)) if axis.dim == 1 else 1
        blocks = tensor.view(groups, tensor.shape[0] // groups, *tensor.shape[1:])
        for position in positions.tolist():
            block, place = divmod(position, blocks.shape[axis.dim + 1]) if groups > 1 else (0, position)
            blocks[block].select(axis.dim, place).zero_()
    return model


def run(program: Program, keep: BoolArray, inputs: tuple[Tensor, ...]) -> Any:
    """What the slim program gives."""
    with torch.no_grad():
        return remove_units(program, keep).module(*inputs)
