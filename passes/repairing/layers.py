"""Which layers can be refit, what they read and write, and what they are to give.

    dense    x -- conv1 -- bn1 -- relu -- conv2 -- bn2 -- (+) --           conv1 gives dense conv1's kept channels
    slim     x -- conv1 -- bn1 -- relu -- conv2 -- bn2 -- (+) --           conv2 the dense sum without the slim shortcut

A layer has the name that it has in the dense program; the origin of its weight says which of the dense layer's output
channels are left. Where a batch norm has been folded into it since, what the dense batch norm gives is the target.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.aliasing import mutates
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.ops import argument, op_name
from prunec.compiler.ir.program import Axis, Note, Program, shape_of
from prunec.compiler.tracing.batch_dim import batch_places
from prunec.passes.repairing.calls import VIEWS, Call, Part, call_of
from prunec.passes.repairing.rows import Form

_SHARED: Final = "its weights are shared with another call"
_ADDED: Final = "the dense model has nothing of what is added behind it"
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
    form: Form
    part: Part
    """The weight, or of which parameter it is a part."""
    shift: Part | None
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
    calls: int = 1
    """How many layers of the program have its weight, and are refit together."""

    @property
    def weight(self) -> str:
        """The name of the parameter that holds the weight."""
        return self.part.name

    @property
    def bias(self) -> str | None:
        """The name of the tensor that moves the layer's outputs."""
        return None if self.shift is None else self.shift.name

    @property
    def moves_norm(self) -> bool:
        """Whether it is the running mean of its batch norm that moves the outputs."""
        return self.norm is not None and self.bias is not None and self.bias.startswith(f"{self.norm.target}.")

    @property
    def is_plain(self) -> bool:
        """Whether the weight is a whole parameter of two dimensions, or a convolution's."""
        return not self.part.views and self.form.order is None

    def weight_in(self, program: Program) -> Tensor:
        """The weight, or the part of a parameter that it is."""
        return self.part.of(program.tensors[self.part.name])

    def laid_in(self, program: Program) -> Tensor:
        """The weight as `Form.laid` gives it, without its gradient."""
        return self.form.laid(self.weight_in(program).detach())

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

    def found(self, *, everywhere: bool = False, shared: bool = False, sums: bool = True) -> Found:
        """All layers behind the first that has lost inputs, and that one; or all that there are, and then those with
        weights that several calls share only where `shared` asks for them. Without `sums` each layer's target is what
        it gives itself."""
        notes: list[Note] = []
        behind, lost, layers = set[fx.Node](), 0, list[Layer]()
        norms = []
        for node in self.slim.graph.nodes:
            has_lost = self._has_lost(node)
            lost += has_lost and not isinstance(self._module(node), MIXING)
            if has_lost or not behind.isdisjoint(node.all_input_nodes):
                behind.add(node)
            if node not in behind and not everywhere:
                continue
            if self._is_norm(node):
                if reason := self._norm_fault(node):
                    notes.append(Note(str(node.target), reason))
                else:
                    norms.append(node)
            elif call_of(node, self.slim) is not None:
                if self._factors(node, 0):  # its directions were chosen; the second layer makes up for what they lack
                    continue
                made = self._layer(node, has_lost, alone=everywhere and not shared)
                if isinstance(made, str):
                    notes.append(Note(called(node), made))
                    continue
                layers.append(made)
            elif has_lost and not isinstance(self._module(node), MIXING):
                notes.append(Note(called(node), f"{_kind(node, self._module(node))} isn't refit"))
        layers, order = self._complete(layers, notes), list(self.slim.graph.nodes)
        if sums:
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

    def _has_lost(self, node: fx.Node) -> bool:
        """Whether a node reads fewer channels than in the dense program: its weight has lost columns, or it is a norm
        over channels, of which some are gone."""
        call = call_of(node, self.slim)
        if self._factors(node, 1):
            return True
        if call is not None:
            known = self._named.get(node.name)
            before = None if known is None else call_of(known, self.dense)
            if before is None or before.weight.name != call.weight.name:
                return False
            now, then = (x.weight.of(p.tensors[x.weight.name]) for x, p in ((call, self.slim), (before, self.dense)))
            # a group that is gone as a whole takes nothing from the others
            return call.form.inputs(now) < before.form.inputs(then)
        module = self._module(node)
        if isinstance(module, MIXING):
            own = module_tensors(str(node.target), module)
            return any(name in self.dense.tensors and self.dense.tensors[name].shape != x.shape for name, x in own)
        names = [name for name, _ in module_tensors(str(node.target), module)] if isinstance(module, nn.Module) else []
        names += [str(x.target) for x in node.all_input_nodes if x.op == "get_attr"]
        axes = (axis for name in names for axis in self._reading.get(name, ()))
        return any(axis.tensor in self.slim.tensors and self.slim.size(axis) < self.dense.size(axis) for axis in axes)

    @cached_property
    def _reading(self) -> Mapping[str, list[Axis]]:
        """Tensor -> its axes that read channels in the dense program."""
        flow, found = analyse(self.dense).flow, dict[str, list[Axis]]()
        for axis, binding in flow.bindings.items():
            if (binding.role == "reader" or axis in flow.reading) and axis not in flow.by_group:
                found.setdefault(axis.tensor, []).append(axis)
        return found

    @cached_property
    def _uses(self) -> Mapping[int, list[Part]]:
        """Tensor's id -> the parts of it that nodes read, each as often as that happens."""
        uses: dict[int, list[Part]] = defaultdict(list)
        for node in self.slim.graph.nodes:
            value = self.slim.state.get(str(node.target)) if node.op in ("call_module", "get_attr") else None
            if isinstance(value, nn.Module):
                for name, tensor in module_tensors(str(node.target), value):
                    uses[id(tensor)].append(Part(name))
            elif value is not None:
                uses[id(value)] += [Part(str(node.target), views) for views in _views(node)]
        return uses

    def _users(self, part: Part) -> int:
        """How many nodes read some of what a part has, itself among them."""
        tensor = self.slim.tensors[part.name]
        uses = self._uses[id(tensor)]
        if not any(each.views for each in uses):
            return len(uses)
        numbers = torch.arange(tensor.numel()).view(tensor.shape)
        mine = torch.unique(part.of(numbers))
        return sum(bool(torch.isin(mine, each.of(numbers)).any()) for each in uses)

    def is_alone(self, call: Call) -> bool:
        """Whether nothing else reads a layer's weight or bias."""
        return not self._is_shared(call.weight, call.bias)

    def _is_shared(self, *parts: str | Part | None) -> bool:
        named = (Part(each) if isinstance(each, str) else each for each in parts)
        return any(self._users(part) > 1 for part in named if part is not None)

    @cached_property
    def _sharing(self) -> Mapping[Hashable, list[Call]]:
        """Weight's key -> the layers that have it."""
        found: dict[Hashable, list[Call]] = defaultdict(list)
        for call in (call_of(node, self.slim) for node in self.slim.graph.nodes):
            if call is not None:
                found[call.weight.key(self.slim)].append(call)
        return found

    def _together(self, call: Call) -> int:
        """How many layers have a layer's weight and bias; 0 where others read these, too, or have another bias."""
        others = self._sharing[call.weight.key(self.slim)]
        biases = {None if each.bias is None else each.bias.key(self.slim) for each in others}
        shared = [call.weight] if call.bias is None else [call.weight, call.bias]
        alone = all(self._users(part) == len(others) for part in shared)
        same = len({(each.form.turned, each.form.groups, each.form.order) for each in others}) == 1
        return len(others) if alone and same and len(biases) == 1 else 0

    def _complete(self, layers: Sequence[Layer], notes: list[Note]) -> list[Layer]:
        """The layers without those that share a weight with one that isn't among them."""
        count = Counter(layer.part.key(self.slim) for layer in layers)
        found = []
        for layer in layers:
            if layer.calls == count[layer.part.key(self.slim)]:
                found.append(layer)
            else:
                notes.append(Note(called(layer.node), _SHARED))
        return found

    def _norm_fault(self, node: fx.Node) -> str | None:
        """Why the statistics of a batch norm can't be estimated anew."""
        if self._is_shared(f"{node.target}.running_mean", f"{node.target}.running_var"):
            return "its statistics are shared with another call"
        if self._has_more(node):
            return _ADDED
        return None if isinstance(_source(node), fx.Node) else "it reads no value of the graph"

    def _factors(self, node: fx.Node, number: int) -> str | None:
        """The name of the dense layer that has become two (`factorise`), of which a node is the first or second."""
        name, _, last = str(node.target).rpartition(".") if node.op == "call_module" else ("", "", "")
        if last != str(number) or f"{name}.weight" in self.slim.tensors or f"{name}.weight" not in self.dense.tensors:
            return None
        return name if all(f"{name}.{each}.weight" in self.slim.tensors for each in (0, 1)) else None

    def _has_more(self, node: fx.Node) -> bool:
        """Whether a tensor is added behind a node that the dense program doesn't have, such as a map of constants."""
        added = (user.all_input_nodes for user in node.users if op_name(user) == "add")
        tensors = (str(x.target) for operands in added for x in operands if x.op == "get_attr")
        return any(name not in self.dense.tensors for name in tensors)

    # -- one layer -----------------------------------------------------------------------------------------------------

    @cached_property
    def _named(self) -> Mapping[str, fx.Node]:
        return {node.name: node for node in self.dense.graph.nodes}

    @cached_property
    def _places(self) -> Mapping[fx.Node, tuple[int, int]]:
        return batch_places(self.slim)

    def _layer(self, node: fx.Node, lost: bool, alone: bool) -> Layer | str:
        """The layer of a node, with its own output as the target; or why it can't be refit. With `alone`, those that
        share their weights can't be."""
        call = call_of(node, self.slim)
        assert call is not None, "it is a layer"
        weight, source, bias, conv = call.weight, call.source, call.bias, call.form.conv
        calls = self._together(call) if self._is_shared(weight, bias) else 1
        if not calls or (alone and calls > 1):
            return _SHARED
        if source is None or source not in self._places or node not in self._places:
            return "what it reads doesn't follow the batch"
        rank = self.slim.tensors[weight.name].ndim
        if conv is not None and (len(shape_of(source)) != rank or self._places[source][0] != 0):
            return "it reads no batch of images"
        if self._places[source] != self._places[node]:
            return "what it gives doesn't follow the batch as what it reads does"
        target = self._target(node)
        if target is None:
            return "the dense model has no such layer"
        left = self._left(call, node, target)
        if left is None:
            return "its channels can't be told from those of the dense model's layer"
        reader = _only(node)
        if self._has_more(node) or (reader is not None and self._is_norm(reader) and self._has_more(reader)):
            return _ADDED
        norm = self._own_norm(node, call.form) if calls == 1 else None
        shifted = bias or (Part(f"{norm.target}.running_mean") if norm is not None else None)
        return Layer(
            node, source, call.form, weight, shifted, norm, target, left, None, lost, self._places[source], calls
        )

    def _own_norm(self, node: fx.Node, form: Form) -> fx.Node | None:
        """The batch norm that alone reads a convolution or a linear layer, along its channels."""
        reader = _only(node)
        if reader is None or not self._is_norm(reader) or _source(reader) is not node:
            return None
        along = [dim % len(shape_of(node)) for dim in form.channels] == [1]
        return reader if along and self._norm_fault(reader) is None else None

    def _target(self, node: fx.Node) -> fx.Node | None:
        """The dense node that gives what this one should: its own, or the batch norm that was folded into it."""
        target = self._named.get(node.name)
        if target is None or (target.op, target.target) != (node.op, self._factors(node, 1) or node.target):
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

    def _left(self, call: Call, node: fx.Node, target: fx.Node) -> Tensor | None:
        """Which channels of the target are left of a layer's; None where that isn't known."""
        before = call_of(self._named[node.name], self.dense)
        if before is None:
            return None
        dims = _writing(before, self.dense)
        known, mine = _outputs(before, self.dense, dims), _outputs(call, self.slim, dims)
        if before.weight.name != call.weight.name:  # one of two thin layers: it gives what was left when they were made
            whole, own = Axis(before.weight.name, 0), Axis(call.weight.name, 0)
            origin = self.slim.origin.get(whole, np.arange(self.dense.size(whole)))
            later = self.slim.origin.get(own, np.arange(self.slim.size(own)))
            if not self._factors(node, 1) or (own not in self.slim.origin and len(origin) != len(later)):
                return None
            mine = [(number,) for number in origin[later].tolist()]
        value = target.meta.get("val")
        if known is None or mine is None or not isinstance(value, Tensor):
            return None
        place = {row: number for number, row in enumerate(known)}
        if math.prod(value.shape[dim] for dim in before.form.channels) != len(known) or not place.keys() >= set(mine):
            return None
        return torch.tensor([place[row] for row in mine])

    # -- sums ----------------------------------------------------------------------------------------------------------

    def _with_sums(self, layers: Sequence[Layer]) -> tuple[list[Layer], list[fx.Node]]:
        """The layers, of which one for each sum that directly follows has it as its target: the one that lies deepest;
        and an order of all nodes in which the other summand is there before it."""
        depth: dict[fx.Node, int] = {}
        for node in self.slim.graph.nodes:
            depth[node] = 1 + max((depth[x] for x in node.all_input_nodes), default=0)
        best: dict[fx.Node, Layer] = {}
        for layer in (layer for layer in layers if layer.calls == 1):
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


