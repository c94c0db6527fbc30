"""Channel shuffles: chains of views and transpositions that, taken together, give the channels in another order.

    x.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)        channels 0 4 1 5 2 6 3 7
    without channels 2 and 7                                         0 4 1 5 . 6 3 .
    no view gives that, but a gather does                            x.index_select(1, [0, 3, 1, 4, 5, 2])

A view needs the same positions of every row [2 rows, 4 positions]. Where a plan asks for freedom (`equal`, `free`),
each row of such a chain loses positions of its own; where what is left doesn't fit a view, one exact gather takes the
chain's place. It moves as much data as the copy that the chain ends in.

What a chain does is found by flowing a label for each position of each dimension through it. A chain that does anything
but reorder, or pick from, one dimension is treated like any other views. `nn.ChannelShuffle` is such a chain in one
node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, known, op_name, put, rank_of, shape_of_argument
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.fields import compress, reshape_labels
from prunec.compiler.labels.flow import Fields, Flow, Gather, Labelled
from prunec.compiler.labels.propagate import subject
from prunec.compiler.labels.registry import Slim, on_module, on_op, repeats_value, rewriter, row_for

LONGEST = 24
"""How many nodes are looked at behind the first of a chain."""

MOVES = frozenset(
    """
    view reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes swapdims movedim moveaxis contiguous
    getitem __getitem__ unbind select
    """.split()
)
"""Operations that a chain may consist of, by `op_name`."""

Moved = dict[fx.Node, tuple[Fields | list[Labelled], ...]]
"""Node of a chain -> what it carries for each dimension of the source, when every position there has a label."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain behind one value: the nodes inside it, and the nodes that it ends in, each with the source's positions in
    the order in which the end holds them."""

    inner: tuple[fx.Node, ...]
    ends: tuple[tuple[fx.Node, IntArray], ...]


def gathered(flow: Flow, node: fx.Node, source: fx.Node) -> bool:
    """Treat a reshape of `source` as the first node of a shuffle, if it is one and the plan divides its rows freely.
    Called by the rule of reshapes before anything else.

    Returns False where it isn't so, and nothing was done; else the labels of all nodes of the chain are set.
    """
    dim = None if flow.trial or not flow.program.granularity.grouped else _line(flow.fields(source))
    if dim is None:
        return False
    labels, rows = flow.flat(flow.fields(source)[0]), _rows(shape_of_argument(node), shape_of_argument(source), dim)
    names = flow.writers(labels) if rows.size else []
    if not rows.size or flow.program.granularity.choice("grouped", [*names, node.name]) not in ("equal", "free"):
        return False
    chain = _chain(flow, node, source, dim)
    if chain is None:
        return False
    _settle(flow, chain, source, dim)
    shape = f"{len(rows)} rows of {rows.shape[1]}"
    if flow.divide("grouped", node.name, shape, names, "", (labels,)) == "equal":
        flow.balance(labels[rows], node)
    return True


def _line(fields: Fields) -> int | None:
    """The dimension along which a value varies, if it has a single field, and that along one dimension; else None."""
    if len(fields) != 1 or fields[0].size != max(fields[0].shape):
        return None
    return int(np.argmax(fields[0].shape))


def _rows(new: tuple[int, ...], shape: tuple[int, ...], dim: int) -> IntArray:
    """The positions of a dimension as rows [rows, positions] of the block that a reshape makes of it, of one sample
    where it merges the batch; of size 0 where it makes no such block."""
    [own] = list(_own_labels(shape))[dim]
    block = compress(reshape_labels(own, shape, new))
    wide = [size for size in block.shape if size > 1]
    fits = len(wide) == 2 and shape[dim] % wide[1] == 0 and block.size % shape[dim] == 0
    return block.reshape(wide)[: shape[dim] // wide[1]] if fits else np.zeros((0, 0), dtype=np.int64)


# -- what a chain does -------------------------------------------------------------------------------------------------


def _chain(flow: Flow, first: fx.Node, source: fx.Node, dim: int) -> Chain | None:
    """The chain that begins at a node; None where it does more than reorder, or pick from, `dim` of the source."""
    moved: Moved = {source: tuple(_own_labels(shape_of_argument(source)))}
    ends: list[tuple[fx.Node, IntArray]] = []
    open_ends = {first}
    for node in _following(first):
        if node not in open_ends:
            continue
        open_ends.discard(node)
        carried = _carried(flow, node, moved)
        if carried is None:
            return None
        picked = _picked(node, carried, source, dim)
        if picked is None:
            moved[node] = carried
            open_ends.update(node.users)
        else:
            ends.append((node, picked))
        if not open_ends:
            return Chain(tuple(moved)[1:], tuple(ends)) if ends and _reorders(ends) else None
    return None


def _reorders(ends: list[tuple[fx.Node, IntArray]]) -> bool:
    """Whether any channel changes its place: what only splits channels is no shuffle."""
    return any(bool((np.diff(picked) < 0).any()) or np.ptp(picked) + 1 > picked.size for _, picked in ends)


def _following(first: fx.Node) -> Iterator[fx.Node]:
    """A node and those behind it in the graph's order, as many as `LONGEST`."""
    node = first
    for _ in range(LONGEST):
        if node.op in ("output", "root"):
            return
        yield node
        node = node.next


