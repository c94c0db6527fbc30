"""Programs made node by node."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from prunec.compiler.ir.program import Program


@dataclass(frozen=True)
class Value:
    """The value of the placeholder (0) or of an earlier node, in the arguments of a program made by hand."""

    index: int


def by_hand(*nodes: tuple[str, object, tuple[object, ...]]) -> Program:
    """A program of one input and the calls that are listed; it returns the last one."""
    graph, example = fx.Graph(), torch.randn(4, 3)
    values = [graph.placeholder("x")]
    for kind, target, args in nodes:
        known = fx.node.map_aggregate(args, lambda arg: values[arg.index] if isinstance(arg, Value) else arg)
        values.append(graph.create_node(kind, target, known))
    graph.output(values[-1])
    for node in graph.nodes:
        node.meta["val"] = example
    return Program(graph, {}, (example,), name="Net")


X, Y = Value(0), Value(1)
