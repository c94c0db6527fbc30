"""How literal sizes follow: a rewriter adapts an operation's arguments to what is left of its operands.

    x.view(-1, 64 * 4 * 4)       ->  x.view(-1, 48 * 4 * 4)
    x.chunk(2, 1)                ->  torch.split(x, [20, 28], 1)
    x[:, :32]                    ->  x[:, :20]
    F.pad(x, (0, 0, 0, 0, 8, 8)) ->  F.pad(x, (0, 0, 0, 0, 5, 6))

The slim operation on slim operands then gives what is kept of the old result. An operation without a rewriter needs
none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx

from prunec.compiler.labels import shape_of_argument
from prunec.compiler.rules import argument, op_name, rank_of


class Slim(Protocol):
    """What a rewriter asks about the slim program, by nodes of the old one."""

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The slim shape of a node's value."""

    def kept(self, value: object, dim: int) -> np.ndarray[Any, Any]:
        """Which positions of a value's dimension are kept: a boolean array of the old size."""

    def value(self, argument: object) -> Any:
        """What an argument (a literal, or a node that gives a number) is in the slim program."""

    def items(self, size: fx.Node, count: int) -> list[Any]:
        """New nodes for the items of a node that gives a size."""


Rewrite = Callable[[fx.Node, fx.Node, Slim], None]
"""(old node, new node, slim): sets the new node's arguments. Runs only where the node's sizes change."""


REWRITES: dict[str, Rewrite] = {}
"""By `op_name`; an operation without an entry needs no rewriting."""


SIZED: set[str] = set()
"""Operations whose rewriter decides about numbers that were read off a size; for others they stay as they were."""


def rewriter(*names: str, sized: bool = False) -> Callable[[Rewrite], Rewrite]:
    """Register how the literals of these operations follow the labels."""

    def register(rewrite: Rewrite) -> Rewrite:
        for name in names:
            assert name not in REWRITES, f"{name} is rewritten already"
            REWRITES[name] = rewrite
        SIZED.update(names if sized else ())
        return rewrite

    return register


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
    for place in literal:
        dynamic = isinstance(places[place], fx.Node)
        free = op_name(old) in ("view", "reshape") and -1 not in values and len(literal) == 1
        places[place] = -1 if dynamic and free else target[place]
    return tuple(places)


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
        kept = slim.kept(old, dim)
        index = 2 * (rank - 1 - dim)
        if kept.all() or index + 1 >= len(amounts):
            continue
        left = int(known(given[index]))
        amounts[index] = int(kept[:left].sum())
        amounts[index + 1] = int(kept[left + before[dim] :].sum())
    put(new, 1, "pad", tuple(amounts))


def put(node: fx.Node, position: int, name: str, value: Any) -> None:
    """Put an argument where it was given, by position or by name."""
    if len(node.args) > position:
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


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


def is_tensor(entry: object) -> bool:
    return isinstance(entry, torch.Tensor) or (
        isinstance(entry, fx.Node) and isinstance(entry.meta.get("val"), torch.Tensor)
    )


def index_dims(entries: Sequence[Any], rank: int) -> list[tuple[int, int]]:
    """(place in the index, dimension that it indexes) of every entry that indexes one."""
    consuming = [i for i, e in enumerate(entries) if e is not None and e is not Ellipsis]
    dims: list[tuple[int, int]] = []
    dim = 0
    for place, entry in enumerate(entries):
        if entry is Ellipsis:
            dim = rank - sum(i > place for i in consuming)
        elif entry is not None:
            dims.append((place, dim))
            dim += 1
    return dims


@rewriter("getitem", "__getitem__", "setitem", "__setitem__")
def slices(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A slice of a labelled dimension takes the positions that are left of those that it took."""
    value, index = old.args[:2]
    if not is_tensor(value):
        return
    entries = list(index) if isinstance(index, tuple) else [index]
    changed = list(new.args[1]) if isinstance(index, tuple) else [new.args[1]]  # type: ignore[arg-type]
    for place, dim in index_dims(entries, len(shape_of_argument(value))):
        kept = slim.kept(value, dim)
        if not kept.all():
            changed[place] = _slim_index(entries[place], kept)
    new.args = (new.args[0], tuple(changed) if isinstance(index, tuple) else changed[0], *new.args[2:])


def _slim_index(entry: Any, kept: np.ndarray[Any, Any]) -> Any:
    number = np.cumsum(kept) - 1
    if not isinstance(entry, slice):
        return int(number[known(entry) % kept.size])
    taken = np.arange(kept.size)[slice(*(known(p) for p in (entry.start, entry.stop, entry.step)))]
    places = number[taken[kept[taken]]]
    if places.size == kept.sum():
        return slice(None)
    if places.size == 1 or bool((np.diff(places) == 1).all()):
        return slice(int(places[0]), int(places[-1]) + 1)
    return [int(p) for p in places]


def known(entry: Any) -> Any:
    return entry.meta["val"] if isinstance(entry, fx.Node) else entry


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


@rewriter("conv1d", "conv2d", "conv3d")
def convolution_groups(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A depthwise convolution has as many groups as channels."""
    weight = argument(old, 1, "weight")
    if int(known(argument(old, 6, "groups", 1))) > 1 and shape_of_argument(weight)[1] == 1:
        put(new, 6, "groups", slim.shape(weight)[0])


@rewriter("scaled_dot_product_attention")
def attention_scale(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """The scale that is taken from the width when none is given stays what it was."""
    query = argument(old, 0, "query")
    width = shape_of_argument(query)[-1]
    if old.kwargs.get("scale") is None and slim.shape(query)[-1] != width:
        new.kwargs = {**new.kwargs, "scale": width**-0.5}