def _views(node: fx.Node) -> Iterator[tuple[fx.Node, ...]]:
    """For each node that reads a parameter, by what views it does."""
    for user in node.users:
        if op_name(user) in VIEWS and user.all_input_nodes == [node]:
            yield from ((user, *more) for more in _views(user))
        else:
            yield ()


def _writing(call: Call, program: Program) -> list[int] | None:
    """The dimensions of a layer's parameter that tell its outputs apart; None where one is of inputs and outputs."""
    tensor, found = program.tensors[call.weight.name], list[int]()
    if not call.weight.views and call.form.order is None:
        return [call.form.writes]
    for dim in range(tensor.ndim):
        laid = _along(call, tensor, dim, np.arange(tensor.shape[dim]))
        if not bool((laid == laid[:, :1]).all()):
            if not bool((laid == laid[:1]).all()):
                return None
            found.append(dim)
    return found


def _outputs(call: Call, program: Program, dims: list[int] | None) -> list[tuple[int, ...]] | None:
    """What each output of a layer was in the traced program, by these dimensions of its parameter."""
    tensor, found = program.tensors[call.weight.name], list[Any]()
    if dims is None:
        return None
    for dim in dims:
        axis = Axis(call.weight.name, dim)
        numbers = program.origin.get(axis, np.arange(program.size(axis)))
        if len(numbers) != program.size(axis):
            return None
        plain = not call.weight.views and call.form.order is None
        found.append(numbers if plain else _along(call, tensor, dim, numbers)[0].numpy())
    return list(zip(*(each.tolist() for each in found), strict=True))


