"""How literal sizes follow: a rewriter adapts an operation's arguments to what is left of its operands.

    x.view(-1, 64 * 4 * 4)       ->  x.view(-1, 48 * 4 * 4)
    x.chunk(2, 1)                ->  torch.split(x, [20, 28], 1)
    x[:, :32]                    ->  x[:, :20]
    F.pad(x, (0, 0, 0, 0, 8, 8)) ->  F.pad(x, (0, 0, 0, 0, 5, 6))

The slim operation on slim operands then gives what is kept of the old result. An operation without a rewriter needs
none.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.ir.ops import (
    argument,
    index_dims,
    is_tensor,
    known,
    known_places,
    op_name,
    put,
    rank_of,
    shape_of_argument,
)
from prunec.compiler.labels.registry import Slim, rewriter


@rewriter("view", "reshape", "expand", "broadcast_to", "unflatten", sized=True)
def sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Every size that isn't what the slim program needs is replaced; -1 and sizes that follow by themselves stay."""
    first = 2 if op_name(old) == "unflatten" else 1
    value = argument(old, 0, "input")
    skipped = int(known(argument(old, 1, "dim"))) % len(shape_of_argument(value)) if first == 2 else 0
    key = next((key for key in ("size", "shape", "sizes") if key in old.kwargs), None)
    given: Any = old.kwargs[key] if key else old.args[first] if len(old.args) == first + 1 else list(old.args[first:])
    current: Any = new.kwargs[key] if key else new.args[first] if len(new.args) == first + 1 else list(new.args[first:])
    if isinstance(slim.value(given), int):
        given, current = [given], [current]
    if isinstance(given, fx.Node):
        given = [given] * len(slim.value(given))
    wanted = _sizes(old, given, current, slim.shape(old)[skipped:][: len(given)], slim)
    if wanted is None:
        return
    if key:
        new.kwargs = {**new.kwargs, key: wanted}
    else:
        spread = len(old.args) > first + 1  # view(-1, 512) stays as it was written
        new.args = (*new.args[:first], *(wanted if spread else (wanted,)))


def _sizes(
    old: fx.Node, given: Sequence[Any], current: Any, target: Sequence[int], slim: Slim
) -> tuple[Any, ...] | None:
    """The sizes that give the slim shape, as literals only where the given ones don't; None where these do."""
    whole = isinstance(current, fx.Node)
    values = [slim.value(g)[i] if whole else slim.value(g) for i, g in enumerate(given)]
    settled = [value in (-1, wanted) for value, wanted in zip(values, target, strict=True)]
    if all(settled):
        return None
    places = slim.items(current, len(given)) if whole else list(current)
    literal = [place for place, fine in enumerate(settled) if not fine]
    free = op_name(old) in ("view", "reshape") and -1 not in values and len(literal) == 1
    for place in literal:
        if free and isinstance(places[place], fx.Node):
            places[place] = -1
        else:
            open_ = None if whole else _open(given[place], places[place], target[place], slim)
            places[place] = target[place] if open_ is None else open_
    return tuple(places)


def _open(old: Any, new: Any, wanted: int, slim: Slim) -> fx.Node | None:
    """A size that follows the batch (batch times heads), where the number that was given does."""
    return slim.scaled(old, new, wanted) if isinstance(old, fx.Node) and isinstance(new, fx.Node) else None


