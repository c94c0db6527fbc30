"""Runs the labels through a program, each node by the rule of its operation, and holds what these rules share.

    kind         operations                      what its rule does                                  in ops/
    elementwise  relu, add, mul, where           unifies its operands                                elementwise
    plain        size, shape, device             gives no tensor, so no labels                       elementwise
    writer       conv, linear, embedding, lstm   binds its input axis to what arrives, writes fresh  conv, linear, rnn
    carrier      batch norm, prelu               binds its axes to what arrives, passes it on        norm
    contraction  matmul, einsum, attention       unifies what it contracts                           matmul
    local        pooling, interpolation          mixes trailing dimensions, passes the rest          pooling, image
    reduction    mean, softmax, sort, fft        adds up or pins the labels along what it mixes      reduction, fft
    distance     cdist, pairwise_distance        unifies its operands' channels, which it adds up    distance
    movement     reshape, cat, expand, roll      the operation itself is executed on the labels      reshape, concat,
                                                                                                     expand, shuffle
    index        slices, gather, x[i] = y        the same; what a tensor of positions picks from     indexing, setitem,
                                                 stays                                               gather_scatter

An operation without a rule pins whatever reaches it: not knowing an operation costs prunable channels, never
correctness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, elements, op_name, words
from prunec.compiler.ir.program import Axis, IntArray
from prunec.compiler.labels.broadcast import pin_loose
from prunec.compiler.labels.flow import Fields, Flow, Labelled, Pair, Product
from prunec.compiler.labels.registry import row_for


def describe(flow: Flow, node: fx.Node) -> str:
    """A node's operation in words, for reasons."""
    if node.op == "call_module":
        return f"{node.target} ({type(flow.program.state[str(node.target)]).__name__})"
    return f"{op_name(node)} at {node.name}"


def run_rules(flow: Flow) -> None:
    """Let the labels flow through the program, from inputs to output; what the rules find is in `flow` then."""
    watched, told = bool(flow.program.granularity.incoming), flow.remarked()
    for node in flow.program.graph.nodes:
        if node not in flow.values:  # a shuffle that is divided freely sets those of all its nodes
            if node in flow.incoming:
                with flow.read_by(node):
                    found = label(flow, node)
            else:
                found = label(flow, node)
            flow.values[node] = found
        if watched:
            before, told = told, flow.remarked()
            if told != before:
                flow.mixed[node] = flow.remarks(before)
    _join_names(flow)
    _tell_weights(flow)


def label(flow: Flow, node: fx.Node) -> Labelled:
    """The labels that a node carries, by the rule of its operation."""
    if node.op == "placeholder":
        return () if isinstance(node.meta["val"], torch.Tensor) else None
    if node.op == "get_attr":
        return _tensor(flow, node)
    if node.op == "output":
        for value in node.all_input_nodes:
            found = flow.values[value]
            if value in flow.classes:
                found = tuple(labels for labels in found if labels.size != labels.shape[1])
            pin_value(flow, found, "reaches the model's output")
        return None
    row = row_for(flow, node)
    if flow.loose and not (row and row.carries_copies):
        for value in node.all_input_nodes:
            pin_loose(flow, flow.fields(value), f"is one of several copies that {describe(flow, node)} reads")
    alone = node.op == "call_module" and not isinstance(argument(node, 0, "input"), fx.Node)
    return unknown(flow, node) if row is None or alone else row.rule(flow, node)


def _tensor(flow: Flow, node: fx.Node) -> Labelled:
    """The labels of a parameter or buffer that is itself a value: fresh ones along each dimension. One of whole numbers
    holds positions or counts, so it has none, unless it is read as a mask alone."""
    name = str(node.target)
    value = flow.program.state.get(name)
    if not isinstance(value, torch.Tensor):
        return None
    if _is_grouped(flow, name) or not (_is_boolean_or_real(value) or all(_is_mask(n) for n in _readers(flow, name))):
        return ()
    role = "writer" if isinstance(value, nn.Parameter) else "buffer"
    fields: Fields = ()
    for dim, size in enumerate(value.shape):
        if size > 1 or Axis(name, dim) in flow.program.origin:
            fields += flow.result(flow.write(Axis(name, dim), size, node, role), value.ndim, dim)
    return fields


def _tell_weights(flow: Flow) -> None:
    """Find the axes along which parameters are weights and nothing else; what they add up can be merged."""
    tensors = flow.program.tensors
    names, readers = Counter(map(id, tensors.values())), dict[str, set[fx.Node]]()
    for node in flow.program.graph.find_nodes(op="get_attr"):
        readers.setdefault(str(node.target), set()).update(node.users)
    for axis, nodes in flow.weights.items():
        alone = names[id(tensors[axis.tensor])] == 1 and axis not in flow.by_module
        if alone and readers[axis.tensor] == set(nodes):
            flow.reading.add(axis)
    flow.counted = [each for each in flow.counted if each.weight not in flow.reading]


def _is_boolean_or_real(value: torch.Tensor) -> bool:
    return value.is_floating_point() or value.is_complex() or value.dtype == torch.bool


def _readers(flow: Flow, name: str) -> Iterable[fx.Node]:
    return (user for node in flow.program.graph.find_nodes(op="get_attr", target=name) for user in node.users)


