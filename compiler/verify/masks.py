"""Marks: which elements of a value are removed, and how operations carry that on.

    x     = conv1(image)    data [2, 4, 8, 8]    marks [1, 4, 1, 1] = K R K K     (weight row 1 is removed)
    y     = relu(x)         data as it is        marks pass
    z     = y.flatten(1)    data [2, 256]        marks [1, 256]: the operation itself is run on the marks
    logit = fc(z)           z is zeroed at R, and fc.weight's columns must be R at the same places

A mark is KEPT, REMOVED or FREE: a constant (padding, a buffer) that nobody misses once the channel it joins is
removed. Marks are uint8 of the data's rank, of size 1 along dimensions where they don't vary; a plain tensor is kept
everywhere. One principle makes the checks: *nothing kept may get lost*. A kept element whose every use meets a removed
one, and an operation without a rule that a removed element reaches, are errors.

This is the verifier's own account of the operations. It shares nothing with the analysis that rewrites rely on, so
that an error in either shows as a difference between the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import VerifyError

FREE: Final = 0
KEPT: Final = 1
REMOVED: Final = 2


@dataclass(eq=False)
class Marked:
    """A tensor that isn't kept everywhere. Operations that write in place `write` its marks, as they do its data."""

    data: Tensor
    marks: Tensor
    source: Marked | None = None
    """The tensor that this one is a view of, where that holds constants, which may be overwritten through it."""
    view: Callable[[Tensor], Tensor] | None = None
    """The view, as an operation on the source's marks."""

    def write(self, marks: Tensor) -> None:
        """Set the marks, also of what it is a view of."""
        self.marks = marks
        if self.source is not None and self.view is not None:
            whole = self.source.marks.expand(self.source.data.shape).clone()
            self.view(whole).copy_(marks)
            self.source.write(compressed(whole))

    @property
    def kept(self) -> Tensor:
        """True where the element is not removed; of the data's shape."""
        return (self.marks != REMOVED).expand(self.data.shape)

    @property
    def has_removed(self) -> bool:
        return bool((self.marks.numpy() == REMOVED).any())

    @property
    def has_free(self) -> bool:
        """Whether it holds constants."""
        return bool((self.marks.numpy() == FREE).any())

    @property
    def is_free(self) -> bool:
        """Whether it is a constant everywhere."""
        return bool((self.marks.numpy() == FREE).all())


class Lines:
    """Marks of a parameter: one line for each of its axes that lost positions, of which the largest one counts.

    conv.weight [4, 8, 3, 3]    lines [4, 1, 1, 1] and [1, 8, 1, 1]    marks [4, 8, 1, 1]
    """

    def __init__(self, lines: Sequence[Tensor]) -> None:
        self.lines = tuple(lines)

    @cached_property
    def marks(self) -> Tensor:
        """All marks; made only where a rule asks for them, since a large layer has as many as weights."""
        return compressed(reduce(torch.maximum, self.lines))

    def lie_along(self, *dims: int) -> bool:
        """Whether each line lies along one of these dimensions."""
        return all(any(line.shape[dim] == line.numel() for dim in dims) for line in self.lines)

    def along(self, dim: int) -> Tensor | None:
        """[size or 1]: the marks along a dimension; None where they differ from place to place along others."""
        found = torch.full((1,), KEPT, dtype=torch.uint8)
        for line in self.lines:
            if line.shape[dim] == line.numel():
                found = torch.maximum(found, line.flatten())
            elif line.shape[dim] > 1:
                return None
        return found

    def along_each(self) -> list[Tensor] | None:
        """`along` of every dimension; None where a line lies along none of them."""
        found = [self.along(dim) for dim in range(self.lines[0].ndim)]
        return None if any(line is None for line in found) else [line for line in found if line is not None]


