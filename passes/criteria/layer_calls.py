"""Calls of layers, watched: each with what it reads, and the gradient of what it gives, a row for each sample.

    %conv2 = conv2(%pool)        ->      %conv2   = conv2(%pool)
                                         %watch_1 = watch_1(%conv2, %pool)

A layer is a convolution, a transposed one or a linear layer, of one to three dimensions; also `F.linear` with a
parameter. Its value goes on as it is, so that what overwrites it later finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.ops import argument
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.tracing.batch_dim import batch_places

LAYERS: Final = (
    nn.Linear,
    NonDynamicallyQuantizableLinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer."""

    node: fx.Node
    source: fx.Node
    weight: str
    """The name of its weight."""
    conv: _ConvNd | None
    """What it computes; None for a linear layer."""
    batch: int
    """The dimension that holds the samples, of what it reads and of what it gives."""
    rows: int
    """How many rows of that dimension one sample has."""

    @property
    def written(self) -> Axis:
        """The weight's axis along which the channels lie that it gives."""
        return Axis(self.weight, 1 if isinstance(self.conv, _ConvTransposeNd) else 0)

    def sums(self, values: Tensor) -> Tensor:
        """Sums over each sample's elements of each channel: [shape of what it gives] -> [samples, channels]."""
        if self.conv is None:
            return samples_first(values, self).sum(1)
        return torch.unflatten(values.flatten(2).sum(2), 0, (-1, self.rows)).sum(1)


def samples_first(values: Tensor, call: LayerCall) -> Tensor:
    """What a linear layer reads or gives as [samples, rows, features]."""
    moved = values.movedim(call.batch, 0)
    return moved.reshape(moved.shape[0] // call.rows, -1, moved.shape[-1])


def calls_of(program: Program) -> Mapping[int, Sequence[LayerCall]]:
    """Tensor's id -> all calls of layers whose weight it is, in the order of the graph.

    A tensor that anything else reads has no entry, nor one that is called with values in which samples can't be told
    apart.
    """
    places = batch_places(program)
    found: dict[int, list[LayerCall]] = {}
    other: set[int] = set()
    for node in program.graph.nodes:
        state = program.state.get(str(node.target)) if node.op in ("call_module", "get_attr") else None
        if isinstance(state, nn.Module):
            call = _called(program, node, places)
            own = None if call is None else id(program.tensors[call.weight])
            other.update(id(tensor) for _, tensor in module_tensors("", state) if id(tensor) != own)
            if call is not None:
                found.setdefault(id(program.tensors[call.weight]), []).append(call)
        elif isinstance(state, Tensor):
            for user in node.users:
                call = _called(program, user, places)
                if call is None or call.weight != node.target:
                    other.add(id(state))
                else:
                    found.setdefault(id(state), []).append(call)
    return {number: calls for number, calls in found.items() if number not in other}


def _called(program: Program, node: fx.Node, places: Mapping[fx.Node, tuple[int, int]]) -> LayerCall | None:
    """The call of a layer that a node is; None for any other node."""
    module: Any = None
    if node.op == "call_module":
        module = program.state[str(node.target)]
        if type(module) not in LAYERS:
            return None
        weight, source = f"{node.target}.weight", argument(node, 0, "input")
    elif node.op == "call_function" and node.target is F.linear:
        parameter, source = argument(node, 1, "weight"), argument(node, 0, "input")
        if not isinstance(parameter, fx.Node) or parameter.op != "get_attr" or parameter is argument(node, 2, "bias"):
            return None
        weight = str(parameter.target)
    else:
        return None
    conv = module if isinstance(module, _ConvNd) else None
    if not isinstance(source, fx.Node) or source not in places or places.get(node) != places[source]:
        return None
    batch, rows = places[source]
    if conv is not None and (batch or node.meta["val"].ndim != conv.weight.ndim):
        return None
    if conv is None and batch == node.meta["val"].ndim - 1:
        return None
    return LayerCall(node, source, weight, conv, batch, rows)


Shown = Callable[[LayerCall, Tensor, Tensor], None]
"""What is called with a call of a layer, what it has read, and the gradient of what it gave."""


class _Watch(nn.Module):
    def __init__(self, call: LayerCall, show: Shown) -> None:
        super().__init__()
        self.call, self.show = call, show
        self.anchor = torch.zeros((), requires_grad=True)
        """What has a gradient, so that the first layer's value has one."""

    def forward(self, value: Tensor, source: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return value
        value = value if value.requires_grad else value + self.anchor
        read = source.detach()
        version = read._version

        def look(gradient: Tensor) -> None:
            if read._version != version:
                raise RuntimeError(f"what {self.call.node.name} has read is overwritten behind it")
            self.show(self.call, read, gradient)

        hooked: Any = value
        hooked.register_hook(look)
        return value


def watched_calls(program: Program, calls: Sequence[LayerCall], show: Shown) -> fx.GraphModule:
    """The program with a watch on every call, which is shown as often as a gradient reaches it."""
    graph, mapping = program.copy_graph_with_map()
    watches: dict[str, nn.Module] = {}
    for number, call in enumerate(calls):
        node, name = mapping[call.node], f"watch_call_{number}"
        watches[name] = _Watch(call, show)
        with graph.inserting_after(node):
            tap = graph.call_module(name, (node, mapping[call.source]))
        tap.meta.update(node.meta)
        for user in [user for user in node.users if user is not tap]:
            user.replace_input_with(node, tap)
    return program.derive(graph=graph, state={**program.state, **watches}).graph_module
