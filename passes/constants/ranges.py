"""Ranges that values can't leave, whatever the input: interval arithmetic from the weights alone, without data.

    x            any number                      fc1.weight[3] = 0, fc1.bias[3] = 0.5
    fc1(x)[3]    0.5 to 0.5                      a constant
    relu(.)[0]   0 or more
    tanh(.)      -1 to 1                         so fc2(tanh(.)) lies within bias +- the sum of |weight|
    relu(fc2(.) - 100)[2]    0 to 0              shut, if that sum is less

A range holds for every batch and image size. Where an operation has no rule here, its values may be anything, but where
all that it reads element by element is constant. Ranges are kept small: a dimension along which they are the same has
size 1, as batch and image do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.compiler.groups.analysis import Analysis
from prunec.compiler.ir.aliasing import memories, mutates, written
from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.ops import argument, op_name, words
from prunec.compiler.ir.program import Program
from prunec.compiler.labels.flow import Flow
from prunec.compiler.labels.registry import row_for
from prunec.compiler.ops.elementwise import converted, elementwise, passes
from prunec.compiler.verify.interpreter import Interpreter
from prunec.passes.repairing.calls import Call, Part, call_of

_ROUNDING: Final = 1e-6
"""What rounding in float32 adds to a sum at most, as a share of the sum of magnitudes."""


_LATE: Final = 20
"""From here on, softplus is a line but for less than what rounding adds."""
_DIPS: Final = -2.0
"""Left of this, no activation that dips below 0 is still falling."""


@dataclass(frozen=True)
class Range:
    """What a tensor's elements lie between, in float64; sizes are 1 where a dimension makes no difference."""

    low: Tensor
    high: Tensor

    @property
    def fixed(self) -> Tensor:
        """Which elements are constant."""
        return (self.low == self.high) & self.low.isfinite()

    @property
    def zero(self) -> Tensor:
        """Which elements are zero."""
        return (self.low == 0) & (self.high == 0)

    def each(self, run: Callable[[Tensor], Tensor]) -> Range:
        """What an operation gives that never falls, or that only moves elements."""
        return Range(run(self.low), run(self.high))

    def hull(self, dims: Sequence[int]) -> Range:
        """The range over some dimensions, which have size 1 then."""
        dims = [dim for dim in dims if self.low.shape[dim] > 1]
        return Range(self.low.amin(dims, keepdim=True), self.high.amax(dims, keepdim=True)) if dims else self

    def with_zero(self) -> Range:
        """The range of what may also be zero."""
        return Range(self.low.clamp(max=0), self.high.clamp(min=0))

    def settled(self) -> Range:
        """The range with size 1 where a dimension makes no difference, and of anything where a bound is no number."""
        low = self.low.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        high = self.high.nan_to_num(torch.inf, torch.inf, -torch.inf)
        shape = np.broadcast_shapes(low.shape, high.shape)
        low, high = low.expand(shape), high.expand(shape)
        for dim, size in enumerate(low.shape):
            first = [bound.narrow(dim, 0, 1) for bound in (low, high)] if size > 1 else []
            if first and all(map(torch.equal, (low, high), (bound.expand_as(low) for bound in first))):
                low, high = first
        return Range(low, high)


def constant_number(value: float) -> Range:
    """The range of a number."""
    return Range(torch.tensor(float(value), dtype=torch.float64), torch.tensor(float(value), dtype=torch.float64))


def ranges(analysis: Analysis) -> Mapping[fx.Node, Range]:
    """The range of every node that gives a tensor of floating-point numbers, in evaluation mode."""
    program = analysis.program
    return program.cached("ranges", lambda: _Ranges(program, analysis.flow).found())


_ELEMENTWISE: Final = (elementwise, passes, converted)
"""The label rules of operations on each element by itself."""
_NONE: Final = object()
"""Of what gives no such tensor."""


