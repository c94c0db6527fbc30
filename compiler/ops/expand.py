"""Copies that the graph makes of what has no labels: a mask as wide as the channels, a table for every head.

    mask[:, :, None].expand(-1, -1, 64)        labels of its own along the 64, that go with what they meet
    mask.repeat_interleave(heads, dim=0)       [batch * heads, ...]: one label a head

A copy is missed by nobody once what it meets is removed; where it meets nothing that may go, all copies stay. So do
copies that a layer or a sum reads as they are: these would miss one. How many are made follows (`rewriting.sizes`,
`rewriting.repeats`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.ops import op_name, rank_of, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Fields, Flow

Layout = Callable[[IntArray, int], IntArray]
"""(a label for each copy, the length of what is copied) -> the labels along the dimension."""


def copies(flow: Flow, node: fx.Node, value: object, given: Any, layout: Layout) -> Fields:
    """New labels along the dimensions that `node` makes longer, `given` being its sizes or counts.

    Not along those whose size is the input's (tokens, the batch): these stay whatever they meet.
    """
    after = shape_of_argument(node)
    before = (1,) * (len(after) - len(shape_of_argument(value))) + shape_of_argument(value)
    fields: Fields = ()
    if flow.fields(value):
        return fields  # copies of channels go with these
    for dim in range(len(after)):
        count = after[dim] // max(before[dim], 1)
        if count > 1 and _is_width(flow, node, given, dim):
            own = flow.own(count)
            flow.loosen(own)
            fields += flow.result(np.ascontiguousarray(layout(own, before[dim])), len(after), dim)
    return fields


def _is_width(flow: Flow, node: fx.Node, given: Any, dim: int) -> bool:
    """Whether a dimension is as long as a literal says, or as labelled dimensions are. A literal first dimension may be
    the batch, unless elements are repeated one by one."""
    if isinstance(given, fx.Node):
        return reads_labels(flow, given, dim)
    if not isinstance(given, Sequence):
        given = (given,)
    place = dim - rank_of(node) + len(given)
    if place < 0:
        return False
    if isinstance(given[place], fx.Node):
        return reads_labels(flow, given[place], None)
    return dim > 0 or op_name(node) == "repeat_interleave"


def reads_labels(flow: Flow, size: fx.Node, dim: int | None) -> bool:
    """Whether a number, or item `dim` of a size, comes from a dimension with labels."""
    if isinstance(size.meta.get("val"), torch.Tensor):
        return False
    source = size.args[0] if size.args else None
    name = op_name(size)
    if name == "size" or (name == "getattr" and size.args[1:] == ("shape",)):
        asked = size.args[1] if name == "size" and len(size.args) > 1 else size.kwargs.get("dim", dim)
        if not isinstance(asked, int):
            return False
        return any(-f.ndim <= asked < f.ndim and f.shape[asked] > 1 for f in flow.fields(source))
    if name in ("numel", "nelement"):
        return any(f.size > 1 for f in flow.fields(source))
    if name in ("len", "__len__"):
        return any(f.ndim and f.shape[0] > 1 for f in flow.fields(source))
    if name == "getitem" and isinstance(source, fx.Node) and isinstance(size.args[1], int):
        return reads_labels(flow, source, size.args[1])
    return any(reads_labels(flow, other, None) for other in size.all_input_nodes)