class Lined(Marked):
    """A parameter with its `Lines`."""

    def __init__(self, data: Tensor, lines: Lines) -> None:
        self.data, self.lines = data, lines

    @cached_property
    def marks(self) -> Tensor:  # type: ignore[override]
        """The marks, compressed."""
        return self.lines.marks

    @property
    def has_removed(self) -> bool:
        return any(bool((line.numpy() == REMOVED).any()) for line in self.lines.lines)

    @property
    def has_free(self) -> bool:
        return False

    @property
    def is_free(self) -> bool:
        return False


Value = Tensor | Marked


@dataclass(frozen=True)
class Call:
    """One operation of the graph, with its arguments."""

    where: str
    """The node, for messages."""
    name: str
    """The operation's functional name (`conv2d`, `flatten`), empty where it isn't one of torch's."""
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: nn.Module | None = None
    params: Mapping[str, Value] = field(default_factory=dict)
    """The module's own tensors, by their short names."""
    in_place: bool = False
    memo: dict[bytes, Tensor] = field(default_factory=dict)
    """Results of `contract` for marks met before; shared by all runs of one reference."""

    def plain(self) -> Any:
        """The operation's result on the data alone, without marks."""
        return self.run(*plain(self.args), **plain(self.kwargs))

    def bind(self, *names: str) -> dict[str, Any]:
        """Arguments by name, None where absent. Of a module, the first is its input, others are its attributes."""
        if self.module is None:
            given = {**dict(zip(names, self.args, strict=False)), **self.kwargs}
            return {name: given.get(name) for name in names}
        own = {name: self.params.get(name, getattr(self.module, name, None)) for name in names[1:]}
        return {names[0]: self.args[0], **own}

    def operands(self) -> list[Value]:
        """All tensors among the arguments and parameters."""
        leaves = leaves_of((self.args, dict(self.kwargs), dict(self.params)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor | Marked)]

    def error(self, problem: str) -> VerifyError:
        return VerifyError(f"{problem} at {self.where}")


def plain(tree: Any) -> Any:
    """A nest of values without its marks."""
    return mapped(lambda x: x.data if isinstance(x, Marked) else x, tree)


def mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """A nest with its leaves changed. Plain containers are walked here, which is many times as fast as `pytree`."""
    kind = type(tree)
    if kind in _LEAVES:
        return change(tree)
    if kind in _LISTS:
        return kind([change(each) if type(each) in _LEAVES else mapped(change, each) for each in tree])
    if kind in _DICTS:
        return kind({key: mapped(change, each) for key, each in tree.items()})
    return pytree.tree_map(change, tree)


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of a nest, in order."""
    if type(tree) in _LEAVES:
        return [tree]
    found: list[Any] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Any]) -> None:
    kind = type(tree)
    if kind in _LISTS or kind in _DICTS:
        for each in tree if kind in _LISTS else tree.values():
            if type(each) in _LEAVES:
                found.append(each)
            else:
                _collect(each, found)
    elif kind in _LEAVES:
        found.append(tree)
    else:
        found += pytree.tree_leaves(tree)


_LISTS: Final = frozenset([tuple, list, fx.immutable_collections.immutable_list])
_DICTS: Final = frozenset([dict, fx.immutable_collections.immutable_dict])
_LEAVES: Final = frozenset(
    [Tensor, nn.Parameter, Marked, Lined, int, float, bool, str, type(None), slice, torch.Size, torch.dtype, fx.Node]
)


def marks_of(value: Value) -> Tensor:
    """The marks of any value, compressed; of the value's rank."""
    if isinstance(value, Marked):
        return value.marks
    return torch.full([1] * value.ndim, KEPT, dtype=torch.uint8)


def beside(value: Marked) -> Tensor:
    """The marks where the data are. Marks themselves are on the CPU: they have few elements."""
    return value.marks.to(value.data.device)


def compressed(marks: Tensor) -> Tensor:
    """The marks, of size 1 along dimensions where they don't vary."""
    marks = without_repeats(marks)
    for dim in [dim for dim, size in enumerate(marks.shape) if size > 1]:
        first = marks.narrow(dim, 0, 1)
        if (marks.numpy() == first.numpy()).all():  # of few elements, numpy tells in half of torch's time
            marks = first
    return marks


