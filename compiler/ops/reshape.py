"""Operations that give the same elements in other dimensions or another order: view, permute, roll, complex views.

They are executed on the labels (`labels/execute.py`), so a flatten, a window partition or a space-to-depth needs no
rule of its own. Once units are removed, literal sizes follow:

    x.view(-1, 512)          ->  x.view(-1, 384)
    x.squeeze()              ->  x.squeeze((2, 3))         where one channel alone is left
    x.roll(4, 1)             ->  x.roll(3, 1)              three channels are left of the four that come round
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, known, op_name, put, rank_of, shape_of_argument
from prunec.compiler.labels.broadcast import combine, operand, whole
from prunec.compiler.labels.execute import constants, executed, writable
from prunec.compiler.labels.fields import reshape_labels
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import subject, unknown, without_labels
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import Slim, on_module, on_op, rewriter
from prunec.compiler.ops.shuffle import gathered


@on_op("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", moves=True)
@on_module(nn.Flatten, nn.Unflatten, moves=True)
def reshape(flow: Flow, node: fx.Node) -> Labelled:
    """Row-major order stays, so the two shapes tell where each label goes."""
    value = subject(flow, node)
    old, new = shape_of_argument(value), shape_of_argument(node)
    if elements(old) != elements(new) or not elements(old):
        return unknown(flow, node)  # a view as another type
    if gathered(flow, node, value):
        return flow.values[node]
    return flow.moved((reshape_labels(f, old, new) for f in flow.fields(value)), node)


@on_op("view_as", "reshape_as", moves=True)
def reshape_as(flow: Flow, node: fx.Node) -> Labelled:
    """Reshaped; along each dimension, unified with the operand whose shape is taken."""
    value, other = argument(node, 0, "input"), argument(node, 1, "other")
    old, new = shape_of_argument(value), shape_of_argument(node)
    moved = flow.moved((reshape_labels(f, old, new) for f in flow.fields(value)), node)
    return combine(flow, node, ((moved, new), operand(flow, other)))


@on_op(
    "permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "flip", "adjoint", "rot90", moves=True
)
def permute(flow: Flow, node: fx.Node) -> Labelled:
    """Dimensions change places; the fields needn't be written out for that."""
    value, (rest, kwargs), name = subject(flow, node), constants(flow, node), op_name(node)
    arrays = (writable(f) for f in flow.fields(value))
    return flow.moved((getattr(array, name)(*rest, **kwargs).numpy() for array in arrays), node)


@on_op("roll", moves=True)
def roll(flow: Flow, node: fx.Node) -> Labelled:
    """Labels roll like the data; once some are removed, the shift is that of the positions that are left (`shifts`)."""
    value, (rest, kwargs) = subject(flow, node), constants(flow, node)
    dims = argument(node, 2, "dims")
    if dims is None or dims == ():  # the whole value as one line
        return mixed(flow, node, value, range(rank_of(node)), "is rolled")
    shape = shape_of_argument(value)
    return flow.moved((executed(f, shape, lambda t: t.roll(*rest, **kwargs)) for f in flow.fields(value)), node)


@on_op("view_as_complex", moves=True)
def as_complex(flow: Flow, node: fx.Node) -> Labelled:
    """The last dimension holds the real and imaginary part of a number, which go together."""
    value = subject(flow, node)
    return flow.moved((whole(flow, f, f.ndim - 1, node)[..., 0] for f in flow.fields(value)), node)


@on_op("view_as_real", moves=True)
def as_real(flow: Flow, node: fx.Node) -> Labelled:
    """Both parts of a number go with it."""
    return tuple(f[..., None] for f in flow.fields(subject(flow, node)))


@on_op("getattr", moves=True)
def attribute(flow: Flow, node: fx.Node) -> Labelled:
    """`x.T` and the like move data; a named tuple's fields are its parts; `x.shape` and the like give no tensor."""
    value, name = node.args[0], node.args[1]
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return without_labels(flow, node)
    source = flow.values.get(value) if isinstance(value, fx.Node) else None
    if isinstance(source, list):
        fields = getattr(type(node.args[0].meta["val"]), "_fields", ())  # type: ignore[union-attr]
        return source[fields.index(name)] if name in fields else unknown(flow, node)
    if name in ("T", "mT", "H", "mH"):
        arrays = (writable(f) for f in flow.fields(value))
        return flow.moved((getattr(array, str(name)).numpy() for array in arrays), node)
    if name in ("data", "real", "imag"):
        return flow.fields(value)
    return unknown(flow, node)


# -- literal sizes -------------------------------------------------------------------------------------------------


@rewriter("view", "reshape", "expand", "broadcast_to", "unflatten", sized=True)
def sizes(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Each given size that doesn't fit what is left is replaced; -1, and sizes that follow by themselves, stay."""
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
    wanted = fitting_sizes(old, given, current, slim.shape(old)[skipped:][: len(given)], slim)
    if wanted is None:
        return
    if key:
        new.kwargs = {**new.kwargs, key: wanted}
    else:
        spread = len(old.args) > first + 1  # view(-1, 512) stays as it was written
        new.args = (*new.args[:first], *(wanted if spread else (wanted,)))


def fitting_sizes(
    old: fx.Node, given: Sequence[Any], current: Any, target: Sequence[int], slim: Slim
) -> tuple[Any, ...] | None:
    """The sizes that give the shape `target`: literals only where the given ones don't fit it; None where all do.

    `given` are the old node's sizes, `current` the same in the slim graph (nodes, numbers, or one node for all).
    """
    whole = isinstance(current, fx.Node)
    values = [slim.value(g)[i] if whole else slim.value(g) for i, g in enumerate(given)]
    settled = [
        value == -1 or (value == wanted if whole else slim.follows(g, wanted))
        for g, value, wanted in zip(given, values, target, strict=True)
    ]
    if all(settled):
        return None
    places = slim.items(current, len(given)) if whole else list(current)
    literal = [place for place, fine in enumerate(settled) if not fine]
    free = op_name(old) in ("view", "reshape") and -1 not in values and len(literal) == 1
    for place in literal:
        if free and isinstance(places[place], fx.Node):
            places[place] = -1
        else:
            open_ = None if whole else _open(given[place], target[place], slim)
            places[place] = target[place] if open_ is None else open_
    return tuple(places)


def _open(old: Any, wanted: int, slim: Slim) -> fx.Node | None:
    """A node for a size that follows the batch (batch times heads), where the given number does; else None."""
    return slim.scaled(old, wanted) if isinstance(old, fx.Node) else None


@rewriter("squeeze")
def squeezed(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """A dimension of which one position is left is still there; only those that were of size 1 are squeezed."""
    value = argument(old, 0, "input")
    before = shape_of_argument(value)
    shrunk = [dim for dim, size in enumerate(before) if size > 1 and slim.kept(value, dim).sum() == 1]
    given = argument(old, 1, "dim")
    asked = range(len(before)) if given is None else given if isinstance(given, tuple | list) else [given]
    dims = {int(known(dim)) % len(before) for dim in asked}
    if dims.intersection(shrunk):
        new.args = (argument(new, 0, "input"), tuple(sorted(dim for dim in dims if before[dim] == 1)))
        new.kwargs = {}


@rewriter("roll")
def shifts(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Shift by as many positions as are left of those that come round."""
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
