"""A flow without a network behind it: labels by hand, and what the rules have reported of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from prunec.compiler.groups.blocks import components
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.compiler.labels.flow import FIXED, Flow


def empty_flow(count: int) -> tuple[Flow, fx.Node]:
    """A flow that knows labels 0 to `count - 1`, and a node to report at."""
    graph = fx.Graph()
    node = graph.placeholder("here")
    flow = Flow(Program(graph, {}, ()))
    flow.fresh(count, Axis("a.weight", 0))
    return flow, node


def carried(flow: Flow, shape: tuple[int, ...], *fields: IntArray) -> fx.Node:
    """A new node of that shape, which carries these fields."""
    node = flow.program.graph.placeholder(f"v{len(flow.values)}")
    node.meta["val"] = torch.empty(shape, device="meta")
    flow.values[node] = fields
    return node


def along(dim: int, rank: int, *labels: int) -> IntArray:
    """Labels that vary along one dimension."""
    return np.array(labels, dtype=np.int64).reshape([-1 if d == dim else 1 for d in range(rank)])


def joined(flow: Flow) -> list[int]:
    """label -> the smallest one that it goes with; FIXED where it stays."""
    size = flow.count + 1  # the last stands for FIXED
    pairs = [np.broadcast_arrays(pair.left, pair.right) for pair in flow.pairs]
    left = np.concatenate([np.zeros(0, dtype=np.int64), *(one.ravel() for one, _ in pairs)]) % size
    right = np.concatenate([np.zeros(0, dtype=np.int64), *(other.ravel() for _, other in pairs)]) % size
    pinned = [pin.labels.ravel() for pin in flow.pins]
    stays = np.concatenate([np.zeros(0, dtype=np.int64), *pinned]) % size
    found = components(size, np.append(left, stays), np.append(right, np.full(stays.size, size - 1)))
    return [FIXED if component == found[-1] else int(component) for component in found[:-1]]


def reasons(flow: Flow) -> list[str]:
    """Why labels are pinned, in the order in which it was found."""
    return [pin.reason for pin in flow.pins]
