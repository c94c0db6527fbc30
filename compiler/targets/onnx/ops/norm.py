"""Norms in eval mode. A batch norm that alone reads a convolution or a linear layer is folded into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op
from prunec.compiler.targets.onnx.ops.conv import scaled


@on_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@on_op("batch_norm")
def batch_norm(call: Call) -> str:
    """(x - mean) / sqrt(var + eps) * weight + bias, along dimension 1."""
    if call.is_module:
        module = call.module
        tensors = [getattr(module, key) for key in ("running_mean", "running_var", "weight", "bias")]
        eps = float(module.eps)
    else:
        tensors = [
            call.given(place + 1, key) for place, key in enumerate(("running_mean", "running_var", "weight", "bias"))
        ]
        eps = float(call.literal(7, "eps", 1e-5))
        if call.literal(5, "training", False):
            call.decline("it computes its own statistics")
    if tensors[0] is None or tensors[1] is None:
        call.decline("it computes its own statistics")
    fixed = [None if x is None else call.constant(x) for x in tensors]
    if any(found is None and given is not None for found, given in zip(fixed, tensors, strict=True)):
        call.decline("its statistics are computed")
    mean, var, weight, bias = fixed
    assert mean is not None and var is not None  # noqa: PT018
    folded = _folded(call, mean, var, weight, bias, eps)
    if folded is not None:
        return folded
    size = len(mean)
    names = [
        call.graph.constant([1.0] * size, mean.dtype) if weight is None else call.graph.tensor(weight),
        call.graph.constant([0.0] * size, mean.dtype) if bias is None else call.graph.tensor(bias),
    ]
    return call.add("BatchNormalization", call.first, *names, *map(call.graph.tensor, (mean, var)), epsilon=eps)


def _folded(
    call: Call,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> str | None:
    """The name of the layer before, with this norm in its weights; None where it can't take it up."""
    subject, name = call.subject, call.first
    if not isinstance(subject, fx.Node) or subject not in call.graph.foldable or len(subject.users) > 1:
        return None
    graph = call.graph
    kernel, shift = graph.foldable.pop(subject)
    factor = (var.double() + eps).rsqrt()
    factor = factor if weight is None else factor * weight.detach().double()
    moved = -mean.double() if shift is None else shift.detach().double() - mean.double()
    moved = moved * factor if bias is None else moved * factor + bias.detach().double()
    node = graph.producers[name]
    owner = next(x for x in (bias, mean) if x is not None)
    names = (
        graph.derived(graph.key(kernel), lambda: scaled(kernel, factor).numpy(force=True), kernel.nbytes),
        graph.derived(
            graph.key(owner if shift is None else shift), lambda: moved.to(kernel.dtype).numpy(force=True), moved.nbytes
        ),
    )
    del node.input[1:]
    node.input.extend(names)
    return name


@on_module(nn.LayerNorm)
@on_op("layer_norm")
def layer_norm(call: Call) -> str:
    """Statistics over the last dimensions."""
    shape = call.option(1, "normalized_shape")
    weight, bias = (
        (call.module.weight, call.module.bias) if call.is_module else (call.given(2, "weight"), call.given(3, "bias"))
    )
    count = len(shape) if isinstance(shape, list | tuple) else 1
    eps = float(call.option(4, "eps", 1e-5))
    sizes = call.fixed_shape_of(call.subject, range(-count, 0))
    scale = call.graph.tensor(torch.ones(sizes, dtype=call.dtype)) if weight is None else call.name(weight)
    inputs = [call.first, scale] + ([] if bias is None else [call.name(bias)])
    return call.add("LayerNormalization", *inputs, axis=-count, epsilon=eps)


@on_module(nn.RMSNorm)
@on_op("rms_norm")
def rms_norm(call: Call) -> str:
    """x / sqrt(mean(x^2) + eps) * weight."""
    shape, eps = call.option(1, "normalized_shape"), call.option(3, "eps")
    weight = call.module.weight if call.is_module else call.given(2, "weight")
    eps = torch.finfo(call.dtype).eps if eps is None else float(eps)
    name = call.first
    mean = call.reduced("ReduceMean", call.add("Mul", name, name), range(-len(shape), 0), True)
    root = call.add("Sqrt", call.add("Add", mean, call.scalar(eps)))
    found = call.add("Div", name, root)
    return found if weight is None else call.add("Mul", found, call.name(weight))


