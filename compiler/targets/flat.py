"""A program as a module of plain tensors, for converters that know no nests, numbers or flags among inputs and outputs.

flat(program)            forward(*tensors) -> tuple of tensors, in the order of `tensors_in`
exported_flat(program)   the same as a `torch.export.ExportedProgram`
saved_flat(program, folder)     the same as a file, for another process
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.sources import is_foreign


class Flat(nn.Module):
    """The program's module, with what isn't a tensor among its example inputs fixed at what it is there."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.model = program.module
        leaves, self._structure = pytree.tree_flatten(tuple(program.inputs))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._truths = [leaf.dtype == torch.bool for leaf in leaves if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The output tensors, for the input tensors; truth values may come as numbers."""
        leaves: list[Any] = list(self._leaves)
        for place, tensor, truth in zip(self._places, tensors, self._truths, strict=True):
            leaves[place] = tensor > 0.5 if truth and tensor.dtype != torch.bool else tensor
        found = pytree.tree_leaves(self.model(*pytree.tree_unflatten(leaves, self._structure)))
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))


def flat(program: Program) -> tuple[Flat, tuple[Tensor, ...]]:
    """The module, and its example inputs."""
    module = Flat(program)
    module.training = False  # the module inside is in the mode that its owner has put it in
    return module, tuple(tensors_in(program.inputs))


def pixels_as_floats(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs for runtimes that take pixels as float32, of 0 to 255: what was uint8 is such."""
    return tuple(value.float() if value.dtype == torch.uint8 else value for value in inputs)


def exported_flat(program: Program, inputs: tuple[Tensor, ...] | None = None) -> ExportedProgram:
    """The module as `torch.export` sees it, at the sizes of its example inputs; no operation is decomposed yet."""
    module, own = flat(program)
    inputs = own if inputs is None else inputs
    with torch.no_grad():
        return torch.export.export(module, inputs)


def saved_flat(program: Program, folder: Path, inputs: tuple[Tensor, ...] | None = None) -> Path:
    """A file in the folder that `torch.export.load` reads. Raises `TargetError` for operations that no other process
    has."""
    foreign = next(filter(is_foreign, program.graph.nodes), None)
    if foreign is not None:
        raise TargetError(f"its converter doesn't know the operation '{foreign.target}'")
    path = folder / "model.pt2"
    torch.export.save(exported_flat(program, inputs), path)
    return path
