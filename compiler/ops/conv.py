"""Convolutions: they read the channels that arrive and write new ones. Modules, functions, and deformable ones.

    Conv2d             weight [out, in, k, k]         dimension 1 reads, dimension 0 writes fresh labels
    ConvTranspose2d    weight [in, out, k, k]         dimension 0 reads, dimension 1 writes
    depthwise          weight [channels, 1, k, k]     carries channels: what arrives passes
    grouped            weight [out, in / groups, ..]  whole groups go, or groups stay equally wide

The weight of a function is a value of the graph, so it has labels of its own, and these unify with those that arrive.
`deform_conv2d` is a convolution whose offsets and masks are places: they stay.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, known, op_name, put, rank_of, shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray
from prunec.compiler.labels.flow import Fields, Flow, Labelled
from prunec.compiler.labels.grouped import granularity_of, keep_even
from prunec.compiler.labels.heads import shared
from prunec.compiler.labels.propagate import count_macs, subject, unknown
from prunec.compiler.labels.registry import Attributes, Slim, on_module, on_op, repeats_tensors, rewriter


def _behind(fields: Fields, dim: int, still: Container[int] = ()) -> tuple[Fields, Fields]:
    """Fields split in two: those that a kernel over the dimensions from `dim` on leaves alone, and those that it mixes.
    The kernel doesn't mix along the dimensions `still`."""
    fixed = tuple(f for f in fields if all(size == 1 or d in still for d, size in enumerate(f.shape) if d >= dim))
    return fixed, tuple(f for f in fields if all(f is not other for other in fixed))