class _Ranges:
    """Works the ranges out, node by node; on the CPU, wherever the program is."""

    def __init__(self, program: Program, flow: Flow) -> None:
        if any(tensor.device.type != "cpu" for tensor in program.tensors.values()):
            program = program.derive(state=with_own_tensors(program.state, torch.device("cpu")))
        self.program = program
        self.flow = flow
        self.values: dict[fx.Node, Any] = {}
        """A `Range`, or a nest of them."""
        self.interpreter = Interpreter(self.program, torch.float64)

    def found(self) -> dict[fx.Node, Range]:
        nodes = list(self.program.graph.nodes)
        shared: dict[fx.Node, set[fx.Node]] = {}
        if any(mutates(node, self.program.state) for node in nodes):
            shared = {node: found for found in memories(self.program.graph, self.program.state) for node in found}
        seen: dict[fx.Node, Range] = {}
        with torch.no_grad():
            for node in nodes:
                value = self.values[node] = self._value(node)
                if isinstance(value, Range):
                    seen[node] = value
                if mutates(node, self.program.state):
                    for other in shared[node] & self.values.keys() - {node}:
                        self.values[other] = _anything(other.meta.get("val"))
                        seen.pop(other, None)
        return seen

    def _value(self, node: fx.Node) -> Any:
        known = node.meta.get("val")
        if node.op == "output" or not any(map(_is_real, pytree.tree_leaves(known))):
            return _NONE
        if node.op == "get_attr":
            name = str(node.target)
            held = self.program.tensors.get(name)
            if held is None or name in written(self.program):
                return _anything(known)
            return Range(held.detach().double(), held.detach().double()).settled()
        found = self._by_rule(node) if node.op.startswith("call") else None
        if found is None or not _fits(found, known):
            return _anything(known)
        return pytree.tree_map_only(Range, Range.settled, found)

    def _by_rule(self, node: fx.Node) -> Any:
        """What a rule says of a node; None where there is none."""
        row = row_for(self.flow, node)
        module: Any = self.program.state.get(str(node.target)) if node.op == "call_module" else None
        if row is None or isinstance(getattr(module, "inplace", False), fx.Node):
            return None
        call = call_of(node, self.program)
        if call is not None:
            return self._layer(call)
        if row.moves:
            return self.moved(node)
        name = (type(module).__name__ if module is not None else op_name(node)).lower().replace("_", "")
        rule = _RULES.get(name)
        found = None if rule is None else rule(self, node, module)
        return self._elementwise(node) if found is None and row.rule in _ELEMENTWISE else found

    def of(self, value: object) -> Range | None:
        """The range of an argument; None for what has none."""
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return constant_number(value)
        found = self.values.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Range) else None

    def first(self, node: fx.Node) -> Range | None:
        """The range of a node's first operand."""
        return self.of(argument(node, 0, "input"))

    # -- layers --------------------------------------------------------------------------------------------------------

    def _layer(self, call: Call) -> Range | None:
        read, conv = None if call.source is None else self.of(call.source), call.form.conv
        held = [part.name for part in (call.weight, call.bias) if part is not None]
        if read is None or call.form.order is not None or not written(self.program).isdisjoint(held):
            return None
        if conv is not None and read.low.ndim != conv.weight.ndim:
            return None
        channels = 1 if conv is not None else read.low.ndim - 1
        weight = call.form.laid(self._part(call.weight))  # [groups, inputs, kernel..., outputs]
        read = read.hull([dim for dim in range(read.low.ndim) if dim != channels])
        if conv is not None and (call.form.turned or _puts_zeros(conv)):
            read = read.with_zero()
        given = _weighted(weight, read, int(weight.shape[0]))
        if call.bias is not None:
            bias = self._part(call.bias).double()
            given = Range(given.low + bias, given.high + bias)
        shape = [1] * read.low.ndim
        shape[channels] = -1
        return given.each(lambda bound: bound.reshape(shape))

    def _part(self, part: Part) -> Tensor:
        return part.of(self.program.tensors[part.name].detach())

    # -- what only moves elements, and what treats each by itself ------------------------------------------------------

    def moved(self, node: fx.Node) -> Any:
        """The operation itself, executed on the bounds at the example's shape."""
        parts: list[Any] = []
        try:
            read = self._at_any_size(node)
        except _NoBound:
            return None
        for side in ("low", "high"):

            def bound(source: fx.Node, side: str = side) -> Any:
                return self._bound(source, side, read)

            try:
                args, kwargs = fx.map_arg(node.args, bound), fx.map_arg(node.kwargs, bound)
                parts.append(self.interpreter.target(node)(*args, **kwargs))
            except (_NoBound, RuntimeError, TypeError, ValueError, IndexError):
                return None
        low, high = map(pytree.tree_leaves, parts)
        kinds = (list, tuple)
        found = [Range(*pair) if isinstance(pair[0], Tensor) else _NONE for pair in zip(low, high, strict=True)]
        return found if isinstance(parts[0], kinds) else found[0]

    def _at_any_size(self, node: fx.Node) -> dict[fx.Node, Range]:
        """What is read, where sizes say how much of it is taken or padded: over all of these dimensions, since at other
        sizes it is something else that is taken."""
        sizes = {each for each in node.all_input_nodes if not _has_tensors(each)}
        name, first = op_name(node), argument(node, 0, "input")
        if not sizes or name in _KEEP_ALL:
            return {}
        read = self.of(first)
        if read is None:
            raise _NoBound
        rank = read.low.ndim
        dims: Sequence[int] | None = None
        if name in ("getitem", "__getitem__"):
            dims = _indexed_by(argument(node, 1, "index"), rank, sizes)
        elif name == "pad":
            pads, value = argument(node, 1, "pad"), argument(node, 3, "value")
            if not isinstance(pads, list | tuple) or not isinstance(value, int | float | None):
                raise _NoBound
            dims = range(rank - len(pads) // 2, rank)
            if argument(node, 2, "mode", "constant") == "constant":
                read = Range(read.low.clamp(max=value or 0.0), read.high.clamp(min=value or 0.0))
        return {first: read.hull(range(rank) if dims is None else dims)}

    def _bound(self, source: fx.Node, side: str, read: Mapping[fx.Node, Range]) -> Any:
        """A bound of an operand in the example's shape, or the operand itself where it is no such tensor."""
        known, found = source.meta.get("val"), read.get(source, self.values.get(source))
        if isinstance(found, Range) and isinstance(known, Tensor):
            if not known.numel():
                raise _NoBound  # at another size there is something
            return getattr(found, side).expand(known.shape)
        if isinstance(found, list):
            shapes = [part.shape for part in pytree.tree_leaves(known)]
            return [getattr(part, side).expand(shape) for part, shape in zip(found, shapes, strict=True)]
        if isinstance(known, bool | int | torch.Size):
            return known
        held = self.program.tensors.get(str(source.target)) if source.op == "get_attr" else None
        if held is not None and not held.is_floating_point():
            return held  # an index
        raise _NoBound

    def _elementwise(self, node: fx.Node) -> Range | None:
        """Where all that is read is constant, what is given is, too."""
        operands = [self.of(source) for source in node.all_input_nodes]
        if not operands or any(each is None for each in operands) or not isinstance(node.meta.get("val"), Tensor):
            return None
        read = [each for each in operands if each is not None]
        value = self.run(node, dict(zip(node.all_input_nodes, (each.low for each in read), strict=True)))
        fixed = read[0].fixed
        for each in read[1:]:
            fixed = fixed & each.fixed
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != fixed.ndim:
            return None
        return Range(value.masked_fill(~fixed, -torch.inf), value.masked_fill(~fixed, torch.inf))

    def run(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Any:
        """What a node gives of these values, which it may not write into; None where it fails on them."""
        own = {source: value.clone() for source, value in values.items()}
        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), own.__getitem__)
            return self.interpreter.target(node)(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError):
            return None


