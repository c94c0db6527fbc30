"""Layers with parameters: those that read channels and write new ones, and those that carry them along.

    conv    weight [out, in, k, k]    axis 1 is bound to the labels that arrive, axis 0 writes fresh ones
    norm    weight [channels]         axis 0 is bound to the labels that arrive, and they pass

A layer may be a module, or a function whose weight is a value of the graph; then the weight has labels of its own, and
the two are unified.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, op_name, rank_of, shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray
from prunec.compiler.labels.broadcast import combine, operand, whole
from prunec.compiler.labels.flow import FIXED, Fields, Flow, Labelled
from prunec.compiler.labels.propagate import count_macs, describe, subject, unknown
from prunec.compiler.labels.registry import on_module, on_op

# -- writers -------------------------------------------------------------------------------------------------------


def _behind(fields: Fields, dim: int, still: Container[int] = ()) -> tuple[Fields, Fields]:
    """The fields that don't vary from `dim` on, but for dimensions that are left as they are, and those that do."""
    fixed = tuple(f for f in fields if all(size == 1 or d in still for d, size in enumerate(f.shape) if d >= dim))
    return fixed, tuple(f for f in fields if all(f is not other for other in fixed))


def _still(node: fx.Node, value: object, kernel: Sequence[int], stride: int | Sequence[int]) -> list[int]:
    """The dimensions of a convolution along which its kernel mixes nothing."""
    strides = (stride,) * len(kernel) if isinstance(stride, int) else tuple(stride) * (len(kernel) // len(stride))
    sizes = [shape[-len(kernel) :] for shape in (shape_of_argument(value), shape_of_argument(node))]
    each = enumerate(zip(kernel, strides, *sizes, strict=True), rank_of(node) - len(kernel))
    return [dim for dim, (width, step, old, new) in each if width == step == 1 and old == new]


def _convolution(flow: Flow, node: fx.Node, transposed: bool) -> Labelled:
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.modules.conv._ConvNd)
    name, value = str(node.target), subject(flow, node)
    dim = rank_of(node) - 1 - len(module.kernel_size)
    arriving, rest = flow.along(value, dim, node)
    keep, mixed = _behind(rest, dim, _still(node, value, module.kernel_size, module.stride))
    flow.pin_all(mixed, f"is convolved over at {node.name}")
    reads, writes = Axis(f"{name}.weight", 0 if transposed else 1), Axis(f"{name}.weight", 1 if transposed else 0)
    if module.groups > 1:
        arriving, written = _grouped(flow, node, arriving, (reads, writes), module)
    else:
        written = flow.write(writes, module.out_channels, node)
    flow.bind(reads, arriving, node)
    if module.bias is not None:
        flow.bind(Axis(f"{name}.bias", 0), written, node, "carrier")
    widths = (written,) if reads in flow.by_group else (written, arriving)
    places = elements(shape_of_argument(value if transposed else node)[dim + 1 :])
    total = elements(module.weight.shape) * places * elements(shape_of_argument(node)[:dim])
    count_macs(flow, node, total, (*widths, *keep))
    return (*keep, *flow.result(written, rank_of(node), dim))


def _grouped(
    flow: Flow, node: fx.Node, arriving: IntArray, axes: tuple[Axis, Axis], module: nn.modules.conv._ConvNd
) -> tuple[IntArray, IntArray]:
    """The labels of a grouped convolution's two axes.

    One input and one output a group (depthwise): the channel passes. One input or one output a group: a whole group is
    the unit. Else groups stay equally wide, or go as a whole, as the plan divides them.
    """
    groups, inner, outer = module.groups, module.in_channels // module.groups, module.out_channels // module.groups
    whole = inner == 1 or outer == 1 or _division(flow, node, f"{groups} groups of {inner} and {outer}") == "whole"
    if whole:
        flow.by_group.add(axes[0])
    if inner == outer == 1:
        flow.bind(axes[1], arriving, node, "carrier")
        return arriving, arriving
    written = flow.write(axes[1], module.out_channels, node)
    if whole:
        flow.unify(written.reshape(groups, outer), arriving.reshape(groups, inner)[:, :1], node)
        flow.unify(written.reshape(groups, outer)[:, :1], arriving.reshape(groups, inner), node)
        return arriving, written
    for labels in (arriving, written):
        _keep_even(flow, node, labels.reshape(groups, -1))
    return arriving, written


def _division(flow: Flow, node: fx.Node, shape: str) -> str:
    names = [str(node.target)] if node.op == "call_module" else []
    return flow.divide("grouped", node.name, shape, names, fallback="same")


