"""Times that are formulas: a meter without a clock, a layer and the nodes of a network to be measured."""

from __future__ import annotations

import math

import torch

from prunec.compiler.cost.latency.layers import Layer, layer_at
from prunec.compiler.cost.latency.model import LatencyModel, latency_model
from prunec.compiler.cost.latency.table import NetworkTime, Table
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.targets.base import NodeTime


class Formula:
    """A layer takes a nanosecond a multiplication, in a network two; any other value takes one a number."""

    name = "formula"

    def __init__(self) -> None:
        self.asked: list[Layer] = []

    def layer(self, layer, points):
        self.asked.append(layer)
        return [1e-9 * layer.weights(*point) * layer.batch * math.prod(layer.sizes) for point in points]

    def network(self, program):
        nodes = []
        analysis = analyse(program)
        for node in program.graph.nodes:
            numbers = node.meta["val"].numel() if isinstance(node.meta.get("val"), torch.Tensor) else 0
            layer = layer_at(program, node, f"{node.target}.weight" in {axis.tensor for axis in analysis.flow.by_group})
            if layer is not None:
                (alone,) = self.layer(layer, [(layer.inner, layer.outer)])
                nodes.append(NodeTime("Conv", numbers, 2 * alone))
            elif node.op not in ("placeholder", "get_attr", "output"):
                nodes.append(NodeTime("Other", numbers, 1e-9 * numbers))
        return NetworkTime(tuple(nodes), math.fsum(node.seconds for node in nodes))


def modelled(program, meter=None) -> LatencyModel:
    return latency_model(program, Table(meter or Formula()))


CONV = Layer("conv", 8, 16, 1, (6, 6), kernel=(3, 3), stride=(1, 1), pads=((1, 1), (1, 1)), dilation=(1, 1))

NODES = (NodeTime("Conv", 100, 4.0), NodeTime("Gemm", 10, 1.0), NodeTime("Add", 100, 0.5), NodeTime("Softmax", 7, 0.5))
