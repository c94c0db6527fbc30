"""Units that give a constant whatever the input, such as a zeroed filter behind a batch norm: relu(shift).

    conv1.weight[3] = 0   ->   bn1: shift[3] = 0.5   ->   relu: 0.5 at every pixel   ->   conv2 reads 0.5

Removing such a unit drops its constant from what the readers add up, unless it is zero. A unit can only be one if
something sets it apart from the input. Two ways tell:

Proof: the ranges of what its readers see (`ranges.py`), which follow from the weights alone, are single numbers.

Trial: a weight that writes or carries it is zero, and what its readers see is the same whenever the program is run, on
its example and on fresh inputs. A unit that is shut at common inputs alone, such as relu(x - 30), isn't one: so two
more runs add large numbers to whatever an operation gives that depends on the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.groups.analysis import Analysis, Member
from prunec.compiler.groups.axis_rows import zero_rows
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.ops import argument, op_name, words
from prunec.compiler.ir.program import BoolArray, FloatArray, IntArray, Program
from prunec.compiler.ir.random_inputs import fresh_inputs, seeded
from prunec.compiler.verify.interpreter import Interpreter, StepError
from prunec.passes.constants.ranges import ranges

_FAR: Final = 1e3
"""How far values that depend on the input are moved."""
_ROUNDING: Final = 1e-6
"""The relative difference of values that are the same but for rounding."""


def constant_units(analysis: Analysis, keep: BoolArray) -> BoolArray:
    """[units]: which of the units that go (where `keep` is False) give a constant that isn't zero."""
    return constants(analysis, ~keep)[1]


def by_group(analysis: Analysis, units: BoolArray) -> dict[str, int]:
    """Group -> how many of these units, [units], it has, where it has any."""
    counts = {group.name: int(units[group.where].sum()) for group in analysis.groups.values()}
    return {name: count for name, count in counts.items() if count}


def constants(analysis: Analysis, among: BoolArray) -> tuple[BoolArray, BoolArray]:
    """[units], twice: which of the units in `among` give zero wherever they are read, and which another constant."""
    key = f"constants among {np.packbits(among).tobytes().hex()}"  # a pass and its reference both ask
    return analysis.program.cached(key, lambda: _constants(analysis, among))


def _constants(analysis: Analysis, among: BoolArray) -> tuple[BoolArray, BoolArray]:
    zero, other = proven_constants(analysis, among)
    candidates = _without_input(analysis, among & ~zero & ~other)
    if not candidates.any():
        return zero, other
    seen_zero, seen_other = _constant(analysis, candidates)
    return zero | seen_zero, other | seen_other


def proven_constants(analysis: Analysis, among: BoolArray) -> tuple[BoolArray, BoolArray]:
    """`constants`, of those alone that the weights prove to be such."""
    key = f"proven constants among {np.packbits(among).tobytes().hex()}"
    return analysis.program.cached(key, lambda: _proven(analysis, among))


def _proven(analysis: Analysis, among: BoolArray) -> tuple[BoolArray, BoolArray]:
    found = ranges(analysis)
    candidates = np.zeros(analysis.size, dtype=bool)
    for node, its in found.items():
        if bool(its.fixed.any()):
            for labels in analysis.flow.fields(node):
                units = analysis.units(labels)
                here = (units != NO_UNIT) & _everywhere(its.fixed, labels)
                candidates[units[here]] = True
    candidates &= among
    fixed, zero, known = candidates.copy(), candidates.copy(), np.zeros_like(candidates)
    for node in analysis.program.graph.nodes if candidates.any() else ():
        for labels in read_fields(analysis, node, candidates):
            units = analysis.units(labels)
            here = units != NO_UNIT
            known[units[here]] = True
            seen = found.get(node)
            for held, kept in (
                (fixed, None if seen is None else seen.fixed),
                (zero, None if seen is None else seen.zero),
            ):
                bad = here if kept is None else here & ~_everywhere(kept, labels)
                held[units[bad]] = False
    return known & fixed & zero, known & fixed & ~zero