def _keep_even(flow: Flow, node: fx.Node, rows: IntArray) -> None:
    """Groups, one a row, stay equally wide, as their division says: the same positions go, or equally many."""
    if flow.divided[node.name].choice in ("equal", "free"):  # a layer takes groups of one width
        flow.settle(node.name, "equal")
        flow.balance(rows, node)
    else:
        flow.unify(rows, rows[:1], node)


@on_module(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(flow: Flow, node: fx.Node) -> Labelled:
    """weight[1] reads, weight[0] writes."""
    return _convolution(flow, node, transposed=False)


@on_module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(flow: Flow, node: fx.Node) -> Labelled:
    """weight[0] reads, weight[1] writes."""
    return _convolution(flow, node, transposed=True)


@on_module(nn.Linear)
def linear(flow: Flow, node: fx.Node) -> Labelled:
    """The last dimension is read and written; fields along the others pass."""
    module, value = flow.program.state[str(node.target)], subject(flow, node)
    assert isinstance(module, nn.Linear)
    name = str(node.target)
    arriving, rest = flow.along(value, -1, node)
    written = flow.write(Axis(f"{name}.weight", 0), module.out_features, node)
    flow.bind(Axis(f"{name}.weight", 1), arriving, node)
    if module.bias is not None:
        flow.bind(Axis(f"{name}.bias", 0), written, node, "carrier")
    count_macs(flow, node, elements(shape_of_argument(value)) * module.out_features, (written, arriving, *rest))
    return (*rest, *flow.result(written, rank_of(node), -1))


@on_module(nn.Embedding, nn.EmbeddingBag)
def embedding(flow: Flow, node: fx.Node) -> Labelled:
    """The embedding width is written; the vocabulary stays."""
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    subject(flow, node)
    written = flow.write(Axis(f"{node.target}.weight", 1), module.embedding_dim, node)
    if module.max_norm is not None:
        flow.pin(written, f"is counted in the norms that {describe(flow, node)} limits")
    for labels in flow.fields(argument(node, 0, "input")):
        flow.pin(labels, f"is looked up at {node.name}")
    return flow.result(written, rank_of(node), -1)


@on_op(*(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)))
def functional_convolution(flow: Flow, node: fx.Node) -> Labelled:
    """A convolution whose weight is a value: [out, in / groups, ...], or transposed [in, out / groups, ...]."""
    value, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    groups, transposed = int(flow.constant(argument(node, 6, "groups", 1))), "transpose" in op_name(node)
    dim = rank_of(node) - len(shape_of_argument(weight)) + 1
    arriving, rest = flow.along(value, dim, node)
    stride = flow.constant(argument(node, 3, "stride", 1))
    keep, mixed = _behind(rest, dim, _still(node, value, shape_of_argument(weight)[2:], stride))
    flow.pin_all(mixed, f"is convolved over at {node.name}")
    _, kernel = _behind(flow.fields(weight), 2)
    flow.pin_all(kernel, f"is a kernel dimension of {node.name}")
    rows, columns = (flow.along(weight, d, node)[0] for d in (0, 1))
    written, whole = _grouped_value(flow, node, arriving, (rows, columns), groups, transposed)
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    places = elements(shape_of_argument(value if transposed else node)[dim + 1 :])
    total = elements(shape_of_argument(weight)) * elements(shape_of_argument(node)[:dim]) * places
    count_macs(flow, node, total, (written, *keep) if whole else (written, arriving, *keep))
    return (*keep, *flow.result(written, rank_of(node), dim))


def _grouped_value(
    flow: Flow, node: fx.Node, arriving: IntArray, own: tuple[IntArray, IntArray], groups: int, transposed: bool
) -> tuple[IntArray, bool]:
    """What a convolution writes whose weight [rows, columns, ...] is a value, and whether it loses whole groups.

    Rows stand one group after the other; every group has the same columns. So a group of one input or one output goes
    as a whole, which takes rows away, and of wider ones the same rows of each group, and columns.
    """
    rows, columns = own
    if groups == 1:
        reads = (rows, arriving) if transposed else (columns, arriving)
        flow.unify(*reads, node)
        flow.count_matters(arriving, f"contracted at {node.name}")
        return (columns if transposed else rows), False
    inner, height = arriving.size // groups, rows.size // groups
    whole = inner == 1 or (columns.size if transposed else height) == 1
    if not whole:
        blocks = rows.reshape(groups, height)
        flow.unify(blocks, blocks[:1], node)
        flow.unify(arriving, rows if transposed else np.tile(columns, groups), node)
        return (np.tile(columns, groups) if transposed else rows), False
    flow.pin(columns, f"is a column of each group at {node.name}")
    group_of = rows.reshape(groups, height)[:, :1]
    flow.unify(rows.reshape(groups, height), group_of, node)
    flow.unify(arriving.reshape(groups, inner), group_of, node)
    width = columns.size if transposed else height
    return np.repeat(group_of.reshape(-1), width), True


