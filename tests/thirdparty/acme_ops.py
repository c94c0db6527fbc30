"""Operations of somebody else's: custom operators and a module of their own that stays a leaf, by `prunec.ops`.

torch.ops.acme.gate(x)    [N, 2 C, ...] -> [N, C, ...]: one half of the channels times the sigmoid of the other
Scale(channels)           each channel times a number of its own, kept between 0 and 1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from prunec.compiler.ir.operations import Operation
from prunec.compiler.ir.ops import argument, put, rank_of
from prunec.compiler.ir.program import Axis
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.registry import Slim
from prunec.compiler.verify.masks import Call, mark, marks_of, meet, plain


@torch.library.custom_op("acme::gate", mutates_args=())
def gate(x: Tensor) -> Tensor:
    """One half of the channels times the sigmoid of the other."""
    value, weight = x.chunk(2, 1)
    return value * weight.sigmoid()


@gate.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2, *x.shape[2:])


@torch.library.custom_op("acme::first", mutates_args=())
def first(x: Tensor, count: int) -> Tensor:
    """The first channels."""
    return x[:, :count].clone()


@first.register_fake
def _(x: Tensor, count: int) -> Tensor:
    return x.new_empty(x.shape[0], count, *x.shape[2:])


class Scale(nn.Module):
    """Each channel times a number of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, ...] -> the same shape."""
        return x * self.scale.sigmoid().reshape(-1, *[1] * (x.ndim - 2))


class Gate(Operation):
    """Each position of the first half goes with its partner in the second."""

    name: ClassVar[str] = "acme_gate"
    functions = (torch.ops.acme.gate,)

    def labels(self, flow: Flow, node: fx.Node) -> Labelled:
        labels, rest = flow.along(argument(node, 0, "x"), 1, node)
        first, second = labels.reshape(2, -1)
        flow.unify(first, second, node)
        return (*rest, *flow.result(first.copy(), rank_of(node), 1))

    def marks(self, call: Call) -> Any:
        data = call.plain()
        halves = marks_of(call.args[0]).expand(-1, plain(call.args[0]).shape[1], *[-1] * (data.ndim - 2)).chunk(2, 1)
        return mark(data, meet(call, [mark(data, half) for half in halves], data.shape))


class First(Operation):
    """What is left of the first channels; the others are read by nobody, so they may go as well."""

    name: ClassVar[str] = "acme_first"
    functions = (torch.ops.acme.first,)

    def labels(self, flow: Flow, node: fx.Node) -> Labelled:
        labels, rest = flow.along(argument(node, 0, "x"), 1, node)
        return (*rest, *flow.result(labels[: argument(node, 1, "count")].copy(), rank_of(node), 1))

    def marks(self, call: Call) -> Any:
        marks = marks_of(call.args[0]).expand(-1, plain(call.args[0]).shape[1], *[-1] * (plain(call.args[0]).ndim - 2))
        return mark(call.plain(), marks[:, : call.args[1]])

    def resize(self, old: fx.Node, new: fx.Node, slim: Slim) -> None:
        put(new, 1, "count", int(slim.kept(old, 1).sum()))


class ScaleOperation(Operation):
    """Reads channels in dimension 1 and passes them on; `scale` loses what arrives without them."""

    name: ClassVar[str] = "acme_scale"
    modules = (Scale,)

    def labels(self, flow: Flow, node: fx.Node) -> Labelled:
        value = argument(node, 0, "x")
        arriving, _ = flow.along(value, 1, node)
        flow.bind(Axis(f"{node.target}.scale", 0), arriving, node, "carrier")
        return flow.fields(value)

    def marks(self, call: Call) -> Any:
        data, scale = call.plain(), call.params["scale"]
        shape = [-1 if dim == 1 else 1 for dim in range(data.ndim)]
        return mark(
            data,
            meet(call, [call.args[0], mark(plain(scale).reshape(shape), marks_of(scale).reshape(shape))], data.shape),
        )

    def attributes(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"channels": len(tensors["scale"])}
