"""Nodes that give numbers, such as sizes: what a number counts, and how to compute another one beside it.

n = x.size(0)            follows the batch
c = x.size(1)            counts channels
n * heads                follows the batch; of half of the heads it is `n * heads // 2`
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.program import IntArray


def valued(node: fx.Node, value: Any) -> fx.Node:
    """Note in a node's metadata the value that it gives for the example inputs; returns the node."""
    node.meta["val"] = value
    return node


def item(size: fx.Node, index: int, value: int) -> fx.Node:
    """A new node for `size[index]`, where the node `size` gives a size; `value` is that item for the example inputs."""
    with size.graph.inserting_after(size):
        return valued(size.graph.call_function(operator.getitem, (size, index)), value)


def scaled(number: fx.Node, times: int, over: int, value: int) -> fx.Node:
    """New nodes for `number * times // over`, which is `value` for the example inputs; returns the last of them."""
    for function, by, result in ((operator.mul, times, value * over), (operator.floordiv, over, value)):
        if by != 1:
            with number.graph.inserting_after(number):
                number = valued(number.graph.call_function(function, (number, by)), result)
    return number


def reads(node: fx.Node) -> bool:
    """Whether a number is read off a tensor or its size (`x.size(0)`), rather than computed from other numbers."""
    return any(
        isinstance(n.meta.get("val"), torch.Tensor) or (isinstance(n.meta.get("val"), tuple | list) and reads(n))
        for n in node.all_input_nodes
    )


def dims_read(node: fx.Node) -> tuple[fx.Node | None, int | tuple[int, ...] | None]:
    """The tensor that a number or size is read off, and its dimension or dimensions; None for a product of all."""
    source = node.all_input_nodes[0]
    known = source.meta["val"]
    index = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
    if isinstance(known, torch.Tensor):
        if isinstance(node.meta["val"], tuple):
            return source, tuple(range(known.ndim))
        if node.target in (len, "__len__"):
            return source, 0
        return source, index % known.ndim if isinstance(index, int) and known.ndim else None
    tensor, dims = dims_read(source)
    if not isinstance(dims, tuple) or not isinstance(index, int | slice):
        return tensor, None
    return tensor, dims[index]


def is_open(number: fx.Node, fields: Callable[[fx.Node], tuple[IntArray, ...]]) -> bool:
    """Whether a number follows the batch, or another dimension that the input decides: one without labels, or one that
    samples and channels are folded into, so that labels are there several times; `fields` is `Flow.fields`."""
    if not reads(number):
        return any(is_open(node, fields) for node in number.all_input_nodes)
    tensor, dims = dims_read(number)
    if tensor is None or not isinstance(dims, int):
        return True
    return is_open_dim(fields(tensor), dims)


def is_open_dim(fields: tuple[IntArray, ...], dim: int) -> bool:
    """Whether a dimension of a value with these fields is one that the input decides: see `is_open`."""
    return all(labels.shape[dim] == 1 or comes_again(labels, dim) for labels in fields)


def comes_again(labels: IntArray, dim: int) -> bool:
    """Whether a field holds a label at two positions of a dimension, as one does that samples and channels are folded
    into."""
    rows: IntArray = np.sort(np.moveaxis(labels, dim, 0).reshape(labels.shape[dim], -1), axis=1)
    in_rows = rows.shape[0] + int(np.count_nonzero(rows[:, 1:] != rows[:, :-1]))
    return bool(in_rows > len(np.unique(rows)))