_KEEP_ALL: Final = words("view reshape flatten unflatten expand broadcast_to repeat tile")
"""Of what gives all elements that it reads, whatever the sizes are."""


def _has_tensors(node: fx.Node) -> bool:
    return any(isinstance(part, Tensor) for part in pytree.tree_leaves(node.meta.get("val")))


def _indexed_by(index: Any, rank: int, sizes: set[fx.Node]) -> list[int] | None:
    """The dimensions of which an index takes what these nodes say; None where that can't be told."""
    entries, found, dim = list(index) if isinstance(index, list | tuple) else [index], list[int](), 0
    taking = sum(each is not None and each is not Ellipsis for each in entries)
    for each in entries:
        if each is Ellipsis:
            dim += rank - taking
        elif isinstance(each, slice | int | fx.Node):
            parts = (each.start, each.stop, each.step) if isinstance(each, slice) else (each,)
            found += [dim] if any(part in sizes for part in parts if isinstance(part, fx.Node)) else []
            dim += 1
        elif each is not None:
            return None
    return found


class _NoBound(Exception):
    """An operand has no bounds; never leaves this module."""


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _anything(known: Any) -> Any:
    """The ranges of values of which nothing is known."""

    def unbounded(value: Any) -> Any:
        if not _is_real(value):
            return _NONE
        low = torch.full([1] * value.ndim, -torch.inf, dtype=torch.float64)
        return Range(low, -low)

    return [unbounded(part) for part in known] if isinstance(known, list | tuple) else unbounded(known)