@on_op("linear")
def functional_linear(flow: Flow, node: fx.Node) -> Labelled:
    """A linear layer whose weight is a value of the graph."""
    value, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    if len(shape_of_argument(weight)) != 2:
        return unknown(flow, node)
    arriving, rest = flow.along(value, -1, node)
    flow.unify(flow.along(weight, -1, node)[0], arriving, node)
    flow.count_matters(arriving, f"contracted at {node.name}")
    written, _ = flow.along(weight, 0, node)
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    total = elements(shape_of_argument(value)) * written.size
    count_macs(flow, node, total, (written, arriving, *rest))
    return (*rest, *flow.result(written, rank_of(node), -1))


@on_op("embedding")
def functional_embedding(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; the table is a value of the graph."""
    places, table = argument(node, 0, "input"), argument(node, 1, "weight")
    flow.pin_all(flow.fields(places), f"is looked up at {node.name}")
    written, rows = flow.along(table, 1, node)
    flow.pin_all(rows, f"is a row of the table at {node.name}")
    if argument(node, 3, "max_norm") is not None:
        flow.pin(written, f"is counted in the norms that {describe(flow, node)} limits")
    return flow.result(written, rank_of(node), -1)


@on_module(nn.Bilinear)
def bilinear(flow: Flow, node: fx.Node) -> Labelled:
    """weight [out, in1, in2]: both inputs' last dimensions are read."""
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.Bilinear)
    written = flow.write(Axis(f"{node.target}.weight", 0), module.out_features, node)
    fields: list[Fields] = []
    for index, value in enumerate((argument(node, 0, "input1"), argument(node, 1, "input2"))):
        arriving, rest = flow.along(value, -1, node)
        flow.bind(Axis(f"{node.target}.weight", 1 + index), arriving, node)
        flow.count_matters(arriving, f"contracted at {node.name}")
        fields.append(rest)
    if module.bias is not None:
        flow.bind(Axis(f"{node.target}.bias", 0), written, node, "carrier")
    rest = combine(flow, node, [(own, (*shape_of_argument(node)[:-1], 1)) for own in fields])
    widths = [flow.bindings[Axis(f"{node.target}.weight", dim)].labels for dim in range(3)]
    count_macs(flow, node, elements(shape_of_argument(node)[:-1]) * elements(module.weight.shape), (*widths, *rest))
    return (*rest, *flow.result(written, rank_of(node), -1))


# -- carriers ------------------------------------------------------------------------------------------------------


def _carry(flow: Flow, node: fx.Node, labels: IntArray, names: Iterable[str], dim: int = 0) -> None:
    """Bind the module's own vectors; a module without any still holds the width as a number."""
    module = flow.program.state[str(node.target)]
    mine = [name for name in names if isinstance(getattr(module, name, None), torch.Tensor)]
    for name in mine:
        flow.bind(Axis(f"{node.target}.{name}", dim), labels, node, "carrier")
    if not mine:
        flow.same_width(f"{node.target}[{dim}]", labels, node)


_VECTORS = ("weight", "bias", "running_mean", "running_var")