def _own_labels(shape: tuple[int, ...]) -> Iterator[Fields]:
    """For each dimension of a shape, a field with a label for every position of it; () where it has one position."""
    for dim, size in enumerate(shape):
        line = [size if d == dim else 1 for d in range(len(shape))]
        yield (np.arange(size, dtype=np.int64).reshape(line),) if size > 1 else ()


def _carried(flow: Flow, node: fx.Node, moved: Moved) -> tuple[Fields | list[Labelled], ...] | None:
    """What a node of the chain carries for each dimension of the source; None where it does more than move data."""
    row = row_for(flow, node) if node.op in ("call_function", "call_method", "call_module") else None
    module = flow.program.state.get(str(node.target)) if node.op == "call_module" else None
    named = module is None and node.op != "output" and row is not None and op_name(node) in MOVES
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor | tuple | list)]
    inside = [n for n in tensors if n in moved]
    others = [n for n in node.all_input_nodes if n not in moved]
    if row is None or not (named or isinstance(module, nn.Flatten | nn.Unflatten)) or len(inside) != 1:
        return None
    if any(isinstance(n.meta.get("val"), torch.Tensor) for n in others):
        return None
    found: list[Fields | list[Labelled]] = []
    for fields in moved[inside[0]]:
        trial = Flow(flow.program, values={**dict.fromkeys(others), inside[0]: fields}, owners=[(0, None)], trial=True)
        found.append(row.rule(trial, node))
        if trial.pins or trial.pairs:
            return None
    return tuple(found)


def _picked(node: fx.Node, carried: tuple[Fields | list[Labelled], ...], source: fx.Node, dim: int) -> IntArray | None:
    """The source's positions that a node holds along `dim`, if all other dimensions are as in the source; else None."""
    shape, new = shape_of_argument(source), shape_of_argument(node)
    if len(new) != len(shape) or any(a != b for d, (a, b) in enumerate(zip(shape, new, strict=True)) if d != dim):
        return None
    for d, (fields, own) in enumerate(zip(carried, _own_labels(shape), strict=True)):
        same = isinstance(fields, tuple) and len(fields) == len(own) and all(map(np.array_equal, fields, own))
        if d != dim and not same:
            return None
    line = carried[dim]
    if not isinstance(line, tuple) or _line(line) != dim:
        return None
    return line[0].reshape(-1)


def _settle(flow: Flow, chain: Chain, source: fx.Node, dim: int) -> None:
    """Set the labels of the chain's nodes, and note a gather for each of its ends. Values inside the chain needn't stay
    rectangular: where they don't, the gathers take their place."""
    labels = flow.fields(source)[0]
    flat = labels.reshape(-1)
    moved: Moved = {source: tuple(_own_labels(shape_of_argument(source)))}
    for node in chain.inner:
        carried = _carried(flow, node, moved)
        assert carried is not None, f"{node.name} moved data before"
        moved[node] = carried
        flow.values[node] = _relabelled(carried[dim], flat)
    blocks = tuple(field for node in chain.inner for field in _fields(flow.values[node]))
    for node, picked in chain.ends:
        flow.values[node] = flow.result(flat[picked], len(shape_of_argument(node)), dim)
        flow.gathers[node] = Gather(source, dim, picked, chain.inner, blocks)
        if picked.size < flat.size:
            flow.covers.append(flat[picked])


def _fields(value: Labelled) -> Iterator[IntArray]:
    for part in value or ():
        yield from _fields(part) if isinstance(part, tuple) else (part,)


def _relabelled(carried: Fields | list[Labelled], flat: IntArray) -> Labelled:
    """Fields of source positions as fields of the source's labels."""
    if isinstance(carried, list):
        return [_relabelled(part, flat) for part in carried]
    return tuple(flat[places] for places in carried)


# -- a shuffle in one node -----------------------------------------------------------------------------------------


@on_module(nn.ChannelShuffle, moves=True)
@on_op("channel_shuffle", moves=True)
def channel_shuffle(flow: Flow, node: fx.Node) -> Labelled:
    """Channels of the groups come interleaved. The same positions of every group go, or what the plan asks for."""
    value = subject(flow, node)
    module = flow.program.state[str(node.target)] if node.op == "call_module" else None
    groups = module.groups if isinstance(module, nn.ChannelShuffle) else flow.constant(argument(node, 1, "groups"))
    labels, rest = flow.along(value, 1, node)
    rows = labels.reshape(groups, -1)
    names = [str(node.target)] if module is not None else []
    choice = flow.divide("grouped", node.name, f"{groups} groups of {rows.shape[1]}", names, "same", (rows,))
    if choice == "equal":
        flow.balance(rows, node)
    elif choice != "free":
        flow.unify(rows, rows[:, :1] if choice == "whole" else rows[:1], node)
    order = np.arange(labels.size, dtype=np.int64).reshape(groups, -1).T.reshape(-1)
    flow.gathers[node] = Gather(value, 1, order, blocks=(rows,))
    return (*rest, *flow.result(np.ascontiguousarray(rows.T).reshape(-1).copy(), rank_of(node), 1))


@rewriter("channel_shuffle")
def shuffled_groups(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The number of groups that keep a channel; those come interleaved."""
    groups = int(known(argument(old, 1, "groups")))
    left = int(slim.kept(old, 1).reshape(-1, groups).any(axis=0).sum())
    if left != groups:
        put(new, 1, "groups", left)


repeats_value(nn.ChannelShuffle)(lambda m, shape, kept: {"groups": int(kept.reshape(-1, m.groups).any(axis=0).sum())})