def _everywhere(held: torch.Tensor, labels: IntArray) -> BoolArray:
    """Whether something holds for all of a value's elements that have an element of a field, in the field's shape."""
    dims = [dim for dim, size in enumerate(labels.shape) if size == 1 and held.shape[dim] > 1]
    whole = (~(~held).amax(dims, keepdim=True)) if dims else held
    return np.broadcast_to(whole.cpu().numpy(), labels.shape)


def _without_input(analysis: Analysis, gone: BoolArray) -> BoolArray:
    """[units]: which of the units that go nothing of the input may reach: some weight of theirs is all zeros."""
    program, found = analysis.program, np.zeros(analysis.size, dtype=bool)
    for group in analysis.groups.values():
        if gone[group.where].any():
            for member in group.members:
                if member.role in ("writer", "carrier") and _multiplies(program, member):
                    found[group.start + _zero(program, member)] = True
    return found & gone


def _multiplies(program: Program, member: Member) -> bool:
    """Whether a tensor is a factor: a layer's weight, or a parameter that is itself a value. What is added is none."""
    tensor = member.axis.tensor
    if isinstance(program.state.get(member.axis.owner), nn.Module):
        return tensor.rpartition(".")[2].startswith("weight")
    return not all(_is_added(node) for node in program.graph.find_nodes(op="get_attr", target=tensor))


def _is_added(node: fx.Node) -> bool:
    """Whether all that becomes of a value is that it is added, or laid beside others: a zero in it cuts nothing off."""
    return all(
        op_name(user) in _SUMS or _is_bias(user, node) or (op_name(user) in _MOVES and _is_added(user))
        for user in node.users
    )


def _is_bias(user: fx.Node, node: fx.Node) -> bool:
    """Whether an operation adds the value as its bias, and has no other use for it."""
    place = _BIAS.get(op_name(user))
    if place is None or argument(user, place, "bias") is not node:
        return False
    return [*user.args, *user.kwargs.values()].count(node) == 1


_SUMS: Final = ("add", "sub", "cat", "concat", "stack")
_BIAS: Final = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), 2),
    **dict.fromkeys(("layer_norm", "group_norm"), 3),
    **dict.fromkeys(("batch_norm", "instance_norm"), 4),
}
"""Operation -> the place of its bias among the arguments."""
_MOVES: Final = words(
    "chunk contiguous expand expand_as getitem permute reshape split squeeze transpose unsqueeze view"
)


def _zero(program: Program, member: Member) -> IntArray:
    """Which units of its group have zeros alone in the member's tensor."""
    empty = zero_rows(program, member.axis)
    if not program.tensors[member.axis.tensor].numel() or not empty.any():
        return member.units[:0]
    empty = empty[member.positions]
    return np.setdiff1d(member.units[empty], member.units[~empty])


def _constant(analysis: Analysis, candidates: BoolArray) -> tuple[BoolArray, BoolArray]:
    """[units], twice: whether what the readers see of a candidate is zero, or something else that doesn't depend on the
    input."""
    program, nothing = analysis.program, np.zeros(analysis.size, dtype=bool)
    read = {node: fields for node in program.graph.nodes if (fields := read_fields(analysis, node, candidates))}
    runs = [_seen(program, read, inputs) for inputs in (program.inputs, fresh_inputs(program, None, 1))]
    runs += [_moved(program, read, by) for by in (_FAR, -_FAR)]
    if not all(runs):
        return nothing, nothing  # the model takes no other values than its example's
    known = nothing.copy()
    spread, size = np.zeros(analysis.size), np.zeros(analysis.size)
    for node, fields in read.items():
        first, *others = (run[node] for run in runs)
        for labels in fields:
            units = analysis.units(labels)
            here = units != NO_UNIT
            known[units[here]] = True
            for other in others:
                np.maximum.at(spread, units[here], _largest(first - other, labels)[here])
            np.maximum.at(size, units[here], _largest(first, labels)[here])
    known &= candidates
    return known & (size == 0) & (spread == 0), known & (size > 0) & (spread <= _ROUNDING * size)


