"""Nodes that give numbers, such as sizes: what a number counts, and how to compute another one beside it.

n = x.size(0)            follows the batch
c = x.size(1)            counts channels
n * heads                follows the batch; of half of the heads it is `n * heads // 2`
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

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
    """Whether a number is read off a tensor or a size (`x.size(0)`), rather than computed from other numbers."""
    return any(isinstance(n.meta.get("val"), torch.Tensor | tuple | list) for n in node.all_input_nodes)


def counts_batch(node: fx.Node) -> bool:
    """Whether a number that `reads` may grow with the batch: any but the size of one dimension behind the first."""
    index = node.args[1] if len(node.args) == 2 else None
    source = node.all_input_nodes[0].meta["val"]
    rank = source.ndim if isinstance(source, torch.Tensor) else len(source)
    return not isinstance(index, int) or index % rank == 0


def is_open(number: fx.Node, fields: Callable[[fx.Node], tuple[IntArray, ...]]) -> bool:
    """Whether a number comes from the size of a dimension without labels, such as the batch; `fields` is
    `Flow.fields`."""
    if not reads(number):
        return any(is_open(node, fields) for node in number.all_input_nodes)
    size, index = number.all_input_nodes[0], number.args[1] if len(number.args) == 2 else None
    value = size if isinstance(size.meta["val"], torch.Tensor) else next(iter(size.all_input_nodes), None)
    if value is None or not isinstance(value.meta["val"], torch.Tensor) or not isinstance(index, int):
        return False
    return all(labels.shape[index] == 1 for labels in fields(value))