def _is_mask(node: fx.Node) -> bool:
    """Whether a reader takes whole numbers or truth values for factors or choices (a mask), not for positions."""
    name = "" if node.op in ("call_module", "output") else op_name(node)
    known = node.meta.get("val")
    if name not in _ON_MASKS or not isinstance(known, torch.Tensor):
        return False
    return known.is_floating_point() or all(map(_is_mask, node.users))


_ON_MASKS = frozenset(
    words("""
        add sub mul div truediv where masked_fill eq ne lt le gt ge logical_not logical_and logical_or invert and or to
        float double half bfloat16 type type_as bool view reshape unsqueeze squeeze
    """)
)


def _is_grouped(flow: Flow, name: str) -> bool:
    """Whether a tensor is a grouped convolution's weight; only its module's rule knows how to read dimension 1."""
    return flow.program.groups_along(Axis(name, 1)) > 1


def _join_names(flow: Flow) -> None:
    """A tensor that has several names, or that is read both by its module and as a value, loses the same under each."""
    tensors = flow.program.tensors
    if len(set(map(id, tensors.values()))) < len(tensors):
        names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(id(tensor), []).append(name)
        for twins in names.values():
            if len(twins) > 1:
                _join_axes(flow, twins)
    for node in flow.program.graph.find_nodes(op="get_attr"):
        owner = str(node.target).rpartition(".")[0]
        if isinstance(flow.program.state.get(owner), nn.Module):
            _join_uses(flow, str(node.target))


def _join_axes(flow: Flow, names: Sequence[str]) -> None:
    """Unify the labels of tied tensors, dimension by dimension; pin them where the uses are bound differently."""
    for dim in range(flow.program.tensors[names[0]].ndim):
        bound = [flow.bindings[axis] for axis in (Axis(name, dim) for name in names) if axis in flow.bindings]
        if len(bound) == len(names) and len({binding.labels.size for binding in bound}) == 1:
            flow.pairs += [Pair(bound[0].labels, other.labels, other.cause) for other in bound[1:]]
        else:
            flow.pin_all((b.labels for b in bound), f"is shared by {' and '.join(names)}, which use it differently")


def _join_uses(flow: Flow, name: str) -> None:
    """Pin what a tensor's use as a value would remove along a dimension that its module doesn't bind."""
    grouped = _is_grouped(flow, name)
    for dim in range(flow.program.tensors[name].ndim):
        axis = Axis(name, dim)
        if axis in flow.bindings and (grouped or axis not in flow.by_module):
            flow.pin(flow.bindings[axis].labels, f"is {axis}, which its module reads in another way")


def pin_value(flow: Flow, value: Labelled, reason: str) -> None:
    """Pin every label of a value, or of a tuple of values."""
    if isinstance(value, tuple):
        flow.pin_all(value, reason)
    elif isinstance(value, list):
        for part in value:
            pin_value(flow, part, reason)


def unknown(flow: Flow, node: fx.Node) -> Labelled:
    """The labels of an operation without a rule: none. Nothing that reaches it may be removed."""
    for value in node.all_input_nodes:
        pin_value(flow, flow.values[value], f"read by unknown op {describe(flow, node)}")
    return bare(node.meta.get("val"))


def bare(known: object) -> Labelled:
    """The labels of a value that has none: `()` for a tensor, a list for a tuple of such, None for anything else."""
    if isinstance(known, torch.Tensor):
        return ()
    parts = [bare(part) for part in known] if isinstance(known, tuple | list) else []
    return parts if any(part is not None for part in parts) else None


def subject(flow: Flow, node: fx.Node) -> Any:
    """The one operand of an operation. Labels that reach another of its arguments (a grid, an index) are pinned."""
    value = argument(node, 0, "input")
    for other in node.all_input_nodes:
        if other is not value:
            pin_value(flow, flow.values[other], f"is an argument of {describe(flow, node)}")
    return value


def dims_of(flow: Flow, given: object, rank: int) -> tuple[int, ...]:
    """The dimensions that a `dim` argument names, from 0 on; all of them for None, an empty list, or a flag in its
    place."""
    given = flow.constant(given)
    if isinstance(given, tuple | list) and given:
        return tuple(sorted(int(flow.constant(d)) % max(rank, 1) for d in given))
    if isinstance(given, int) and not isinstance(given, bool):
        return (given % max(rank, 1),) if rank else ()
    return tuple(range(rank))


def without_labels(flow: Flow, node: fx.Node) -> Labelled:
    """The labels of an operation that gives a number or a size: none. One that gives tensors counts as unknown."""
    known = bare(node.meta.get("val"))
    return known if known is None else unknown(flow, node)


# -- what it costs -------------------------------------------------------------------------------------------------


def count_macs(flow: Flow, node: fx.Node, total: int, widths: Iterable[IntArray]) -> None:
    """Note that a node takes `total` multiply-accumulates, in proportion to how much of each of the widths is kept."""
    widths = tuple(flow.flat(w) if w.size == max(w.shape) else w for w in widths)
    flow.macs.append(Product(node.name, total / elements([w.size for w in widths]), widths))