def _still(node: fx.Node, value: object, kernel: Sequence[int], stride: int | Sequence[int]) -> list[int]:
    """The dimensions of a convolution along which its kernel mixes nothing: size and stride are 1, without padding."""
    strides = (stride,) * len(kernel) if isinstance(stride, int) else tuple(stride) * (len(kernel) // len(stride))
    sizes = [shape[-len(kernel) :] for shape in (shape_of_argument(value), shape_of_argument(node))]
    each = enumerate(zip(kernel, strides, *sizes, strict=True), rank_of(node) - len(kernel))
    return [dim for dim, (width, step, old, new) in each if width == step == 1 and old == new]


def _convolution(flow: Flow, node: fx.Node, transposed: bool) -> Labelled:
    module = flow.program.state[str(node.target)]
    assert isinstance(module, nn.modules.conv._ConvNd)
    name, value = str(node.target), subject(flow, node)
    dim = rank_of(node) - 1 - len(module.kernel_size)
    arriving, rest = flow.along_of(shared(flow, node, value, dim), shape_of_argument(value), dim, node)
    still = _still(node, value, module.kernel_size, module.stride) if rest else ()
    keep, mixed = _behind(rest, dim, still)
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
    total = module.weight.numel() * places * elements(shape_of_argument(node)[:dim])
    count_macs(flow, node, total, (*widths, *keep))
    return (*keep, *flow.result(written, rank_of(node), dim))


def _grouped(
    flow: Flow, node: fx.Node, arriving: IntArray, axes: tuple[Axis, Axis], module: nn.modules.conv._ConvNd
) -> tuple[IntArray, IntArray]:
    """The labels of a grouped convolution's two axes, the read and the written one.

    With one input and one output a group (depthwise), the channel passes. With one input or one output a group, a whole
    group is the unit. Else groups stay equally wide, or go as a whole, as the granularity says.
    """
    groups, inner, outer = module.groups, module.in_channels // module.groups, module.out_channels // module.groups
    shape = f"{groups} groups of {inner} and {outer}"
    whole = inner == 1 or outer == 1 or granularity_of(flow, node, shape, arriving) == "whole"
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
        keep_even(flow, node, labels.reshape(groups, -1))
    return arriving, written


@on_module(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(flow: Flow, node: fx.Node) -> Labelled:
    """weight[1] reads, weight[0] writes."""
    return _convolution(flow, node, transposed=False)


@on_module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(flow: Flow, node: fx.Node) -> Labelled:
    """weight[0] reads, weight[1] writes."""
    return _convolution(flow, node, transposed=True)


@on_op(*(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)))
def functional_convolution(flow: Flow, node: fx.Node) -> Labelled:
    """A convolution whose weight is a value: [out, in / groups, ...], or, transposed, [in, out / groups, ...]."""
    value, weight, bias = (argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    groups, transposed = int(flow.constant(argument(node, 6, "groups", 1))), "transpose" in op_name(node)
    dim = rank_of(node) - len(shape_of_argument(weight)) + 1
    arriving, rest = flow.along_of(shared(flow, node, value, dim), shape_of_argument(value), dim, node)
    stride = flow.constant(argument(node, 3, "stride", 1))
    keep, mixed = _behind(rest, dim, _still(node, value, shape_of_argument(weight)[2:], stride))
    flow.pin_all(mixed, f"is convolved over at {node.name}")
    _, kernel = _behind(flow.fields(weight), 2)
    flow.pin_all(kernel, f"is a kernel dimension of {node.name}")
    rows, columns = (flow.along(weight, d, node)[0] for d in (0, 1))
    axis = flow.weight_along(weight, 0 if transposed else 1, node) if groups == 1 else None
    written, whole = _grouped_value(flow, node, arriving, (rows, columns), groups, transposed, axis)
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    places = elements(shape_of_argument(value if transposed else node)[dim + 1 :])
    total = elements(shape_of_argument(weight)) * elements(shape_of_argument(node)[:dim]) * places
    count_macs(flow, node, total, (written, *keep) if whole else (written, arriving, *keep))
    return (*keep, *flow.result(written, rank_of(node), dim))


def _grouped_value(
    flow: Flow,
    node: fx.Node,
    arriving: IntArray,
    own: tuple[IntArray, IntArray],
    groups: int,
    transposed: bool,
    axis: Axis | None,
) -> tuple[IntArray, bool]:
    """What a convolution whose weight is a value writes, and whether whole groups go; `own`: labels of rows and
    columns, `axis`: which of the two a weight reads along.

    Rows stand one group after the other; every group has the same columns. So a group of one input or one output goes
    as a whole, which takes rows away; of wider groups, the same rows of each go, and columns.
    """
    rows, columns = own
    if groups == 1:
        reads = (rows, arriving) if transposed else (columns, arriving)
        flow.unify(*reads, node)
        flow.count_matters(arriving, f"is contracted at {node.name}", weight=axis)
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


@rewriter(*(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)))
def convolution_groups(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The number of groups: those of one input or one output go as a whole, others lose the same positions and stay."""
    value, groups = argument(old, 0, "input"), int(known(argument(old, 6, "groups", 1)))
    dim = len(shape_of_argument(value)) - len(shape_of_argument(argument(old, 1, "weight"))) + 1
    kept = [slim.kept(node, dim).reshape(groups, -1) for node in (value, old)] if groups > 1 else []
    left = int(kept[0].any(axis=1).sum()) if any(mask.shape[1] == 1 for mask in kept) else groups
    if left != groups:
        put(new, 6, "groups", left)


@on_op("deform_conv2d", carries_copies=True)
def deformable(flow: Flow, node: fx.Node) -> Labelled:
    """weight [out, in, k, k] reads and writes, with one group of weights and of offsets; else it counts as unknown."""
    value, weight, offset, mask, bias = (
        argument(node, i, name) for i, name in enumerate(("input", "weight", "offset", "mask", "bias"))
    )
    groups = [flow.constant(argument(node, place, name)) for place, name in ((11, "groups"), (12, "offset_groups"))]
    if groups != [1, 1] or any(rank_of(part) != 4 for part in (value, weight)):
        return unknown(flow, node)
    for places in (offset, mask):
        flow.pin_all(flow.fields(places), f"is a place at {node.name}")
    arriving, rest = flow.along(value, 1, node)
    flow.pin_all(rest, f"is convolved over at {node.name}")
    flow.pin_all((f for f in flow.fields(weight) if max(f.shape[2:]) > 1), f"is a kernel dimension of {node.name}")
    written, columns = (flow.along(weight, dim, node)[0] for dim in (0, 1))
    flow.unify(columns, arriving, node)
    flow.count_matters(arriving, f"is contracted at {node.name}")
    if isinstance(bias, fx.Node):
        flow.unify(flow.along(bias, 0, node)[0], written, node)
    places_out = elements(shape_of_argument(node)[2:]) * shape_of_argument(node)[0]
    count_macs(flow, node, elements(shape_of_argument(weight)) * places_out, (written, arriving))
    return flow.result(written, 4, 1)


@repeats_tensors(nn.modules.conv._ConvNd)
def channels(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Attributes:
    """The weight is [out, in / groups, ...], of a transposed convolution [in, out / groups, ...]."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    first, second = (int(s) for s in tensors["weight"].shape[:2])
    if module.transposed:
        return {"in_channels": first, "out_channels": second * module.groups}
    return {"in_channels": second * module.groups, "out_channels": first}