def without_repeats(marks: Tensor) -> Tensor:
    """The marks, of size 1 along dimensions that an expansion made long."""
    for dim, (size, stride) in enumerate(zip(marks.shape, marks.stride(), strict=True)):
        if size > 1 and stride == 0:
            marks = marks.narrow(dim, 0, 1)
    return marks


def mark(data: Tensor, marks: Tensor) -> Value:
    """The data with these marks, compressed; the bare tensor where everything is kept."""
    marks = compressed(marks)
    return data if (marks.numpy() == KEPT).all() else Marked(data, marks)


def constant(data: Tensor) -> Marked:
    """The data with every element FREE: a constant, which nobody misses once the channel that it joins is removed."""
    return Marked(data, torch.full([1] * data.ndim, FREE, dtype=torch.uint8))


def mark_all(data: Any, marks: Any) -> Any:
    """`mark` for nests of the same structure; leaves that aren't tensors (sizes) stay."""
    if isinstance(data, Tensor):
        return mark(data, marks.to(torch.uint8))
    leaves, spec = pytree.tree_flatten(data)
    pairs = zip(leaves, pytree.tree_leaves(marks), strict=True)
    return pytree.tree_unflatten([mark(x, m.to(torch.uint8)) if isinstance(x, Tensor) else x for x, m in pairs], spec)


def full_marks(tree: Any) -> Any:
    """A nest of values with its tensors replaced by their marks, as float tensors of full size, on which an operation
    can be run in place of the data."""

    def expand(value: Any) -> Any:
        if not isinstance(value, Tensor | Marked):
            return value
        return marks_of(value).float().expand(plain(value).shape).contiguous()  # as `view` wants it

    return mapped(expand, tree)


def small_marks(tree: Any) -> Any:
    """`full_marks` in uint8, expanded: they take no memory along dimensions where the marks don't vary."""

    def expand(value: Any) -> Any:
        return marks_of(value).expand(plain(value).shape) if isinstance(value, Tensor | Marked) else value

    return mapped(expand, tree)


def collapse(call: Call, marks: Tensor, dims: Iterable[int], problem: str) -> Tensor:
    """The marks with `dims` reduced to size 1. Along them all must be kept (or FREE), or all removed (or FREE).

    Raises `VerifyError` with `problem` where kept and removed elements mix.
    """
    for dim in [dim for dim in dims if marks.shape[dim] > 1]:
        kept, removed = ((marks == bit).any(dim, keepdim=True) for bit in (KEPT, REMOVED))
        if bool((kept & removed).any()):
            raise call.error(problem)
        marks = kept.to(torch.uint8) * KEPT + removed.to(torch.uint8) * REMOVED
    return marks


def linked(result: Any, source: Value, run: Callable[[Tensor], Any]) -> Any:
    """`result`, the value of `run` on `source`, with its views tied to the source: marks written into one reach it."""
    if not isinstance(source, Marked) or not source.has_free:
        return result
    memory = source.data.untyped_storage().data_ptr()
    for place, leaf in enumerate(leaves_of(result)):
        if isinstance(leaf, Marked) and leaf.data.untyped_storage().data_ptr() == memory:
            leaf.source, leaf.view = source, partial(_leaf_of, run, place)
    return result


def _leaf_of(run: Callable[[Tensor], Any], place: int, tensor: Tensor) -> Tensor:
    leaf = leaves_of(run(tensor))[place]
    assert isinstance(leaf, Tensor), "a view is a tensor"
    return leaf


def zeroed(value: Value) -> Tensor:
    """The data with zeros at the removed elements, as a reader is to see it."""
    if not isinstance(value, Marked):
        return value
    if value.data.is_meta:
        return value.data  # asked for its shape alone
    return torch.where(beside(value) == REMOVED, torch.zeros((), dtype=value.data.dtype), value.data)