@on_module(nn.GroupNorm)
@on_op("group_norm")
def group_norm(call: Call) -> str:
    """Statistics over the channels of a group and all places: those of an instance norm with groups for channels."""
    groups = int(call.option(1, "num_groups"))
    weight, bias = (
        (call.module.weight, call.module.bias) if call.is_module else (call.given(2, "weight"), call.given(3, "bias"))
    )
    shape = call.shape_of(call.subject)
    rest = [call.fixed(size) for size in shape[1:]]
    count = int(torch.Size(rest).numel()) // groups
    flat = call.reshaped(call.first, shape, (shape[0], groups, count))
    ones, zeros = (call.graph.constant([value] * groups, call.dtype) for value in (1.0, 0.0))
    flat = call.add("InstanceNormalization", flat, ones, zeros, epsilon=float(call.option(4, "eps", 1e-5)))
    found = call.reshaped(flat, (shape[0], groups, count), shape)
    return _by_channel(call, found, weight, bias, len(shape))


def _by_channel(call: Call, name: str, weight: Any, bias: Any, rank: int) -> str:
    """A value times a weight plus a bias, along dimension 1."""
    for kind, vector in (("Mul", weight), ("Add", bias)):
        name = name if vector is None else call.add(kind, name, _column(call, vector, rank))
    return name


def _column(call: Call, vector: Any, rank: int) -> str:
    """A vector of the state along dimension 1."""
    fixed = call.constant(vector)
    if fixed is None:
        call.decline("its weight is computed")
    shape = [-1] + [1] * (rank - 2)
    return call.graph.derived(
        call.graph.key(fixed), lambda: fixed.detach().reshape(shape).numpy(force=True), fixed.nbytes
    )


@on_module(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(call: Call) -> str:
    """Statistics over the places of a channel of one sample."""
    module = call.module
    if module.running_mean is not None:
        call.decline("it has statistics of its own")
    if call.rank_of(call.subject) != int(module._get_no_batch_dim()) + 1:
        call.decline("the image has no batch dimension")
    return _instance_norm(call, module.weight, module.bias, float(module.eps))


@on_op("instance_norm")
def functional_instance_norm(call: Call) -> str:
    """`F.instance_norm`."""
    if call.given(1, "running_mean") is not None or not call.literal(5, "use_input_stats", True):
        call.decline("it has statistics of its own")
    return _instance_norm(call, call.given(3, "weight"), call.given(4, "bias"), float(call.literal(7, "eps", 1e-5)))


def _instance_norm(call: Call, weight: Any, bias: Any, eps: float) -> str:
    width = call.fixed_shape_of(call.subject, [1])[0]
    vectors = [
        call.graph.constant([fill] * width, call.dtype) if vector is None else call.name(vector)
        for vector, fill in ((weight, 1.0), (bias, 0.0))
    ]
    return call.add("InstanceNormalization", call.first, *vectors, epsilon=eps)


@on_module(nn.PReLU)
@on_op("prelu")
def prelu(call: Call) -> str:
    """x where positive, else weight * x; a weight for each channel, or one for all."""
    weight = call.operand(1, "weight")
    fixed = call.constant(weight)
    if fixed is None:
        call.decline("its weight is computed")
    rank = call.rank_of(call.subject)
    if fixed.numel() == 1 or rank < 3:
        return call.add("PRelu", call.first, call.name(weight))
    return call.add("PRelu", call.first, _column(call, weight, rank))


@on_op("normalize")
def normalize(call: Call) -> str:
    """x / max(|x|, eps), for the usual norms."""
    power, dim, eps = (
        call.literal(i + 1, key, d) for i, (key, d) in enumerate([("p", 2.0), ("dim", 1), ("eps", 1e-12)])
    )
    if power not in (1, 2) or not isinstance(dim, int):
        call.decline(f"the norm of power {power}")
    length = call.reduced("ReduceL2" if power == 2 else "ReduceL1", call.first, [dim], True)
    return call.add("Div", call.first, call.add("Clip", length, call.scalar(eps)))
