"""Repair without data: what batch norms say of their outputs stands for samples.

    bn.bias = 0.2, bn.weight = 0.5      each channel of its output is drawn from a normal distribution with that mean
                                        and that deviation, the same everywhere in the image, apart from all others

    bias          a layer's outputs then have the dense layer's means: what its lost inputs gave is added, also behind a
                  ReLU, whose mean is that of a clipped normal distribution
    batch_norm    a running mean moves by as much, and a running variance shrinks as that of the draws does

Only what lies between a batch norm and a layer is run; so nothing of the model's input is asked for, and errors don't
add up from layer to layer. What is known of a channel is two numbers: that channels go together, or that a maximum is
taken over an image, isn't seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx

from prunec.compiler.ir.program import Axis, Note, Program
from prunec.compiler.ir.random_inputs import fresh_inputs
from prunec.compiler.verify.interpreter import Interpreter
from prunec.passes.repairing.layers import NORMS, Found, Layer

DRAWS: Final = 64
"""How many samples are drawn: so many parts of the distribution, of each its middle."""
_UNKNOWN: Final = "what it reads doesn't come of batch norms alone"


class Drawn:
    """A repair by the statistics of batch norms, of a slim program whose tensors may be written."""

    def __init__(self, slim: Program, dense: Program, found: Found) -> None:
        self.slim, self.dense = slim, dense
        self.layers = {layer.node.name: layer for layer in found.layers if layer.lost and layer.shift is not None}
        self.norms = {node.name: node for node in found.norms}
        self.named = {node.name: node for node in dense.graph.nodes}
        self.own = {node.name: node for node in slim.graph.nodes}
        self.drawn = {name for name in self.own if self._is_drawn(name)}
        """The batch norms of both programs of which it is known which channels are left."""
        self.notes: list[Note] = []

    def run(self, method: str) -> dict[str, Any]:
        """Repair what can be by `bias` or `batch_norm`; give the names of what was."""
        places = dict(self._places(method))
        means = {
            node.name: _moments(value, self._dim(node.name))
            for node, value in self._steps(self.dense, {self.named[node.name] for node in places})
        }
        rows: dict[str, Any] = {}
        for node, value in self._steps(self.slim, places):
            place, (mean, var) = places[node], _moments(value, self._dim(node.name))
            old_mean, old_var = (each[self._left(place)] for each in means[node.name])
            if method == "bias":
                self._shift(self.layers[node.name], old_mean - mean)
                value.movedim(self._dim(node.name), -1).add_(old_mean - mean)  # what follows reads it
            else:
                norm: Any = self.slim.state[str(place.target)]
                norm.running_mean.add_((mean - old_mean).to(norm.running_mean))
                fine = (old_var > 0) & (var > 0)
                norm.running_var.mul_(torch.where(fine, var / old_var, 1.0).to(norm.running_var))
            rows[str(place.target) if place.op == "call_module" else place.name] = {}
        return rows

    def _places(self, method: str) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Whose outputs are measured, and the layer or batch norm that is repaired by them."""
        known = self._known()
        for layer in self.layers.values() if method == "bias" else ():
            if layer.target.name != layer.node.name:
                self._leave(layer.node, "its batch norm has been folded")
            elif layer.source not in known:
                self._leave(layer.node, _UNKNOWN)
            else:
                yield layer.node, layer.node
        for node in self.norms.values() if method == "batch_norm" else ():
            source = node.all_input_nodes[0]
            if source not in known or source.name not in self.named or node.name not in self.drawn:
                self._leave(node, _UNKNOWN)
            else:
                yield source, node

    def _leave(self, node: fx.Node, why: str) -> None:
        self.notes.append(Note(str(node.target) if node.op == "call_module" else node.name, why))

    def _known(self) -> set[fx.Node]:
        """The slim program's nodes whose values come of batch norms alone."""
        known = set[fx.Node]()
        for node in self.slim.graph.nodes:
            inner = node.op != "placeholder" and bool(node.all_input_nodes or node.op == "get_attr")
            if node.name in self.drawn or (inner and known.issuperset(node.all_input_nodes)):
                known.add(node)
        return known

    def _is_drawn(self, name: str) -> bool:
        node, other = self.own[name], self.named.get(name)
        if other is None or node.op != "call_module" or (other.op, other.target) != (node.op, node.target):
            return False
        module: Any = self.slim.state.get(str(node.target))
        return type(module) in NORMS and module.running_mean is not None and self._left(node) is not None

    def _left(self, node: fx.Node) -> Tensor | None:
        """Which of the dense node's channels are left; None where that isn't known."""
        if node.name in self.layers:
            return self.layers[node.name].left
        axis = Axis(f"{node.target}.running_mean", 0)
        known = self.dense.origin.get(axis, np.arange(self.dense.size(axis)))
        mine = self.slim.origin.get(axis, known)
        if len(mine) != self.slim.size(axis) or not np.isin(mine, known).all():
            return None
        order = np.argsort(known)
        return torch.from_numpy(order[np.searchsorted(known, mine, sorter=order)])

    def _dim(self, name: str) -> int:
        """Along which dimension a node's channels lie."""
        return self.layers[name].form.channels[0] if name in self.layers else 1

    def _steps(self, program: Program, asked: Collection[fx.Node]) -> Iterator[tuple[fx.Node, Tensor]]:
        """The values of the nodes that are asked for, with draws in place of what batch norms give."""
        interpreter = Interpreter(program, torch.float64)
        interpreter.give = lambda node, args, kwargs: (
            self._draws(program, node, args[0]) if node.name in self.drawn else None
        )
        for node, value in interpreter.steps(fresh_inputs(program, DRAWS, 0)):
            if node in asked:
                yield node, value

    def _draws(self, program: Program, node: fx.Node, x: Tensor) -> Tensor:
        """Draws of the shape of what the norm reads: the same ones for a channel in both programs."""
        norm: Any = self.dense.state[str(node.target)]
        generator = np.random.default_rng(zlib.crc32(node.name.encode()))
        order = np.stack([generator.permutation(DRAWS) for _ in range(len(norm.running_mean))], 1)
        middles = torch.special.ndtri((torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS)
        drawn = (middles / middles.square().mean().sqrt())[torch.from_numpy(order)].to(x)
        if norm.weight is not None:
            drawn = drawn * norm.weight.detach().to(x) + norm.bias.detach().to(x)
        if program is self.slim:
            drawn = drawn[:, self._left(node)]
        rows = drawn[torch.arange(len(x)) % DRAWS]
        found: Tensor = rows.reshape(*rows.shape, *[1] * (x.ndim - 2)).expand(x.shape).clone()
        return found

    def _shift(self, layer: Layer, by: Tensor) -> None:
        """Move a layer's outputs, as `refit` does."""
        assert layer.shift is not None, "it has one"
        tensor = layer.shift.of(self.slim.tensors[layer.shift.name])
        with torch.no_grad():
            tensor.add_((-by if layer.moves_norm else by).to(tensor))


def _moments(value: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The mean and the variance of each channel."""
    rows = value.movedim(dim, -1).flatten(0, -2).double()
    return rows.mean(0), rows.var(0, unbiased=False)
