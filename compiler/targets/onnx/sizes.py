"""Sizes as functions of the batch: the program is run on shapes alone, at several batch sizes.

    batch           1    3    5
    x.shape[0]      1    3    5     Affine(1, 0)    the batch itself
    4 * n + 1       5   13   21     Affine(4, 1)
    channels       64   64   64     64              a plain number

So size arithmetic in the graph needs no nodes in the file: a size is a number, or is computed from the batch in one
step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.ir.closed_forms import dense, function_shape, module_shape
from prunec.compiler.ir.graph import call
from prunec.compiler.ir.inputs import batch_of, is_batched, map_tensors
from prunec.compiler.ir.modules import clone_module, to_meta
from prunec.compiler.ir.program import Program

BATCHES = (3, 5, 7)
"""The example's batch and two of these: three points tell a straight line from a curve."""


@dataclass(frozen=True, slots=True)
class Affine:
    """The size `times * batch + plus`."""

    times: int
    plus: int


Size = int | Affine


class NotAffine(ValueError):
    """A size that follows the batch in another way than along a straight line."""


@dataclass(frozen=True)
class Shapes:
    """What every node's value is at several batch sizes; tensors are on the meta device."""

    batches: tuple[int, ...]
    values: tuple[Mapping[fx.Node, Any], ...]
    """One mapping for each batch size; the first is the example's."""

    def of(self, argument: Any) -> tuple[Any, ...]:
        """An argument's value at each batch size; a literal is the same at all."""
        return tuple(fx.node.map_arg(argument, known.__getitem__) for known in self.values)

    def size(self, values: Sequence[int]) -> Size:
        """A size that is known at each batch. Raises `NotAffine`."""
        first = int(values[0])
        if all(value == first for value in values):
            return first
        times, rest = divmod(int(values[1]) - first, self.batches[1] - self.batches[0])
        plus = first - times * self.batches[0]
        if rest or any(times * b + plus != value for b, value in zip(self.batches, values, strict=True)):
            raise NotAffine
        return Affine(times, plus)

    def shape(self, tensors: Sequence[torch.Tensor]) -> tuple[Size, ...]:
        """The shape of a tensor that is known at each batch. Raises `NotAffine` also where its rank changes."""
        if len({tensor.ndim for tensor in tensors}) > 1:
            raise NotAffine
        return tuple(self.size(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True))


def shapes_of(program: Program, open_batch: bool) -> Shapes:
    """The values of all nodes: those that the program knows of its example, and with an open batch, those of two more
    runs on meta tensors. Raises whatever such a run raises."""
    example = {node: node.meta.get("val") for node in program.graph.nodes}
    old = batch_of(program.inputs)
    if not open_batch or old is None:
        return Shapes((old or 1,), (example,))
    others = [batch for batch in BATCHES if batch != old][:2]
    state = {name: _on_meta(value) for name, value in program.state.items()}
    return Shapes((old, *others), (example, *(_run(program, state, old, batch) for batch in others)))


def _run(program: Program, state: Mapping[str, Any], old: int, batch: int) -> dict[fx.Node, Any]:
    """Every node's value at this batch size."""
    feeds = iter([map_tensors(lambda x: _resized(x, old, batch), value) for value in program.inputs])
    env: dict[fx.Node, Any] = {}
    with torch.no_grad(), torch.device("meta"):
        for node in program.graph.nodes:
            args, kwargs = _on_no_device(fx.node.map_arg((node.args, node.kwargs), env.__getitem__))
            match node.op:
                case "placeholder":
                    env[node] = next(feeds)
                case "get_attr":
                    env[node] = False if node.target == "training" else state[str(node.target)]
                case "call_module":
                    env[node] = _through(state[str(node.target)], args, kwargs)
                case "output":
                    env[node] = args[0]
                case "call_method" if node.target in {"cpu", "cuda"}:
                    env[node] = args[0]
                case _:
                    known = function_shape(node.target, args, kwargs)
                    env[node] = call(node, args, kwargs) if known is None else dense(*known)
    return env


def _through(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a leaf module gives; a closed form spares the import of torch's compiler, which meta kernels bring along."""
    shape = module_shape(module, args[0]) if len(args) == 1 and not kwargs else None
    return module(*args, **kwargs) if shape is None else dense(shape, args[0].dtype)


def _on_no_device(arguments: Any) -> Any:
    """A call's arguments with the meta device for any other."""
    return pytree.tree_map(lambda x: torch.device("meta") if isinstance(x, torch.device) else x, arguments)


def _resized(value: torch.Tensor, old: int, batch: int) -> torch.Tensor:
    shape = (batch, *value.shape[1:]) if is_batched(value, old) else value.shape
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _on_meta(value: nn.Module | torch.Tensor) -> Any:
    """A tensor of the state without data, or a leaf module with such tensors, in eval mode."""
    if isinstance(value, torch.Tensor):
        return to_meta(value)
    own = {**value._parameters, **value._buffers}
    tensors = {key: to_meta(tensor) for key, tensor in own.items() if tensor is not None}
    copy = clone_module(value, tensors, training=False)
    copy.__dict__["_modules"] = {key: child and _on_meta(child) for key, child in value._modules.items()}
    return copy