@on_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@on_module(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def channel_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Each channel on its own: dimension 1 passes; of an image without a batch, dimension 0."""
    value, module = subject(flow, node), flow.program.state[str(node.target)]
    dim = 0 if isinstance(module, nn.modules.instancenorm._InstanceNorm) and _is_single(module, rank_of(node)) else 1
    labels, rest = flow.along(value, dim, node)
    normalised = [f for f in rest if any(size > 1 for size in f.shape[dim + 1 :])]
    flow.pin_all(normalised, f"is normalised over at {node.name}")
    if getattr(module, "running_mean", None) is None:
        flow.pin_all(rest, f"is normalised over at {node.name}")
    _carry(flow, node, labels, _VECTORS)
    return flow.fields(value)


def _is_single(module: nn.modules.instancenorm._InstanceNorm, rank: int) -> bool:
    return rank == int(module._get_no_batch_dim())  # type: ignore[no-untyped-call]


@on_module(nn.LayerNorm, nn.RMSNorm)
def layer_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Statistics over the trailing dimensions, of the channels that are kept."""
    module, value = flow.program.state[str(node.target)], subject(flow, node)
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    rank = len(module.normalized_shape)
    fields = _whole_heads(flow, node, flow.fields(value), rank)
    for index in range(rank):
        labels = _line(flow, fields, shape_of_argument(value), index - rank)
        flow.count_matters(labels, f"counted by {describe(flow, node)}")
        _carry(flow, node, labels, ("weight", "bias"), dim=index)
    return fields


def _whole_heads(flow: Flow, node: fx.Node, fields: Fields, rank: int) -> Fields:
    """The fields before statistics over the last `rank` dimensions. One that varies elsewhere too (the widths of all
    heads) loses whole heads: the vectors of the norm, which all heads share, stay."""
    out: list[IntArray] = []
    for labels in fields:
        mine = [d for d in range(labels.ndim - rank, labels.ndim) if labels.shape[d] > 1]
        if labels.size > elements([labels.shape[d] for d in mine]) or len(mine) > 1:
            for dim in mine:
                labels = whole(flow, labels, dim, node)
        out.append(labels)
    return flow.moved(out, node) if any(a is not b for a, b in zip(out, fields, strict=True)) else fields


def _line(flow: Flow, fields: Fields, shape: tuple[int, ...], dim: int) -> IntArray:
    """The flat labels of a dimension along which one field varies, or none does."""
    found = next((f for f in fields if f.shape[dim] > 1), None)
    return np.full(shape[dim], FIXED, dtype=np.int64) if found is None else flow.flat(found)


@on_module(nn.GroupNorm)
def group_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Statistics over each group of channels."""
    module, value = flow.program.state[str(node.target)], subject(flow, node)
    assert isinstance(module, nn.GroupNorm)
    labels = _group_statistics(flow, node, value, module.num_groups)
    _carry(flow, node, labels, ("weight", "bias"))
    return flow.fields(value)


def _group_statistics(flow: Flow, node: fx.Node, value: object, groups: int) -> IntArray:
    """Groups stay equally wide or go as a whole, as the plan divides them; of groups of one, any channel may go."""
    labels, rest = flow.along(value, 1, node)
    flow.pin_all((f for f in rest if any(size > 1 for size in f.shape[2:])), f"is normalised over at {node.name}")
    if groups < labels.size:
        rows = labels.reshape(groups, -1)
        if _division(flow, node, f"{groups} groups of {rows.shape[1]}") == "whole":
            flow.unify(rows, rows[:, :1], node)
        else:
            _keep_even(flow, node, rows)
        flow.count_matters(labels, f"counted by {describe(flow, node)}")
    return labels


@on_op("group_norm")
def functional_group_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; weight and bias are values of the graph."""
    value, groups = argument(node, 0, "input"), int(flow.constant(argument(node, 1, "num_groups")))
    labels = _group_statistics(flow, node, value, groups)
    for vector in (argument(node, 2 + i, name) for i, name in enumerate(("weight", "bias"))):
        if isinstance(vector, fx.Node):
            flow.unify(labels, flow.along(vector, 0, node)[0], node)
    return flow.fields(value)


@on_op("layer_norm", "rms_norm")
def functional_layer_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; weight and bias are values of the graph."""
    value, shape = argument(node, 0, "input"), flow.constant(argument(node, 1, "normalized_shape"))
    names = ("weight", "bias") if op_name(node) == "layer_norm" else ("weight",)
    parts = [argument(node, 2 + i, name) for i, name in enumerate(names)]
    fields = _whole_heads(flow, node, flow.fields(value), len(shape))
    for labels in fields:
        if any(size > 1 for size in labels.shape[-len(shape) :]):
            flow.count_matters(flow.flat(labels), f"counted by {node.name}")
    operands = [(fields, shape_of_argument(value)), *(operand(flow, p) for p in parts if p is not None)]
    return combine(flow, node, operands)


@on_op("batch_norm", "instance_norm")
def functional_batch_norm(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; the four vectors are values of the graph, or constants."""
    value = argument(node, 0, "input")
    labels, rest = flow.along(value, 1, node)
    flow.pin_all(rest, f"is normalised over at {node.name}")
    for index, name in enumerate(("running_mean", "running_var", "weight", "bias"), start=1):
        vector = argument(node, index, name)
        if isinstance(vector, fx.Node):
            flow.unify(labels, flow.along(vector, 0, node)[0], node)
    return flow.fields(value)


@on_module(nn.PReLU)
def prelu(flow: Flow, node: fx.Node) -> Labelled:
    """One slope, or one a channel."""
    value, module = subject(flow, node), flow.program.state[str(node.target)]
    assert isinstance(module, nn.PReLU)
    if module.num_parameters > 1:
        _carry(flow, node, flow.along(value, 1, node)[0], ("weight",))
    return flow.fields(value)


@on_op("prelu")
def functional_prelu(flow: Flow, node: fx.Node) -> Labelled:
    """Like the module; the slopes are a value of the graph."""
    value, weight = argument(node, 0, "input"), argument(node, 1, "weight")
    if np.prod(shape_of_argument(weight)) > 1:
        flow.unify(flow.along(weight, 0, node)[0], flow.along(value, 1, node)[0], node)
    return flow.fields(value)