def _fits(found: Any, known: Any) -> bool:
    """Whether ranges are those of such a value."""
    if isinstance(found, list):
        return isinstance(known, list | tuple) and len(found) == len(known) and all(map(_fits, found, known))
    if not isinstance(found, Range):
        return not _is_real(known)
    sizes = zip(found.low.shape, found.high.shape, known.shape, strict=False) if _is_real(known) else ()
    same_rank = _is_real(known) and found.low.ndim == found.high.ndim == known.ndim
    return same_rank and all(low in (1, size) and high in (1, size) for low, high, size in sizes)


def _weighted(weight: Tensor, read: Range, groups: int) -> Range:
    """The range of sums of weight * input: [outputs]. The weight is [groups, inputs, kernel..., outputs]."""
    outputs, inputs = weight.shape[-1], weight.shape[1]
    low, high = (bound.reshape(-1).expand(groups * inputs).reshape(groups, inputs) for bound in (read.low, read.high))
    taps = weight.reshape(groups, inputs, -1, outputs)
    plus, minus = (taps.clamp(**limit).sum(2, dtype=torch.float64) for limit in ({"min": 0}, {"max": 0}))
    if bool((low == -torch.inf).all()) and bool((high == torch.inf).all()):  # the most common case, without products
        none = ~((plus - minus) != 0).any(1).reshape(-1)
        bound = torch.full((groups * outputs,), torch.inf, dtype=torch.float64).masked_fill(none, 0.0)
        return Range(-bound, bound)

    def total(*products: tuple[Tensor, Tensor]) -> Tensor:
        """The sum of matrix times bound; a bound that is infinite counts where the weight isn't zero."""
        found = torch.zeros(groups, outputs, dtype=torch.float64)
        for matrix, bound in products:
            endless = bound.isinf()
            found += torch.einsum("gio,gi->go", matrix, bound.masked_fill(endless, 0.0))
            for sign in (1, -1):
                hit = torch.einsum("gio,gi->go", matrix, (bound == sign * torch.inf).double())
                found += torch.where(hit == 0, 0.0, hit.sign() * sign * torch.inf)
        return found.reshape(-1)

    least, most = total((plus, low), (minus, high)), total((plus, high), (minus, low))
    size = torch.maximum(low.abs(), high.abs())
    size = size.masked_fill(size.isinf(), 0.0)  # at the bounds that are numbers, the others count as zero or not at all
    slack = _ROUNDING * total((plus - minus, size))
    moving = torch.einsum("gio,gi->go", plus - minus, (low != high).double()).reshape(-1) > 0
    return Range(torch.where(moving, least - slack, least), torch.where(moving, most + slack, least))


def _puts_zeros(conv: Any) -> bool:
    """Whether a convolution reads zeros around what it reads."""
    if conv.padding_mode != "zeros":
        return False
    amounts = conv.padding if isinstance(conv.padding, tuple) else conv._reversed_padding_repeated_twice
    return conv.padding != "valid" and any(amounts)


# -- rules -------------------------------------------------------------------------------------------------------------

_Rule = Callable[[_Ranges, fx.Node, Any], Range | None]


def _option(node: fx.Node, module: Any, place: int, name: str, default: Any = None) -> Any:
    """An option of a module, or of a function."""
    return argument(node, place, name, default) if module is None else getattr(module, name, default)