def meet(call: Call, operands: Sequence[Value], shape: Sequence[int]) -> Tensor:
    """The marks of an elementwise result: removed where any operand is, provided that nothing kept is lost by that.

    An operand that is broadcast (a gate of one channel) is lost only where all elements that it reaches are removed. So
    where constants alone span the dimensions that it is broadcast along, its copies are as free as they are.
    """
    rank = len(shape)
    aligned = [marks_of(x).reshape([1] * (rank - plain(x).ndim) + list(marks_of(x).shape)) for x in operands]
    met = aligned[0]
    if all(torch.equal(marks, met) for marks in aligned[1:]) and (len(aligned) == 1 or bool(met.all())):
        return met  # the same is removed of all, and none is FREE
    for marks in aligned[1:]:
        met = torch.maximum(met, marks)  # FREE < KEPT < REMOVED
    gone = met == REMOVED
    spans = [[1] * (rank - plain(x).ndim) + list(plain(x).shape) for x in operands]
    for marks, sizes in zip(aligned, spans, strict=True):
        lost = gone
        for dim in (d for d in range(rank) if sizes[d] == 1 and shape[d] > 1):
            lost = lost.all(dim, keepdim=True)
        if bool((lost & (marks == KEPT)).any()):
            raise call.error("channels that are kept meet channels that are removed")
    return _freed(met, aligned, spans)


def _freed(met: Tensor, aligned: Sequence[Tensor], spans: Sequence[Sequence[int]]) -> Tensor:
    """Marks with what is kept made free where, along some dimension, only constants are as long as the result."""
    if not any(bool((marks == FREE).any()) for marks in aligned):
        return met
    for dim in range(met.ndim):
        longest = max(sizes[dim] for sizes in spans)
        spanning = [marks for marks, sizes in zip(aligned, spans, strict=True) if sizes[dim] == longest]
        if len(spanning) < len(aligned):
            free = torch.stack(torch.broadcast_tensors(*spanning)).amax(0) == FREE  # type: ignore[no-untyped-call]
            met = torch.where(free & (met == KEPT), FREE, met).to(torch.uint8)
    return met


def contract(
    call: Call, product: Callable[..., Tensor], *operands: Value, marks: Sequence[Tensor], alike: str = ""
) -> Tensor:
    """The marks of a multilinear operation (convolution, matrix product, einsum), found by counting.

    `product` is the operation itself, run on 0/1 tensors made of `marks`, one for each operand: so every element of the
    result counts the terms that it sums. It is kept if it sums a term whose factors are all kept. Then it may not sum a
    term of a kept and a removed factor; and every kept factor must be in some kept term. Raises `VerifyError` else.
    What is found is kept for the same marks at the same node, or at all nodes that name their products `alike`.
    """
    settled = [_settled(x, m) for x, m in zip(operands, marks, strict=True)]
    key = _digest(alike or call.where, settled)
    if key not in call.memo:
        call.memo[key] = _counted(call, product, settled)
    return call.memo[key]


def contract_lined(
    call: Call, product: Callable[..., Tensor], x: Value, weight: Lined, *, marks: Tensor, across: int
) -> Tensor | None:
    """`contract` for a layer whose input has the `marks` [channels] and whose weight has lines: the result's marks,
    [channels]. The weight's dimension `across` meets the input. None where the lines don't tell all.

    Channels with the same marks stand for each other: a count is asked only whether it is zero. So one of each kind is
    counted, however large the weight is.
    """
    columns, rows = weight.lines.along(across), weight.lines.along(1 - across)
    if columns is None or rows is None or not weight.lines.lie_along(0, 1):
        return None
    settled, kept = _settled(x, marks), [bool((line.numpy() == KEPT).any()) for line in (columns, rows)]
    if torch.equal(settled, columns) and all(kept) and bool(settled.all()) and bool(rows.all()):
        return rows.expand(weight.data.shape[1 - across])  # each term is of two kept factors, or of two removed ones
    kinds = torch.unique(settled.to(torch.int64) * 4 + columns)
    own, place = torch.unique(rows.expand(weight.data.shape[1 - across]), return_inverse=True)
    arriving, met = kinds.to(torch.uint8) // 4, kinds.to(torch.uint8) % 4
    small = torch.maximum(own[:, None], met[None]) if across else torch.maximum(met[:, None], own[None])
    alike = f"lines across {across}"
    found = contract(call, product, arriving[None], small, marks=(arriving[None], small), alike=alike)
    return found.flatten()[place]