class _Moved(Interpreter):
    """An interpreter that moves what differs from the values of another run, node by node, far away from these."""

    def __init__(self, program: Program, by: float) -> None:
        super().__init__(program, torch.float32)
        self.by = by
        self.other: Any = None  # the node's value in the other run

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The node's value, where it is another one than that of the other run, moved."""
        value = super().call(node, args, kwargs)
        own, others = pytree.tree_leaves(value), pytree.tree_leaves(self.other)
        if len(own) != len(others):
            return value
        return pytree.tree_unflatten(map(self._moved, own, others), pytree.tree_structure(value))

    def _moved(self, own: Any, other: Any) -> Any:
        if not (isinstance(own, torch.Tensor) and isinstance(other, torch.Tensor) and own.is_floating_point()):
            return own
        if own.shape != other.shape or torch.equal(own, other):
            return own
        far = other + self.by * (1 + other.abs()) * (1 + torch.rand(other.shape).to(other))
        same = (own == other) | ((own - other).abs() <= _ROUNDING * other.abs())
        return torch.where(same, own, far)


def _moved(program: Program, nodes: Mapping[fx.Node, object], by: float) -> dict[fx.Node, torch.Tensor]:
    """`_seen` on fresh inputs, where all that depends on these is moved."""
    first, second, found = Interpreter(program, torch.float32), _Moved(program, by), dict[fx.Node, torch.Tensor]()
    moved = second.steps(fresh_inputs(program, None, 1))
    try:
        with seeded(0):
            for node, second.other in first.steps(program.inputs):
                value = next(moved)[1]
                if node in nodes:
                    found[node] = value
    except StepError:
        return {}
    return found


def _seen(program: Program, nodes: Mapping[fx.Node, object], inputs: tuple[object, ...]) -> dict[fx.Node, torch.Tensor]:
    """The values of some nodes; none where the program fails on these inputs."""
    try:
        with seeded(0):
            return {node: value for node, value in Interpreter(program, torch.float32).steps(inputs) if node in nodes}
    except StepError:
        return {}


def read_fields(analysis: Analysis, node: fx.Node, candidates: BoolArray) -> tuple[IntArray, ...]:
    """The fields of a node with candidates that some reader of it doesn't pass on: there the channel is read."""
    return tuple(labels for labels, _, _ in reads(analysis, node, candidates))


def reads(
    analysis: Analysis, node: fx.Node, candidates: BoolArray
) -> Iterator[tuple[IntArray, set[int], list[fx.Node]]]:
    """(a field of a node, the candidates in it, those who read some of them), where there are any who do."""
    if not isinstance(node.meta.get("val"), torch.Tensor) or node.op == "get_attr":
        return
    for labels in analysis.flow.fields(node):
        mine = _units_in(analysis, labels, candidates)
        users = [user for user in node.users if not mine.issubset(_passed_on(analysis, user, candidates))]
        if mine and users:
            yield labels, mine, users


def _units_in(analysis: Analysis, labels: IntArray, candidates: BoolArray) -> set[int]:
    units = np.unique(analysis.units(labels))
    units = units[units != NO_UNIT]
    return set(units[candidates[units]].tolist())


def _passed_on(analysis: Analysis, node: fx.Node, candidates: BoolArray) -> Iterator[int]:
    labelled = analysis.flow.values.get(node)
    stack = [labelled]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, tuple):
            for labels in value:
                yield from _units_in(analysis, labels, candidates)


def _largest(value: torch.Tensor, labels: IntArray) -> FloatArray:
    """The largest magnitude among a value's elements for each element of a field, in the field's shape."""
    dims = [dim for dim, size in enumerate(labels.shape) if size == 1]
    wide = value.detach().abs().double()
    return np.asarray((wide.amax(dims, keepdim=True) if dims else wide).cpu().numpy())
