"""Operations that move data are executed on the labels.

A compressed field is a small array, so that the real operation (or the same in numpy) is run on it: channel shuffle,
flatten before a classifier, space-to-depth and window partition come out right with no line of code for them.
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
    """The labels as a tensor; torch takes no read-only memory."""
    return torch.from_numpy(np.require(labels, requirements=["C", "W"]))


def executed(labels: IntArray, shape: Sequence[int], op: Callable[[torch.Tensor], torch.Tensor]) -> IntArray:
    """A field after the operation was executed on it."""
    return op(writable(labels).expand(*shape)).numpy()


def constants(flow: Flow, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments behind the operand, as the numbers that they are."""
    rest = fx.node.map_arg(node.args[1:], flow.constant)
    named = {key: value for key, value in node.kwargs.items() if key != "input"}
    return rest, fx.node.map_arg(named, flow.constant)
