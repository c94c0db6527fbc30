"""The optimizer's memory, carried from one training pass to the next over the cuts in between.

    conv1.weight [8, 3, 3, 3]    momentum [8, 3, 3, 3]        shrink removes channel 2
    conv1.weight [7, 3, 3, 3]    momentum [7, 3, 3, 3]        the other channels' momentum is what it was

A program's `origin` says which positions of the original every axis still has. What a state belongs to is known by the
origins at its time, and so it can be sliced at any later time, whatever removed the channels. Where channels were
merged, the one that stays keeps its own. A parameter that is new or has another shape begins without memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunec.compiler.driver.kept_indices import kept_indices
from prunec.compiler.ir.program import Axis, IntArray, Program

Memory = Mapping[str, Any]
"""What an optimizer keeps for one parameter: tensors of its shape, and numbers."""


@dataclass(frozen=True)
class Carried:
    """The state of an optimizer behind a training pass."""

    optimizer: str
    """The kind of optimizer: another one has no use for it."""
    state: Mapping[str, Memory]
    """Parameter's name -> what is kept for it."""
    origin: Mapping[Axis, IntArray]
    """The program's, at that time."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    """Parameter of a grouped convolution -> its groups, at that time."""

    def plain(self) -> dict[str, Any]:
        """Tensors and plain values, as a program carries them and a checkpoint holds them."""
        origin: dict[str, dict[int, Tensor]] = {}
        for axis, left in self.origin.items():
            origin.setdefault(axis.tensor, {})[axis.dim] = torch.from_numpy(left)
        state = {name: dict(memory) for name, memory in self.state.items()}
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        groups = dict(self.groups)
        return {"optimizer": self.optimizer, "state": state, "origin": origin, "shapes": shapes, "groups": groups}

    @classmethod
    def of_plain(cls, said: Mapping[str, Any]) -> Carried:
        """What `plain` gave."""
        origin = {Axis(name, dim): x.numpy() for name, dims in said["origin"].items() for dim, x in dims.items()}
        shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
        return cls(said["optimizer"], said["state"], origin, shapes, said["groups"])

    @staticmethod
    def of(kind: str, state: Mapping[str, Memory], program: Program) -> Carried:
        """The state by names, which belongs to a program."""
        shapes = {name: tuple(program.tensors[name].shape) for name in state}
        groups = {name: program.groups_along(Axis(name, 1)) for name in state}
        return Carried(kind, state, program.origin, shapes, {name: n for name, n in groups.items() if n > 1})

    def fitted(self, program: Program) -> Iterator[tuple[str, Memory]]:
        """Each parameter that the program still has, with what is left of its memory."""
        for name, memory in self.state.items():
            tensor = program.tensors.get(name)
            if tensor is None:
                continue
            indices = self._indices(program, name)
            sliced = {key: self._sliced(name, value, indices) for key, value in memory.items()}
            fits = (x.shape == tensor.shape for x in sliced.values() if isinstance(x, Tensor) and x.ndim)
            if all(fits):
                yield name, sliced

    def _indices(self, program: Program, name: str) -> tuple[Tensor, ...] | None:
        """Indices that give what is left; None where nothing is gone."""
        shape = self.shapes[name]
        removed = {}
        for dim, size in enumerate(shape):
            axis = Axis(name, dim)
            left = program.origin.get(axis)
            if left is None:
                continue
            count = size * (self.groups.get(name, 1) if dim == 1 else 1)
            before = self.origin.get(axis, np.arange(count))
            gone = np.flatnonzero(~np.isin(before, left))
            if gone.size:
                removed[str(dim)] = gone.tolist()
        return kept_indices({"removed": {name: removed}, "grouped": self.groups}, name, shape) if removed else None

    def _sliced(self, name: str, value: Any, indices: tuple[Tensor, ...] | None) -> Any:
        if not isinstance(value, Tensor) or indices is None or tuple(value.shape) != self.shapes[name]:
            return value
        return value[tuple(index.to(value.device) for index in indices)].clone()


def moved(
    before: Program, after: Program, moves: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
) -> dict[str, Any]:
    """What `before` carries, for `after`, in which elements of parameters have changed places.

    `moves` has, for every parameter that isn't as it was, its new name and what takes a tensor of its old shape there.
    """
    carried = dict(before.carried)
    for key, said in before.carried.items():
        old, state = Carried.of_plain(said), dict[str, Memory]()
        for name, memory in old.fitted(before):
            new, move = moves.get(name, (name, _still))
            shape = before.tensors[name].shape
            fits = {k: move(x) if isinstance(x, Tensor) and x.shape == shape else x for k, x in memory.items()}
            if new in after.tensors:
                state[new] = fits
        carried[key] = Carried.of(old.optimizer, state, after).plain()
    return carried


def _still(tensor: Tensor) -> Tensor:
    return tensor


def state_by_name(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Memory]:
    """What an optimizer keeps, by the names of its parameters."""
    return {
        names[tensor]: {key: _kept(value) for key, value in memory.items()}
        for tensor, memory in optimizer.state.items()
        if tensor in names
    }


def _kept(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
