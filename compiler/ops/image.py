"""Operations on windows of the image, and those that move channels to pixels and back.

unfold          channel c becomes the columns (c, i, j) of a window     they go with it
fold            and back                                                the columns of one channel go together
pixel_shuffle   channels (c, i, j) become the pixels of c               they go together
pixel_unshuffle pixels of c become channels (c, i, j)                   they go with c
interpolate     mixes pixels                                            channels pass
grid_sample     mixes pixels, by a grid that must stay whole            channels pass
max_unpool      puts pixels where the indices say                       channels and indices go together
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, known, put, rank_of, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.broadcast import combine, operand
from prunec.compiler.labels.flow import Fields, Flow, Labelled
from prunec.compiler.labels.propagate import dims_of, subject
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import Rule, Slim, on_module, on_op, rewriter


def _apart(flow: Flow, node: fx.Node, value: object, verb: str) -> tuple[IntArray, Fields]:
    """The labels of an image's channels, flat, and the fields along what stands before them; the pixels' are pinned."""
    labels, rest = flow.along(value, -3, node)
    keep = tuple(f for f in rest if max(f.shape[-2:]) == 1)
    flow.pin_all((f for f in rest if max(f.shape[-2:]) > 1), f"{verb} at {node.name}")
    return labels, keep


@on_module(nn.PixelShuffle)
@on_op("pixel_shuffle")
def pixel_shuffle(flow: Flow, node: fx.Node) -> Labelled:
    """The channels that become the pixels of one channel go together."""
    labels, keep = _apart(flow, node, subject(flow, node), "is shuffled")
    rows = labels.reshape(shape_of_argument(node)[-3], -1)
    flow.unify(rows, rows[:, :1], node)
    return (*keep, *flow.result(rows[:, 0].copy(), rank_of(node), -3))


@on_module(nn.PixelUnshuffle)
@on_op("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, node: fx.Node) -> Labelled:
    """The pixels of a channel become channels, which go with it."""
    labels, keep = _apart(flow, node, subject(flow, node), "is shuffled")
    wider = np.repeat(labels, shape_of_argument(node)[-3] // labels.size)
    return (*keep, *flow.result(wider, rank_of(node), -3))


@on_module(nn.Unfold)
@on_op("unfold")
def unfold(flow: Flow, node: fx.Node) -> Labelled:
    """`F.unfold`: every channel becomes a column for each element of the kernel. `x.unfold(dim, ...)`: windows along a
    dimension. Where these tile channels, whole windows or the same positions of each may go; else channels stay."""
    value = subject(flow, node)
    if _along_a_dimension(node):
        dim, size, step = _windows(flow, node)
        tiled = size == step and shape_of_argument(value)[dim] % size == 0
        here = [f for f in flow.fields(value) if f.shape[dim] > 1 and not tiled]
        flow.pin_all(here, f"lies in windows that overlap or leave channels out at {node.name}")
        kept = (f for f in flow.fields(value) if f.shape[dim] == 1 or tiled)
        return flow.moved((_unfolded(f, dim, size) for f in kept), node)
    labels, rest = flow.along(value, -3, node)
    flow.pin_all(rest, f"is unfolded at {node.name}")
    return flow.result(np.repeat(labels, shape_of_argument(node)[-2] // labels.size), rank_of(node), -2)


def _along_a_dimension(node: fx.Node) -> bool:
    """Whether a call is `torch.Tensor.unfold`, rather than `F.unfold`."""
    return node.op == "call_method" or node.target is torch.Tensor.unfold


def _windows(flow: Flow, node: fx.Node) -> tuple[int, int, int]:
    """The dimension, size and step of `torch.Tensor.unfold`."""
    [dim] = dims_of(flow, argument(node, 1, "dimension"), len(shape_of_argument(argument(node, 0, "input"))))
    size, step = (int(known(argument(node, i, name))) for i, name in ((2, "size"), (3, "step")))
    return dim, size, step


def _unfolded(labels: IntArray, dim: int, size: int) -> IntArray:
    """A field of windows that tile a dimension, [.., windows, .., size]; of size 1 in both where it doesn't vary."""
    if labels.shape[dim] == 1:
        return labels[..., None]
    return np.moveaxis(labels.reshape(*labels.shape[:dim], -1, size, *labels.shape[dim + 1 :]), dim + 1, -1)


@rewriter("unfold", sized=True)
def window_size(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Windows that tile channels hold what is left of each."""
    if not _along_a_dimension(old):
        return
    dim = int(known(argument(old, 1, "dimension"))) % len(shape_of_argument(argument(old, 0, "input")))
    if slim.kept(argument(old, 0, "input"), dim).all():
        return
    size = int(slim.kept(old, rank_of(old) - 1).sum())
    put(new, 2, "size", size)
    put(new, 3, "step", size)


@on_module(nn.Fold)
@on_op("fold")
def fold(flow: Flow, node: fx.Node) -> Labelled:
    """The columns of a channel's window become one channel, so they go together."""
    value = subject(flow, node)
    labels, rest = flow.along(value, -2, node)
    flow.pin_all(rest, f"is folded at {node.name}")
    rows = labels.reshape(shape_of_argument(node)[-3], -1)
    flow.unify(rows, rows[:, :1], node)
    return flow.result(rows[:, 0].copy(), rank_of(node), -3)


@on_op("grid_sample")
def grid_sample(flow: Flow, node: fx.Node) -> Labelled:
    """Every channel is sampled at the places of the grid, which are pinned. Rows of the batch, such as heads that were
    folded into it, go from both operands."""
    value, grid = argument(node, 0, "input"), argument(node, 1, "grid")
    rows = mixed(flow, node, grid, range(1, rank_of(node)), "is a grid")
    fields = mixed(flow, node, value, range(2, rank_of(node)), "is sampled over")
    batch, ones = shape_of_argument(node)[:2], (1,) * (rank_of(node) - 2)
    return combine(flow, node, [(fields, (*batch, *ones)), (rows, (batch[0], 1, *ones))])


@on_module(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
@on_op("interpolate", "upsample")
def interpolation(flow: Flow, node: fx.Node) -> Labelled:
    """Everything behind the channels is mixed."""
    return mixed(flow, node, subject(flow, node), range(2, rank_of(node)), "is interpolated over")


def _unpooling(width: int) -> Rule:
    """The rule for max-unpooling over the last `width` dimensions."""

    def rule(flow: Flow, node: fx.Node) -> Labelled:
        pair = [argument(node, i, name) for i, name in enumerate(("input", "indices"))]
        both = combine(flow, node, [operand(flow, value) for value in pair])
        flow.pin_all((f for f in both if max(f.shape[-width:]) > 1), f"is unpooled over at {node.name}")
        return tuple(f for f in both if max(f.shape[-width:]) == 1)

    return rule


for _width in (1, 2, 3):
    on_module(getattr(nn, f"MaxUnpool{_width}d"))(_unpooling(_width))
    on_op(f"max_unpool{_width}d")(_unpooling(_width))
