"""Layers and tensors without some of their positions: weights are gathered, attributes that repeat a size follow.

    Conv2d(8, 16, groups=2)    weight [16, 4, 3, 3]    ->  Conv2d(6, 12, groups=2)    weight [12, 3, 3, 3]
    BatchNorm2d(8)             four vectors [8]        ->  BatchNorm2d(6)             four vectors [6]

Which attributes repeat the sizes of tensors, or of what a layer without tensors gives, is said by the operations
(`labels.registry.repeats_tensors`, `repeats_value`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from prunec.compiler.ir.modules import clone_module
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.registry import tensor_sizes
from prunec.compiler.ops.norm import groups_left

SCRATCH: Final = 2**20
"""Elements of rows that are gathered at a time before their columns are: memory that is new to the process takes longer
to get than to fill."""


class Gathering:
    """Makes slim tensors: each tensor has one slim form, so that tied tensors stay tied. A parameter stays one."""

    def __init__(self) -> None:
        self._made: dict[int, torch.Tensor] = {}
        self._indices: dict[int, tuple[IntArray, torch.Tensor]] = {}

    def once(self, tensor: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The slim form of a tensor: what `make` gives when it is first asked for, the same object later."""
        slim = self._made.get(id(tensor))
        if slim is None:
            slim = make(tensor.detach())
            if type(tensor) is not torch.Tensor and isinstance(tensor, nn.Parameter):
                slim = nn.Parameter(slim, tensor.requires_grad)
            self._made[id(tensor)] = slim
        return slim

    def gather(self, tensor: torch.Tensor, positions: Mapping[int, IntArray]) -> torch.Tensor:
        """The tensor at these positions (dimension -> positions), with memory of its own."""
        return self.once(tensor, lambda whole: self._gathered(whole, positions))

    def _gathered(self, slim: torch.Tensor, positions: Mapping[int, IntArray]) -> torch.Tensor:
        assert positions, "what loses nothing is shared, not gathered"
        if slim.numel() > SCRATCH and positions.keys() == {0, 1} and slim.layout == torch.strided:
            return _block(slim, *(self.index(positions[dim]).to(slim.device) for dim in (0, 1)))
        for dim in sorted(positions):
            slim = slim.index_select(dim, self.index(positions[dim]).to(slim.device))
        return slim

    def index(self, positions: IntArray) -> torch.Tensor:
        """Positions as a tensor; most arrays of them are those of several tensors."""
        known = self._indices.get(id(positions))
        if known is None:
            known = self._indices[id(positions)] = positions, torch.from_numpy(positions)
        return known[1]


def _block(tensor: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Some rows and columns. Rows go first, as they lie together in memory, a few at a time, into the same memory."""
    found = tensor.new_empty(len(rows), len(columns), *tensor.shape[2:])
    count = max(1, SCRATCH // (tensor.numel() // len(tensor)))
    scratch = tensor.new_empty(min(count, len(rows)), *tensor.shape[1:])
    for start in range(0, len(rows), count):
        some = rows[start : start + count]
        part = scratch[: len(some)]
        torch.index_select(tensor, 0, some, out=part)
        torch.index_select(part, 1, columns, out=found[start : start + count])
    return found


def slim_module(
    module: nn.Module, positions: Mapping[str, Mapping[int, IntArray]], gathering: Gathering | None = None
) -> nn.Module:
    """A leaf module at these positions (tensor's name -> dimension -> positions), its sizes adapted.

    Modules that share tensors share `gathering`, too.
    """
    gathering = gathering or Gathering()
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        return _slim_grouped(module, positions, gathering)
    tensors = {name: gathering.gather(_tensor(module, name), places) for name, places in positions.items()}
    if isinstance(module, nn.GroupNorm):
        kept = np.zeros(module.num_channels, dtype=bool)
        kept[positions["weight"][0]] = True
        return resized(module, tensors, num_groups=groups_left(kept, module.num_groups))
    return resized(module, tensors)


def _tensor(module: nn.Module, name: str) -> Any:
    tensor = module._parameters.get(name)
    return module._buffers[name] if tensor is None else tensor


def resized(module: nn.Module, tensors: Mapping[str, torch.Tensor], **attributes: Any) -> nn.Module:
    """A leaf module with other tensors, and with the sizes that follow from their shapes."""
    present = {n: t for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None and t.ndim}
    sizes = tensor_sizes(module)
    assert sizes is not None, f"{type(module).__name__} has bound axes, so its sizes need a row"
    slim = clone_module(module, tensors, **attributes)
    slim.__dict__.update(sizes(slim, {**present, **tensors}))
    return slim


def _slim_grouped(
    module: nn.modules.conv._ConvNd, positions: Mapping[str, Mapping[int, IntArray]], gathering: Gathering
) -> nn.Module:
    """A grouped convolution: groups that lost all inputs vanish; the others have lost equally many channels each."""
    inner, outer = module.in_channels // module.groups, module.out_channels // module.groups
    inputs, outputs = (1, 0) if not module.transposed else (0, 1)
    places = positions.get("weight", {})
    ins = places.get(inputs, np.arange(module.in_channels))
    outs = places.get(outputs, np.arange(module.out_channels))
    groups = ins if inner == 1 else np.unique(ins // inner)
    written = outs if outer == 1 else np.unique(outs // outer)
    assert np.array_equal(groups, written), "a group lost its inputs or its outputs alone"

    def blocks_left(weight: torch.Tensor) -> torch.Tensor:
        if inner == outer == 1:  # depthwise
            return weight.index_select(0, gathering.index(groups).to(weight.device))
        inside, outside = (ins % inner).reshape(groups.size, -1), (outs % outer).reshape(groups.size, -1)
        sides = (outside, inside) if not module.transposed else (inside, outside)
        group, rows, columns = map(torch.from_numpy, (groups, *sides))
        blocks = weight.reshape(module.groups, -1, *weight.shape[1:])  # [groups, rows, columns, kernel]
        return blocks[group[:, None, None], rows[:, :, None], columns[:, None, :]].flatten(0, 1)

    tensors = {"weight": gathering.once(module.weight, blocks_left)}
    if "bias" in positions:
        assert module.bias is not None
        tensors["bias"] = gathering.gather(module.bias, positions["bias"])
    return resized(module, tensors, groups=int(groups.size))
