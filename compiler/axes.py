"""The elements of a parameter that belong to each position of one of its axes."""

from __future__ import annotations

import torch
from torch import nn

from prunec.compiler.ir import Axis, Program


def axis_rows(program: Program, axis: Axis, values: torch.Tensor | None = None) -> torch.Tensor:
    """The axis's tensor as a matrix [positions, elements]: row p holds what is removed with position p.

    `values` takes the tensor's place where figures of its elements are asked for (gradients); it has its shape.

    Dimension 1 of a grouped convolution's weight [out, in / groups, ...] has one row an *input channel*, holding the
    columns that read it; for a transposed one, [in, out / groups, ...], a row an output channel.
    """
    tensor = program.tensors[axis.tensor].detach() if values is None else values
    module = program.state.get(axis.owner)
    grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and axis.dim == 1
    if not grouped:
        return tensor.movedim(axis.dim, 0).reshape(tensor.shape[axis.dim], -1)
    assert isinstance(module, nn.modules.conv._ConvNd)
    rows = tensor.reshape(module.groups, -1, *tensor.shape[1:])  # [groups, rows of a group, dim 1, kernel...]
    return rows.movedim(2, 1).flatten(0, 1).flatten(1)
