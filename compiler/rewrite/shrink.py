"""Removing units from a program: parameters are gathered, module attributes and literal sizes follow.

    conv1  Conv2d(3, 8)    weight [8, 3, 3, 3]      ->  Conv2d(3, 6)   weight[keep]
    bn1    BatchNorm2d(8)                           ->  BatchNorm2d(6) all four vectors[keep]
    view   %x.view(-1, 512)                         ->  %x.view(-1, 384)
    fc     Linear(512, 10) weight [10, 512]         ->  Linear(384, 10) weight[:, keep]

What is kept keeps its order, and an operation that moves data commutes with the removal: moving what is kept gives what
is kept of the moved value. So the labels that arrive at a reader are the old ones without those that were removed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.ir.gc_pause import gc_paused
from prunec.compiler.ir.graph import is_impure
from prunec.compiler.ir.modules import clone_module, module_tensors
from prunec.compiler.ir.ops import argument, shape_of_argument
from prunec.compiler.ir.program import Axis, BoolArray, Edge, IntArray, Program, State
from prunec.compiler.labels.registry import decides_sizes, rewrite_for, value_sizes
from prunec.compiler.rewrite.gather import (
    drop_former_selections,
    drop_idle_picks,
    gather_at,
    pick_all,
    read_selected,
    torn_apart,
)
from prunec.compiler.rewrite.layers import Gathering, slim_module
from prunec.compiler.rewrite.slim_view import View


@gc_paused()
def remove_units(program: Program, keep: BoolArray, analysis: Analysis | None = None) -> Program:
    """The program without the units that `keep` ([units], see `Analysis.free`) leaves out. Shares what doesn't change.

    The caller makes sure that only free units go, and that no group and no cover is emptied. Channels that no reader
    keeps go by themselves (`Analysis.settled`). The units are those of `analysis`, of this program, where one is given.
    """
    analysis = analysis or analyse(program)
    view = View(analysis, analysis.settled(keep))
    kept = _kept_positions(analysis, view.stays)
    if not kept:
        return program
    graph = _slim_graph(program, view)
    state = _with_sizes(program, _read_state(_slim_state(program, kept), program.graph, graph), view) | view.indices
    origin = dict(program.origin)
    for axis, positions in kept.items():
        origin[axis] = origin[axis][positions] if axis in origin else positions
    return program.derive(graph=graph, state=state, origin=origin)


def removed_positions(analysis: Analysis, keep: BoolArray) -> dict[Axis | Edge, IntArray]:
    """Axis -> the positions that it loses when the units in `keep` stay, in the axis's present numbering; and so for
    what nodes that select by themselves read."""
    keep = analysis.settled(keep)
    everything = {axis: b.labels.size for axis, b in analysis.flow.bindings.items()}
    lost: dict[Axis | Edge, IntArray] = {
        axis: np.setdiff1d(np.arange(everything[axis]), positions, assume_unique=True)
        for axis, positions in _kept_positions(analysis, analysis.stays(keep)).items()
    }
    for entry, _, mine in analysis.flow.selections():
        gone = np.flatnonzero(~analysis.kept(mine, keep))
        if gone.size:
            lost[Edge(entry.node.name, entry.source.name, entry.dim)] = gone
    return lost


def _kept_positions(analysis: Analysis, stays: BoolArray) -> dict[Axis, IntArray]:
    """Axis -> the positions that stay, for every axis that loses any; `stays` is [labels]."""
    known: dict[int, IntArray | None] = {}
    kept: dict[Axis, IntArray] = {}
    for axis, binding in analysis.flow.bindings.items():
        key = id(binding.labels)
        if key not in known:
            mask = stays[binding.labels]
            known[key] = None if mask.all() else np.flatnonzero(mask)
        positions = known[key]
        if positions is not None:
            kept[axis] = positions
    return kept


# -- parameters ----------------------------------------------------------------------------------------------------


def _slim_state(program: Program, kept: Mapping[Axis, IntArray]) -> dict[str, State]:
    """The state with slim tensors and modules, for the positions of each axis that are kept."""
    by_tensor: dict[str, dict[int, IntArray]] = {}
    for axis, positions in kept.items():
        by_tensor.setdefault(axis.tensor, {})[axis.dim] = positions
    state: dict[str, State] = dict(program.state)
    gathering = Gathering()
    for name, value in program.state.items():
        if isinstance(value, nn.Module):
            start = len(name) + 1
            mine = {key[start:]: by_tensor[key] for key, _ in module_tensors(name, value) if key in by_tensor}
            if mine:
                state[name] = slim_module(value, mine, gathering)
        elif name in by_tensor:
            state[name] = gathering.gather(value, by_tensor[name])
    return state


def _read_state(state: dict[str, State], old: fx.Graph, new: fx.Graph) -> dict[str, State]:
    """The state without tensors that only the old graph reads: indices that became literals."""
    before, after = ({str(node.target) for node in graph.find_nodes(op="get_attr")} for graph in (old, new))
    return {name: value for name, value in state.items() if name not in before - after}


def _with_sizes(program: Program, state: dict[str, State], view: View) -> dict[str, State]:
    """The state with the sizes of modules that have no tensor to show them, such as norms without scale and shift."""
    for node in program.graph.find_nodes(op="call_module"):
        module = state[str(node.target)]
        assert isinstance(module, nn.Module), f"{node.target} is called"
        rule = value_sizes(module)
        if rule is None or any(True for _ in module_tensors("", module)):
            continue
        kept = view.kept(node, min(1, len(shape_of_argument(node)) - 1))
        sizes = rule(program.state[str(node.target)], view.shape(node), kept)
        if any(getattr(module, key) != value for key, value in sizes.items()):
            state[str(node.target)] = clone_module(module, **sizes)
    return state


# -- the graph -----------------------------------------------------------------------------------------------------


def _slim_graph(program: Program, view: View) -> fx.Graph:
    """The graph with slim shapes on its nodes, and with the literals and gathers that these shapes need."""
    graph, mapping = program.copy_graph_with_map()
    view.mapping.update(mapping)
    changed: set[fx.Node] = set()
    flow, torn = view.analysis.flow, torn_apart(view)
    inside = {node for found in torn.values() for node in found.inner}
    for old, new in mapping.items():
        if old in inside:
            continue
        view.reader = old
        if old.op == "output":
            _settle_output(old, new, view, changed)
            continue
        known = old.meta.get("val")
        follows = not changed.isdisjoint(old.all_input_nodes)
        if _has_tensor(known) or known is None or old.meta.get("mutates"):  # None: an output, an assignment
            slim = view.meta(flow.values.get(old), known)
            if (follows or slim is not known or old in flow.incoming) and old.op not in ("placeholder", "get_attr"):
                _settle(old, new, view)
                if old in flow.picks:
                    pick_all(old, new, view, mapping)
                read_selected(old, new, view, mapping)
        elif follows and view.numbers.differs(old):
            view.values[old] = slim = view.numbers.slim(old)
        else:
            continue
        if slim is not known or old in view.values:
            changed.add(old)
            new.meta["val"] = slim
    view.reader = None
    drop_former_selections(mapping, view)
    for old, found in torn.items():
        if mapping[old]._erased:
            continue
        gather_at(mapping[old], mapping[found.source], found, view)
    for old in reversed(mapping):
        if old in inside:
            graph.erase_node(mapping[old])
    _drop_idle_numbers(mapping)
    drop_idle_picks(mapping, view)
    _drop_idle_numbers(mapping)
    return graph


def _settle_output(old: fx.Node, new: fx.Node, view: View, changed: set[fx.Node]) -> None:
    """Give the output its slim shapes, where a value that it returns has lost something. A size that the model returns
    stays what it was."""
    if not changed.isdisjoint(old.all_input_nodes):
        _settle(old, new, view)
        new.meta["val"] = pytree.tree_map(lambda x: x.meta["val"] if isinstance(x, fx.Node) else x, new.args[0])


def _settle(old: fx.Node, new: fx.Node, view: View) -> None:
    """Adapt a node's arguments to what is left: by its operation's rewriter, and numbers that were read off sizes.

    A number that is no size to the operation (a divisor, a scale) keeps its old value.
    """
    called = old.op in ("call_function", "call_method")
    numbers = [n for n in old.all_input_nodes if n in view.values] if view.values else ()
    if numbers and not (called and decides_sizes(old)):
        frozen = {view.mapping[n]: view.numbers.frozen(n) for n in numbers}
        new.args = fx.node.map_arg(new.args, lambda n: frozen.get(n, n))
        new.kwargs = fx.node.map_arg(new.kwargs, lambda n: frozen.get(n, n))
    if called and (rewrite := rewrite_for(old)) is not None:
        rewrite(old, new, view)
    elif old.op == "call_module":
        _settle_module(old, new, view)


def _settle_module(old: fx.Node, new: fx.Node, view: View) -> None:
    """Replace a call of `nn.Unflatten` by the function where its sizes change: the module may be called elsewhere,
    too."""
    module = view.analysis.program.state[str(old.target)]
    if not isinstance(module, nn.Unflatten) or view.shape(old) == shape_of_argument(old):
        return
    value = argument(old, 0, "input")
    dim = int(module.dim) % len(shape_of_argument(value))
    sizes = view.shape(old)[dim : dim + len(module.unflattened_size)]
    new.op, new.target = "call_function", torch.unflatten
    new.args, new.kwargs = (argument(new, 0, "input"), dim, sizes), {}


def _drop_idle_numbers(mapping: Mapping[fx.Node, fx.Node]) -> None:
    """Erase nodes that gave sizes or indices which are literals or buffers now."""
    for old, new in reversed(list(mapping.items())):
        idle = not new.users and old.users
        sized = old.op in ("call_function", "call_method") and _gives_no_numbers(old)
        if idle and not new._erased and (sized or old.op == "get_attr"):
            new.graph.erase_node(new)


def _gives_no_numbers(node: fx.Node) -> bool:
    """Whether a node gives sizes, or a tensor of whole numbers or truth values, and does nothing else."""
    known = node.meta.get("val")
    if isinstance(known, torch.Tensor):
        return not (known.is_floating_point() or known.is_complex() or is_impure(node))
    return not _has_tensor(known)


def _has_tensor(value: object) -> bool:
    if type(value) is torch.Tensor:
        return True
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return any(_has_tensor(part) for part in value)
    return isinstance(value, torch.Tensor)
