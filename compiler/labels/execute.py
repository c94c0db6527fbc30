"""Runs an operation that only moves data on the labels themselves: torch says where each label ends up.

    x.roll(1, dims=1)                      labels 0 1 2 3 along the channels become 3 0 1 2
    x.view(n, 2, 4, h, w).transpose(1, 2)  labels [1, 8, 1, 1] become [1, 4, 2, 1, 1]: 0 4 | 1 5 | 2 6 | 3 7

A field is a small array, so that this costs little, and a channel shuffle, a flatten before a classifier,
space-to-depth and window partition come out right with no line of code for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Flow


def writable(labels: IntArray) -> torch.Tensor:
    """The labels as a tensor; copied where numpy holds them read-only, since torch takes no such memory."""
    return torch.from_numpy(np.require(labels, requirements=["C", "W"]))


def executed(labels: IntArray, shape: Sequence[int], op: Callable[[torch.Tensor], torch.Tensor]) -> IntArray:
    """A field after `op` was run on it at the operand's `shape`. What comes out isn't compressed: see `Flow.moved`."""
    return op(writable(labels).expand(*shape)).numpy()


def constants(flow: Flow, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments behind its first operand, positional and by name; for nodes, their constant values."""
    rest = fx.node.map_arg(node.args[1:], flow.constant)
    named = {key: value for key, value in node.kwargs.items() if key != "input"}
    return rest, fx.node.map_arg(named, flow.constant)