def _along(call: Call, tensor: Tensor, dim: int, numbers: Any) -> Tensor:
    """[inputs, outputs] of a matrix: the number of each entry along a dimension of its parameter."""
    shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
    spread = torch.from_numpy(np.asarray(numbers)).view(shape).expand(tensor.shape).contiguous()
    return call.form.laid(call.weight.of(spread)).flatten(1, -2)[0]


def called(node: fx.Node) -> str:
    """The name of a node's module, or its own where it has none."""
    return str(node.target) if node.op == "call_module" else node.name


def _source(node: fx.Node) -> fx.Node | None:
    found = argument(node, 0, "input")
    return found if isinstance(found, fx.Node) else None


def _only(node: fx.Node) -> fx.Node | None:
    """The one node that reads this one; None where there are none or several."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes.count(node) == 1 else None


def _kind(node: fx.Node, module: Any) -> str:
    name = op_name(node) if module is None else type(module).__name__
    return f"{name} at {node.name}" if module is None else f"a {name}"


def affine_of(norm: Any) -> Affine:
    """What a batch norm in evaluation mode computes."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(var + norm.eps) * (1.0 if norm.weight is None else norm.weight.detach().double())
    return Affine(scale, (0.0 if norm.bias is None else norm.bias.detach().double()) - mean * scale)
