"""Which layers can be refit, what they read and write, and what they are to give.

    dense    x -- conv1 -- bn1 -- relu -- conv2 -- bn2 -- (+) --           conv1 gives dense conv1's kept channels
    slim     x -- conv1 -- bn1 -- relu -- conv2 -- bn2 -- (+) --           conv2 the dense sum without the slim shortcut

A layer has the name that it has in the dense program; the origin of its weight says which of the dense layer's output
channels are left. Where a batch norm has been folded into it since, what the dense batch norm gives is the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from prunec.compiler.ir.aliasing import mutates
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.ops import argument, op_name
from prunec.compiler.ir.program import Axis, Note, Program, shape_of
from prunec.compiler.tracing.batch_dim import batch_places

CONVS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LINEARS: Final = (nn.Linear, NonDynamicallyQuantizableLinear)
MIXING: Final = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Norms whose statistics are of several channels together."""
NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Affine:
    """What a batch norm with fixed statistics computes: `scale * x + shift`, one number a channel, in float64."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Layer:
    """A layer that can be refit, by its nodes in the slim program (the target's in the dense one)."""

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    """The tensor that moves the layer's outputs: its bias, or the running mean of its batch norm; None for neither."""
    norm: fx.Node | None
    """The batch norm that alone reads the layer."""
    target: fx.Node
    left: Tensor
    """Which of the target's channels are the layer's."""
    other: fx.Node | None
    """The other summand, where the target is a sum."""
    lost: bool
    """Whether the layer has lost inputs."""
    batch: tuple[int, int]
    """The dimension of the source that holds the samples, and the rows of it that one sample has."""

    @property
    def through_norm(self) -> bool:
        """Whether the target is what comes behind the layer's batch norm."""
        return self.norm is not None and self.other is not None


@dataclass
class Found:
    """What there is to repair in a slim program."""

    order: Sequence[fx.Node]
    """The slim program's nodes in the order in which they are to run."""
    layers: Sequence[Layer]
    norms: Sequence[fx.Node]
    """Batch norms behind the first loss, in that order."""
    notes: Sequence[Note]
    lost: int
    """How many layers have lost inputs, also such as can't be refit."""


@dataclass
class Search:
    """The search for what there is to repair; both programs are `deployed`."""

    slim: Program
    dense: Program

    def found(self, *, everywhere: bool = False) -> Found:
        """All layers behind the first that has lost inputs, and that one; or all that there are."""
        notes: list[Note] = []
        behind, lost, layers = set[fx.Node](), 0, list[Layer]()
        norms = []
        for node in self.slim.graph.nodes:
            has_lost = self._has_lost(node)
            lost += has_lost and self._weight(node) is not None
            if has_lost or not behind.isdisjoint(node.all_input_nodes):
                behind.add(node)
            if node not in behind and not everywhere:
                continue
            if self._is_norm(node):
                if reason := self._norm_fault(node):
                    notes.append(Note(str(node.target), reason))
                else:
                    norms.append(node)
            elif self._weight(node) is not None:
                made = self._layer(node, has_lost)
                if isinstance(made, str):
                    notes.append(Note(_called(node), made))
                    continue
                layers.append(made)
            elif self._is_transposed(node):
                notes.append(Note(_called(node), "a transposed convolution isn't refit"))
        layers, order = self._with_sums(layers)
        place = {node: index for index, node in enumerate(order)}
        layers.sort(key=lambda layer: place[layer.node])
        norms.sort(key=lambda node: place[node])
        return Found(order, layers, norms, notes, lost)

    # -- which nodes ---------------------------------------------------------------------------------------------------

    def _module(self, node: fx.Node) -> Any:
        return self.slim.state.get(str(node.target)) if node.op == "call_module" else None

    def _is_norm(self, node: fx.Node) -> bool:
        module = self._module(node)
        return type(module) in NORMS and module.running_mean is not None

    def _is_transposed(self, node: fx.Node) -> bool:
        return isinstance(self._module(node), nn.modules.conv._ConvTransposeNd)

    def _weight(self, node: fx.Node) -> str | None:
        """The name of a layer's weight; None for a node that is no layer."""
        if type(self._module(node)) in (*CONVS, *LINEARS):
            return f"{node.target}.weight"
        if node.op == "call_function" and node.target is F.linear:
            weight = argument(node, 1, "weight")
            return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
        return None

    def _has_lost(self, node: fx.Node) -> bool:
        """Whether a node reads fewer channels than in the dense program: its weight has lost columns, or it is a norm
        over channels, of which some are gone."""
        weight = self._weight(node)
        if weight is not None:
            known = self.dense.tensors.get(weight)  # a group that is gone as a whole takes nothing from the others
            return known is not None and self.slim.tensors[weight].shape[1] < known.shape[1]
        module = self._module(node)
        if self._is_transposed(node):
            axis = Axis(f"{node.target}.weight", 0)
            return axis.tensor in self.dense.tensors and self.slim.size(axis) < self.dense.size(axis)
        if not isinstance(module, MIXING):
            return False
        own = module_tensors(str(node.target), module)
        dense = self.dense.tensors
        return any(name in dense and dense[name].shape != x.shape for name, x in own)

    @cached_property
    def _uses(self) -> Counter[int]:
        """Tensor's id -> how many nodes read it."""
        uses: Counter[int] = Counter()
        for node in self.slim.graph.nodes:
            value = self.slim.state.get(str(node.target)) if node.op in ("call_module", "get_attr") else None
            if isinstance(value, nn.Module):
                uses.update(id(tensor) for _, tensor in module_tensors("", value))
            elif value is not None:
                uses.update([id(value)] * len(node.users))
        return uses

    def _is_shared(self, *names: str | None) -> bool:
        return any(self._uses[id(self.slim.tensors[name])] > 1 for name in names if name is not None)

    def _norm_fault(self, node: fx.Node) -> str | None:
        """Why the statistics of a batch norm can't be estimated anew."""
        if self._is_shared(f"{node.target}.running_mean", f"{node.target}.running_var"):
            return "its statistics are shared with another call"
        return None if isinstance(_source(node), fx.Node) else "it reads no value of the graph"

    # -- one layer -----------------------------------------------------------------------------------------------------

    @cached_property
    def _named(self) -> Mapping[str, fx.Node]:
        return {node.name: node for node in self.dense.graph.nodes}

    @cached_property
    def _places(self) -> Mapping[fx.Node, tuple[int, int]]:
        return batch_places(self.slim)

    def _layer(self, node: fx.Node, lost: bool) -> Layer | str:
        """The layer of a node, with its own output as the target; or why it can't be refit."""
        weight, source = self._weight(node), _source(node)
        assert weight is not None, "it is a layer"
        bias = self._bias(node)
        if self._is_shared(weight, bias):
            return "its weights are shared with another call"
        if source is None or source not in self._places or node not in self._places:
            return "what it reads doesn't follow the batch"
        module = self._module(node)
        if type(module) in CONVS and (len(shape_of(source)) != module.weight.ndim or self._places[source][0] != 0):
            return "it reads no batch of images"
        if self._places[source] != self._places[node]:
            return "what it gives doesn't follow the batch as what it reads does"
        target = self._target(node)
        if target is None:
            return "the dense model has no such layer"
        left = self._left(weight, target, _channel_dim(node, self.slim))
        if left is None:
            return "its channels can't be told from those of the dense model's layer"
        norm = self._own_norm(node)
        shifted = bias or (f"{norm.target}.running_mean" if norm is not None else None)
        return Layer(node, source, weight, shifted, norm, target, left, None, lost, self._places[source])

    def _bias(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            return None if self._module(node).bias is None else f"{node.target}.bias"
        bias = argument(node, 2, "bias")
        return str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None

    def _own_norm(self, node: fx.Node) -> fx.Node | None:
        """The batch norm that alone reads a convolution or a linear layer, along its channels."""
        reader = _only(node)
        if reader is None or not self._is_norm(reader) or _source(reader) is not node:
            return None
        along = _channel_dim(node, self.slim) % len(shape_of(node)) == 1
        return reader if along and self._norm_fault(reader) is None else None

    def _target(self, node: fx.Node) -> fx.Node | None:
        """The dense node that gives what this one should: its own, or the batch norm that was folded into it."""
        target = self._named.get(node.name)
        if target is None or (target.op, target.target) != (node.op, node.target):
            return None
        own = set(self._slim_names)
        while (reader := _only(target)) is not None and reader.name not in own:
            if type(self.dense.state.get(str(reader.target))) not in NORMS:
                break
            target = reader
        return target

    @cached_property
    def _slim_names(self) -> frozenset[str]:
        return frozenset(node.name for node in self.slim.graph.nodes)

    def _left(self, weight: str, target: fx.Node, dim: int) -> Tensor | None:
        """Which channels of the target are left; None where that isn't known."""
        axis = Axis(weight, 0)
        if weight not in self.dense.tensors:
            return None
        known = self.dense.origin.get(axis, np.arange(self.dense.tensors[weight].shape[0]))
        mine = self.slim.origin.get(axis, known)
        value = target.meta.get("val")
        if not isinstance(value, Tensor) or value.shape[dim] != len(known) or not np.isin(mine, known).all():
            return None
        if len(mine) != self.slim.tensors[weight].shape[0]:
            return None
        order = np.argsort(known)
        return torch.from_numpy(order[np.searchsorted(known, mine, sorter=order)])

    # -- sums ----------------------------------------------------------------------------------------------------------

    def _with_sums(self, layers: Sequence[Layer]) -> tuple[list[Layer], list[fx.Node]]:
        """The layers, of which one for each sum that directly follows has it as its target: the one that lies deepest;
        and an order of all nodes in which the other summand is there before it."""
        depth: dict[fx.Node, int] = {}
        for node in self.slim.graph.nodes:
            depth[node] = 1 + max((depth[x] for x in node.all_input_nodes), default=0)
        best: dict[fx.Node, Layer] = {}
        for layer in layers:
            total = self._sum(layer)
            if total is not None and (total not in best or depth[layer.node] > depth[best[total].node]):
                best[total] = layer
        order, made = list(self.slim.graph.nodes), {layer.node: layer for layer in layers}
        for total, layer in best.items():
            other = next(x for x in total.all_input_nodes if x is not self._last(layer))
            moved = self._before(layer.node, other, total, order)
            if moved is not None:
                order = moved
                made[layer.node] = replace(layer, target=self._named[total.name], other=other)
        return list(made.values()), order

    def _last(self, layer: Layer) -> fx.Node:
        """The layer's node, its batch norm or a dropout behind them: what the next node reads."""
        last = layer.norm or layer.node
        while (reader := _only(last)) is not None and self._is_dropout(reader):
            last = reader
        return last

    def _sum(self, layer: Layer) -> fx.Node | None:
        """The sum of two values that a layer directly goes into, where it can be the layer's target."""
        last = self._last(layer)
        total = _only(last)
        if total is None or op_name(total) not in ("add", "iadd") or total.kwargs or len(total.args) != 2:
            return None
        others = [x for x in total.args if isinstance(x, fx.Node) and x is not last]
        wanted = self._named.get(total.name)
        if len(others) != 1 or wanted is None or wanted.op != total.op or layer.bias is None:
            return None
        other, shape = others[0], shape_of(total)
        if not isinstance(other.meta.get("val"), Tensor) or shape_of(other) != shape or shape_of(last) != shape:
            return None
        if shape_of(wanted) != shape_of(layer.target) or self._places.get(other) != self._places.get(layer.node):
            return None
        return total if layer.norm is None or self._is_plain(layer.norm) else None

    def _is_dropout(self, node: fx.Node) -> bool:
        module = self._module(node)
        return isinstance(module, nn.modules.dropout._DropoutNd | nn.Identity) or (
            node.op == "call_function" and node.target is F.dropout
        )

    def _is_plain(self, norm: fx.Node) -> bool:
        module = self._module(norm)
        return not self._is_shared(*(f"{norm.target}.{name}" for name, _ in module_tensors("", module)))

    def _before(self, node: fx.Node, other: fx.Node, total: fx.Node, order: list[fx.Node]) -> list[fx.Node] | None:
        """The order with all that `other` needs before `node`; None where something writes in place meanwhile."""
        start, end = order.index(node), order.index(total)
        between = order[start:end]
        if any(mutates(each, self.slim.state) for each in between):
            return None
        if other not in between:
            return order
        needed, waiting = set[fx.Node](), [other]
        inside = set(between)
        while waiting:
            each = waiting.pop()
            if each in inside and each not in needed:
                needed.add(each)
                waiting += each.all_input_nodes
        first = [each for each in between if each in needed]
        return [*order[:start], *first, *(each for each in between if each not in needed), *order[end:]]


def _called(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _source(node: fx.Node) -> fx.Node | None:
    found = argument(node, 0, "input")
    return found if isinstance(found, fx.Node) else None


def _only(node: fx.Node) -> fx.Node | None:
    """The one node that reads this one; None where there are none or several."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes.count(node) == 1 else None


def _channel_dim(node: fx.Node, program: Program) -> int:
    """The dimension of a layer's output along which its channels lie."""
    module = program.state.get(str(node.target)) if node.op == "call_module" else None
    return 1 if type(module) in CONVS else -1


def affine_of(norm: Any) -> Affine:
    """What a batch norm in evaluation mode computes."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(var + norm.eps) * (1.0 if norm.weight is None else norm.weight.detach().double())
    return Affine(scale, (0.0 if norm.bias is None else norm.bias.detach().double()) - mean * scale)