def _never_falls(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """An activation that never falls gives the bounds of what it gives."""
    read = found.first(node)
    if read is None or len(node.all_input_nodes) != 1:
        return None
    source = node.all_input_nodes[0]
    bounds = [found.run(node, {source: bound}) for bound in (read.low, read.high)]
    return Range(*bounds) if all(map(_is_real, bounds)) else None


def _if_positive(name: str, default: float) -> _Rule:
    """The rule of an activation that never falls where an option isn't negative."""

    def rule(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
        slope = _option(node, module, 1, name, default)
        return _never_falls(found, node, module) if isinstance(slope, int | float) and slope >= 0 else None

    return rule


def _softplus(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """It never falls, but where it becomes a line: by less than rounding, unless that is told to be early."""
    threshold = _option(node, module, 2, "threshold", 20.0)
    late = isinstance(threshold, int | float) and threshold >= _LATE
    return _if_positive("beta", 1.0)(found, node, module) if late else None


def _dips_to(least: float) -> _Rule:
    """The rule of an activation that falls from 0 to `least`, and rises from there."""

    def rule(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
        read = found.first(node)
        if read is None or len(node.all_input_nodes) != 1:
            return None
        source = node.all_input_nodes[0]
        low, high = (found.run(node, {source: bound}) for bound in (read.low, read.high))
        if not (_is_real(low) and _is_real(high)):
            return None
        low, high = low.masked_fill(read.low == -torch.inf, 0.0), high.masked_fill(read.high == torch.inf, torch.inf)
        still = read.fixed | ((high == 0) & (read.high < _DIPS))  # left of the dip it rises towards 0 as inputs fall
        low, most = torch.where(still, high, least), torch.where(still, high, torch.maximum(low, high))
        return Range(low, most)

    return rule


def _as_it_is(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    return found.first(node)


def _dropped(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """Dropout as a function drops in evaluation mode, too, where it is told to."""
    drops = module is None and argument(node, 2, "training", True) is not False
    return _anything(node.meta["val"]) if drops else found.first(node)


def _any(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """Another value each time, whatever is read."""
    return _anything(node.meta["val"])  # type: ignore[no-any-return]


def _share(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """Between 0 and 1."""
    zero = torch.zeros([1] * node.meta["val"].ndim, dtype=torch.float64)
    return Range(zero, zero + 1)


def _of_two(run: Callable[[Range, Range], Range]) -> _Rule:
    """The rule of an operation on two operands, tensors or numbers, without options."""

    def rule(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
        if module is not None or node.kwargs or len(node.args) != 2:
            return None
        one, other = (found.of(arg) for arg in node.args)
        return None if one is None or other is None else run(one, other)

    return rule


def _product(one: Range, other: Range) -> Range:
    shape = np.broadcast_shapes(*(bound.shape for each in (one, other) for bound in (each.low, each.high)))
    every = torch.stack([(a * b).expand(shape) for a in (one.low, one.high) for b in (other.low, other.high)])
    every = every.nan_to_num(0.0, torch.inf, -torch.inf)  # zero times what is endless, but a number
    return Range(every.amin(0), every.amax(0))


def _quotient(one: Range, other: Range) -> Range:
    fine = other.fixed & (other.low != 0)
    inverse = torch.where(fine, 1 / other.low, 0.0)
    found = _product(one, Range(inverse, inverse))
    return Range(found.low.masked_fill(~fine, -torch.inf), found.high.masked_fill(~fine, torch.inf))


def _negated(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    read = found.first(node)
    return None if read is None else Range(-read.high, -read.low)


def _over_dims(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """A mean or an extreme over some dimensions lies where these do."""
    read, dims = found.first(node), argument(node, 1, "dim")
    if read is None or len(node.all_input_nodes) != 1 or not isinstance(node.meta["val"], Tensor):
        return None
    rank = read.low.ndim
    dims = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    over = sorted({dim % rank for dim in dims}, reverse=True) if rank else []
    read = read.hull(over)
    if node.meta["val"].ndim == rank:
        return read
    for dim in over:
        read = read.each(lambda bound, dim=dim: bound.squeeze(dim))  # type: ignore[misc]
    return read


def _sum(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """A sum of zeros is zero; any other depends on how many there are."""
    read = _over_dims(found, node, module)
    if read is None:
        return None
    return Range(torch.where(read.zero, 0.0, -torch.inf), torch.where(read.zero, 0.0, torch.inf))


def _pooled(rank: int, *, averages: bool) -> _Rule:
    """A mean or the largest of a window lies where the window's values do, and zeros around these."""

    def rule(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
        read = found.first(node)
        if read is None or not isinstance(node.meta["val"], Tensor) or read.low.ndim != node.meta["val"].ndim:
            return None
        read = read.hull(range(read.low.ndim - rank, read.low.ndim))
        if not averages:
            return read
        if _option(node, module, 6, "divisor_override") is not None:
            return None
        padding = _option(node, module, 3, "padding", 0)
        counted = _option(node, module, 5, "count_include_pad", True)
        return read.with_zero() if counted and padding not in (0, (0,) * rank, [0] * rank) else read

    return rule


def _resized(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """What is between pixels lies between their values."""
    read = found.first(node)
    if read is None or _option(node, module, 3, "mode", "nearest") == "bicubic":
        return None
    return read.hull(range(2, read.low.ndim))


def _normed(found: _Ranges, node: fx.Node, module: Any) -> Range | None:
    """A batch norm by running statistics is a line; what other norms give before their scale and shift is bounded where
    the number of elements that they count is known."""
    name = type(module).__name__
    scale, shift = (_vector(getattr(module, key, None), default) for key, default in (("weight", 1.0), ("bias", 0.0)))
    rank, read = node.meta["val"].ndim, found.first(node)
    if read is None:
        return None
    if name in ("LayerNorm", "RMSNorm"):
        shape = tuple(module.normalized_shape)
        count = torch.Size(shape).numel()
        most = (max(count - 1, 0) if name == "LayerNorm" else count) ** 0.5 * (1 + _ROUNDING)
        bound = torch.full([1] * rank, most, dtype=torch.float64)
        scale, shift = (part.reshape([1] * (rank - part.ndim) + list(part.shape)) for part in (scale, shift))
    else:
        scale, shift = (part.reshape([1, -1] + [1] * (rank - 2)) if part.ndim else part for part in (scale, shift))
        if getattr(module, "running_mean", None) is not None:
            mean, var = (
                part.detach().double().reshape([1, -1] + [1] * (rank - 2))
                for part in (module.running_mean, module.running_var)
            )
            scale = scale * torch.rsqrt(var + module.eps)
            shift = shift - mean * scale
            return _line(read, scale, shift)
        bound = torch.full([1] * rank, torch.inf, dtype=torch.float64)
    return _line(Range(-bound, bound), scale, shift)


def _line(read: Range, scale: Tensor, shift: Tensor) -> Range:
    found = _product(read, Range(scale, scale))
    return Range(found.low + shift, found.high + shift)


def _vector(tensor: Tensor | None, default: float) -> Tensor:
    return torch.tensor(default, dtype=torch.float64) if tensor is None else tensor.detach().double()


_NEVER_FALL: Final = words(
    "relu relu6 sigmoid tanh hardsigmoid hardtanh selu logsigmoid clamp clip clampmin clampmax exp erf"
)
_SAME: Final = words("""
    identity contiguous clone detach alias float double
""")
_DROPOUTS: Final = words("dropout dropout1d dropout2d dropout3d alphadropout featurealphadropout featuredropout")
_RULES: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(_NEVER_FALL, _never_falls),
    "leakyrelu": _if_positive("negative_slope", 0.01),
    **dict.fromkeys(("elu", "celu"), _if_positive("alpha", 1.0)),
    "softplus": _softplus,
    "gelu": _dips_to(-0.171),
    "silu": _dips_to(-0.279),
    "hardswish": _dips_to(-0.376),
    "mish": _dips_to(-0.31),
    **dict.fromkeys(_SAME, _as_it_is),
    **dict.fromkeys(_DROPOUTS, _dropped),
    **dict.fromkeys(("randlike", "randnlike", "emptylike", "rrelu"), _any),
    **dict.fromkeys(("softmax", "softmax2d"), _share),
    **dict.fromkeys(("add", "iadd"), _of_two(lambda a, b: Range(a.low + b.low, a.high + b.high))),
    **dict.fromkeys(("sub", "isub"), _of_two(lambda a, b: Range(a.low - b.high, a.high - b.low))),
    **dict.fromkeys(("mul", "imul"), _of_two(_product)),
    **dict.fromkeys(("div", "truediv", "itruediv"), _of_two(_quotient)),
    "maximum": _of_two(lambda a, b: Range(torch.maximum(a.low, b.low), torch.maximum(a.high, b.high))),
    "minimum": _of_two(lambda a, b: Range(torch.minimum(a.low, b.low), torch.minimum(a.high, b.high))),
    "neg": _negated,
    **dict.fromkeys(("mean", "amax", "amin"), _over_dims),
    "sum": _sum,
    **{
        f"{kind}pool{rank}d": _pooled(rank, averages=kind == "avg")
        for rank in (1, 2, 3)
        for kind in ("max", "avg", "adaptivemax", "adaptiveavg")
    },
    **dict.fromkeys(("interpolate", "upsample", "upsamplingnearest2d", "upsamplingbilinear2d"), _resized),
    **{f"{kind}norm{rank}d": _normed for kind in ("batch", "instance") for rank in (1, 2, 3)},
    **dict.fromkeys(("layernorm", "rmsnorm", "groupnorm", "syncbatchnorm"), _normed),
    **{
        f"{kind}pad{rank}d": lambda found, node, module: found.moved(node)
        for kind in ("zero", "constant", "reflection", "replication", "circular")
        for rank in (1, 2, 3)
    },
}
"""By the name of a function, method or module, in small letters without underscores."""