@rewriter("repeat", "tile", "repeat_interleave", sized=True)
def repeats(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """As many copies as are left of those that were made."""
    value, target = argument(old, 0, "input"), slim.shape(old)
    before = (1,) * (len(target) - len(shape_of_argument(value))) + tuple(slim.shape(value))
    wanted = [size // max(inner, 1) for size, inner in zip(target, before, strict=True)]
    if op_name(old) == "repeat_interleave":
        dim = known(argument(old, 2, "dim"))
        if dim is not None and not is_tensor(argument(old, 1, "repeats")):
            fits = slim.value(argument(old, 1, "repeats")) == wanted[dim]
            put(new, 1, "repeats", argument(new, 1, "repeats") if fits else wanted[dim])
        return
    spread = len(old.args) > 2 or isinstance(slim.value(argument(old, 1, "repeats", argument(old, 1, "dims"))), int)
    key = next((key for key in ("repeats", "dims") if key in old.kwargs), None)
    given: Any
    current: Any
    given, current = (x.args[1:] if spread else x.kwargs[key] if key else x.args[1] for x in (old, new))
    if isinstance(given, fx.Node) or len(given) != len(wanted):
        return
    counts = tuple(g if slim.value(o) == n else n for o, g, n in zip(given, current, wanted, strict=True))
    if key:
        new.kwargs = {**new.kwargs, key: counts}
    else:
        new.args = (new.args[0], *counts) if spread else (new.args[0], counts)


@rewriter("squeeze")
def squeezed(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A dimension of which a single position is left is still there; only those that were of size 1 go."""
    value = argument(old, 0, "input")
    before = shape_of_argument(value)
    shrunk = [dim for dim, size in enumerate(before) if size > 1 and slim.kept(value, dim).sum() == 1]
    given = argument(old, 1, "dim")
    asked = range(len(before)) if given is None else given if isinstance(given, tuple | list) else [given]
    dims = {int(known(dim)) % len(before) for dim in asked}
    if dims.intersection(shrunk):
        new.args = (argument(new, 0, "input"), tuple(sorted(dim for dim in dims if before[dim] == 1)))
        new.kwargs = {}


@rewriter("pad")
def pad_amounts(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """As many zeros on each side as are kept."""
    given, amounts = known(argument(old, 1, "pad")), list(argument(new, 1, "pad"))
    rank, before = rank_of(old), shape_of_argument(argument(old, 0, "input"))
    for dim in range(rank):
        kept, inner = slim.kept(old, dim), slim.kept(argument(old, 0, "input"), dim)
        index = 2 * (rank - 1 - dim)
        if (kept.all() and inner.all()) or index + 1 >= len(amounts):
            continue
        rims = [int(known(amount)) for amount in given[index : index + 2]]
        amounts[index] = int(kept[: rims[0]].sum()) if rims[0] >= 0 else -int(inner[: -rims[0]].sum())
        last = int(kept[max(rims[0], 0) + before[dim] + min(rims[0], 0) :].sum())
        amounts[index + 1] = last if rims[1] >= 0 else -int(inner[before[dim] + rims[1] :].sum())
    put(new, 1, "pad", tuple(amounts))


@rewriter("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split")
def split_sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Literal lengths, since the pieces needn't be equally long any more."""
    value = argument(old, 0, "input")
    dim = int(known(argument(old, 2, "dim", 0))) % len(shape_of_argument(value))
    kept = slim.kept(value, dim)
    if kept.all():
        return
    ends = np.cumsum([part.shape[dim] for part in old.meta["val"]])
    lengths = [int(part.sum()) for part in np.split(kept, ends[:-1])]
    new.op, new.target = ("call_function", torch.split)
    new.args, new.kwargs = (argument(new, 0, "input"), lengths, dim), {}


@rewriter("getitem", "__getitem__", "setitem", "__setitem__")
def slices(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A slice of a labelled dimension takes (or sets) the positions that are left of those that it took."""
    value, index = old.args[:2]
    if not is_tensor(value):
        return
    entries = list(index) if isinstance(index, tuple) else [index]
    changed = list(new.args[1]) if isinstance(index, tuple) else [new.args[1]]  # type: ignore[arg-type]
    for place, dim in index_dims(entries, len(shape_of_argument(value))):
        kept = slim.kept(value, dim)
        if not kept.all():
            changed[place] = _slim_index(entries[place], kept, slim)
    new.args = (new.args[0], tuple(changed) if isinstance(index, tuple) else changed[0], *new.args[2:])


def _slim_index(entry: Any, kept: np.ndarray[Any, Any], slim: Slim) -> Any:
    number = np.cumsum(kept) - 1
    places = known_places(slim.constant(entry)) if is_tensor(entry) or isinstance(entry, list) else None
    if places is None and not isinstance(entry, slice):
        return int(number[known(entry) % kept.size])
    index = places if places is not None else slice(*(known(p) for p in (entry.start, entry.stop, entry.step)))
    taken = np.arange(kept.size)[index]
    return _as_index(number[taken[kept[taken]]], int(kept.sum()))


def _as_index(places: np.ndarray[Any, Any], size: int) -> Any:
    """Places among `size` as a slice where they follow each other, else as a list."""
    if not places.size:
        return slice(0, 0)
    if places.size == 1 or bool((np.diff(places) == 1).all()):
        whole = places.size == size
        return slice(None) if whole else slice(int(places[0]), int(places[-1]) + 1)
    return [int(p) for p in places]


@rewriter("roll")
def shifts(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """As far as is kept of what comes round: the order of what is kept is rolled too."""
    value, by, dims = (argument(old, i, name) for i, name in enumerate(("input", "shifts", "dims")))
    if dims is None or dims == ():
        return
    single = not isinstance(dims, tuple | list)
    dims, by = ([dims], [by if not isinstance(by, tuple | list) else by[0]]) if single else (dims, by)
    given = argument(new, 1, "shifts")
    current = list(given) if isinstance(given, tuple | list) else [given]
    for place, dim in enumerate(dims):
        kept = slim.kept(value, int(known(dim)))
        if not kept.all():
            current[place] = int(kept[kept.size - int(known(by[place])) % kept.size :].sum())
    put(new, 1, "shifts", tuple(current) if isinstance(given, tuple | list) else current[0])


def left_of(value: object, dim: Any, slim: Slim) -> tuple[int, int]:
    """How many positions are left of what a reduction takes together, and how many there were; `dim` names one
    dimension, several, or none for all."""
    rank = len(shape_of_argument(value))
    asked = range(rank) if dim is None or dim in ([], ()) else dim if isinstance(dim, tuple | list) else [dim]
    masks = [slim.kept(value, int(known(each)) % rank) for each in asked]
    return prod(int(mask.sum()) for mask in masks), prod(mask.size for mask in masks)


@rewriter("mean")
def mean_of_all(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The mean over what is left, times the share that is left: the removed are zeros that are counted."""
    left, size = left_of(argument(old, 0, "input"), known(argument(old, 1, "dim")), slim)
    if left == size:
        return
    with new.graph.inserting_before(new):
        inner = new.graph.create_node(new.op, new.target, new.args, new.kwargs)
    inner.meta = {**new.meta, "val": new.meta["val"].new_empty(slim.shape(old))}
    new.op, new.target = "call_function", operator.mul
    new.args, new.kwargs = (inner, left / size), {}


@rewriter("zeros", "empty", "new_zeros", "new_empty", "new", sized=True)
def created_sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A constant is as large as what it meets."""
    first = 1 if op_name(old).startswith("new") else 0
    named = "size" in old.kwargs
    spread = not named and not isinstance(slim.value(old.args[first]), tuple | list)
    given: Any
    current: Any
    given, current = (
        node.kwargs["size"] if named else node.args[first:] if spread else node.args[first] for node in (old, new)
    )
    every = [given] * len(slim.value(given)) if isinstance(given, fx.Node) else given
    wanted = _sizes(old, every, current, slim.shape(old), slim)
    if wanted is not None and named:
        new.kwargs = {**new.kwargs, "size": wanted}
    elif wanted is not None:
        new.args = (*new.args[:first], *(wanted if spread else (wanted,)))


@rewriter("narrow", "select")
def narrow_bounds(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Start and length, counted in kept positions."""
    value, dim = argument(old, 0, "input"), int(known(argument(old, 1, "dim")))
    kept = slim.kept(value, dim % len(shape_of_argument(value)))
    if kept.all():
        return
    whole = op_name(old) == "narrow"
    start = int(known(argument(old, 2, "start" if whole else "index"))) % kept.size
    put(new, 2, "start" if whole else "index", int(kept[:start].sum()))
    if whole:
        length = int(known(argument(old, 3, "length")))
        put(new, 3, "length", int(kept[start : start + length].sum()))


# -- other literals that repeat a size -----------------------------------------------------------------------------


@rewriter("layer_norm", "rms_norm", sized=True)
def normalized_shape(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The trailing sizes."""
    given = slim.value(argument(old, 1, "normalized_shape"))
    wanted = tuple(slim.shape(old)[-len(given) :])
    if tuple(slim.value(size) for size in given) != wanted:
        put(new, 1, "normalized_shape", wanted)


@rewriter("group_norm")
def norm_groups(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """As many groups as keep a channel."""
    groups = int(known(argument(old, 1, "num_groups")))
    left = int(slim.kept(old, 1).reshape(groups, -1).any(axis=1).sum())
    if left != groups:
        put(new, 1, "num_groups", left)


@rewriter("channel_shuffle")
def shuffled_groups(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """As many groups as keep a channel; they come interleaved."""
    groups = int(known(argument(old, 1, "groups")))
    left = int(slim.kept(old, 1).reshape(-1, groups).any(axis=0).sum())
    if left != groups:
        put(new, 1, "groups", left)


@rewriter(*(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)))
def convolution_groups(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Groups of one input or one output lose whole groups, others the same positions of each group."""
    value, groups = argument(old, 0, "input"), int(known(argument(old, 6, "groups", 1)))
    dim = len(shape_of_argument(value)) - len(shape_of_argument(argument(old, 1, "weight"))) + 1
    kept = [slim.kept(node, dim).reshape(groups, -1) for node in (value, old)] if groups > 1 else []
    left = int(kept[0].any(axis=1).sum()) if any(mask.shape[1] == 1 for mask in kept) else groups
    if left != groups:
        put(new, 6, "groups", left)


@rewriter("scaled_dot_product_attention")
def attention_scale(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The scale that is taken from the width when none is given stays what it was."""
    query = argument(old, 0, "query")
    width = shape_of_argument(query)[-1]
    if old.kwargs.get("scale") is None and slim.shape(query)[-1] != width:
        new.kwargs = {**new.kwargs, "scale": width**-0.5}