def _digest(where: str, marks: Sequence[Tensor]) -> bytes:
    """A key for the marks that meet at a node; dimensions of size 1, and expanded ones, count as such."""
    found = hashlib.blake2b(where.encode(), digest_size=16)
    for each in marks:
        found.update(str(tuple(each.shape)).encode())
        found.update(without_repeats(each).contiguous().numpy().tobytes())
    return found.digest()


LOOSE: Final = 3
"""A constant that a reader can't drop from a sum whose other terms stay, but that may go with all that it meets."""
_BITS: Final = ((KEPT, LOOSE), (REMOVED, REMOVED))


def _counted(call: Call, product: Callable[..., Tensor], settled: Sequence[Tensor]) -> Tensor:
    with torch.enable_grad():
        kept = [(m != REMOVED).float().requires_grad_() for m in settled]
        terms = product(*kept)
        uses = torch.autograd.grad(terms.sum(), kept)
    strict, gone = ([((m == bit) | (m == alike)).float() for m in settled] for bit, alike in _BITS)
    filled = terms.detach() > 0
    live = product(*strict) > 0 if any(bool((m == FREE).any()) for m in settled) else filled
    crossed = torch.zeros_like(live)
    for index, used in enumerate(uses):
        crossed |= product(*strict[:index], gone[index], *strict[index + 1 :]) > 0
        unused = (settled[index] == KEPT) & (used == 0)
        if bool((crossed & live).any()) or bool(unused.any()):
            raise call.error("the removed positions of an axis are not those of the channels that arrive")
    return torch.where(live | (filled & ~crossed), KEPT, REMOVED).to(torch.uint8)


def _settled(value: Value, marks: Tensor) -> Tensor:
    """Marks with FREE ones made LOOSE, unless they stand on zeros, which a reader can drop."""
    if not isinstance(value, Marked) or not value.has_free:
        return marks
    zero = bool((torch.where(beside(value) == FREE, value.data, torch.zeros((), dtype=value.data.dtype)) == 0).all())
    return marks if zero else torch.where(marks == FREE, LOOSE, marks)


def run_zeroed(call: Call) -> Any:
    """The operation's result on data that are zero where they are removed."""
    clean = mapped(lambda x: zeroed(x) if isinstance(x, Marked) else x, (call.args, dict(call.kwargs)))
    return call.run(*clean[0], **clean[1])


def expanded(value: Value, *small: int) -> Tensor:
    """The value's marks at the data's size, except along the `small` dimensions, which stay compressed.

    Dimensions that two factors share must be of full size in both. Compressed, a factor that is kept along all of a
    dimension would pass for used where any of it is.
    """
    sizes = list(plain(value).shape)
    for dim in small:
        sizes[dim] = marks_of(value).shape[dim]
    return marks_of(value).expand(sizes)


def with_bias(call: Call, data: Tensor, marks: Tensor, bias: Value | None, *, channel: int) -> Value:
    """A product with its bias, which must be removed where the product is; it lies along dimension `channel`."""
    if bias is None:
        return mark(data, marks)
    return mark(data, meet(call, [Marked(data, marks), along_channels(bias, data.ndim, channel)], data.shape))


def along_channels(value: Value, rank: int, channel: int = 1) -> Value:
    """A vector as a value of `rank` dimensions that lies along one of them."""
    shape = [-1 if dim == channel % rank else 1 for dim in range(rank)]
    if isinstance(value, Marked):
        return Marked(value.data.reshape(shape), value.marks.reshape(shape))
    return value.reshape(shape)


def freely(value: Any) -> Any:
    """The value with every element FREE: for what is computed from constants alone."""
    if isinstance(value, Marked) and value.is_free:
        return value
    data = plain(value)
    return constant(data) if isinstance(data, Tensor) else value
