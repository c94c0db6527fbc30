"""Layers whose weights fall into blocks become grouped layers.

    conv2.weight [4, 4]    columns 0 1 2 3        conv2 = Conv2d(4, 4, groups=2)
                  row 0    a . b .                rows 0 2 read columns 0 2, rows 1 3 read 1 3
                  row 1    . c . d
                  row 2    e . f .                the channels of conv1 change places: 0 2 1 3
                  row 3    . g . h                those of conv2 too, and conv3's columns with them

A grouped layer reads neighbours and writes neighbours. So its inputs and outputs are put in order: the units of a group
that every operation treats alike change places in all tensors at once, which costs nothing. Where units may not (the
model's input and output, channels that a norm counts) or have been put in another order for another layer, an
`index_select` before or behind the layer does it. Where the groups of one layer are parts of another's, one order
serves both.

A linear layer becomes a product of matrices, one a group: x.unflatten(-1, (groups, -1)).transpose(-3, -2) @ blocks. A
convolution of one pixel would say the same, but runtimes multiply each sample by itself then.

Functions whose weight is a parameter (`F.conv2d(x, w)`, `F.linear(x, w)`, `x @ w`) become grouped in the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn

from prunec.compiler.groups.analysis import Analysis, Group, Member, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.interchangeable import kinds
from prunec.compiler.ir.modules import clone_module, module_tensors
from prunec.compiler.ir.ops import argument, op_name
from prunec.compiler.ir.program import Axis, BoolArray, IntArray, Program, State
from prunec.compiler.ir.sizes import valued
from prunec.compiler.rewrite.merge import partners

Move = Callable[[Tensor], Tensor]
"""Takes a tensor of an old parameter's shape to the new one's: the parameter itself, its mask, its momentum."""


@dataclass(frozen=True)
class Blocks:
    """How a layer's weight falls into groups."""

    reads: Axis
    writes: Axis
    groups: int
    columns: IntArray
    """The group of each input."""
    rows: IntArray
    """The group of each output."""


@dataclass(frozen=True)
class Regrouped:
    """A program with grouped layers."""

    program: Program
    moved: Mapping[str, tuple[str, Move]]
    """Old parameter -> its new name, and what takes it there; those that stay as they were aren't named."""
    gathers: Mapping[str, int]
    """Layer -> how many gathers it has needed."""


# -- which blocks there are ----------------------------------------------------------------------------------------


def parts_of(program: Program, axis: Axis) -> list[IntArray]:
    """The positions of an axis that stay together, in the order of the first: those of one unit, such as the pixels of
    a channel behind a flatten. Single positions where units aren't equally large, or some position has none."""
    analysis, size = analyse(program), program.tensors[axis.tensor].shape[axis.dim]
    binding = analysis.flow.bindings.get(axis)
    single = list(np.arange(size)[:, None])
    if binding is None or binding.labels.size != size:
        return single
    units = analysis.units(binding.labels).ravel()
    names, first, counts = np.unique(units, return_index=True, return_counts=True)
    if (units == NO_UNIT).any() or counts.min() != counts.max():
        return single
    order = np.argsort(first, kind="stable")
    return [np.flatnonzero(units == unit) for unit in names[order]]


def find_blocks(program: Program, reads: Axis, writes: Axis, groups: int | None = None) -> Blocks | None:
    """The groups that the non-zeros of a weight fall into: as many as there can be, or just so many. None where they
    don't.

    Rows and columns that hold zeros alone fill groups up. To fill them is a packing problem: the largest pieces go
    first, each where it fits, and what that doesn't solve isn't found.
    """
    weight = program.tensors[writes.tensor].detach()
    matrix = weight.movedim((writes.dim, reads.dim), (0, 1)) != 0
    support = matrix.reshape(*matrix.shape[:2], -1).any(2).numpy(force=True)
    rows, columns = parts_of(program, writes), parts_of(program, reads)
    found = _found(support, rows, columns, groups)
    if found is None and len(rows) + len(columns) < sum(support.shape):  # a gather tears units apart
        rows, columns = (list(np.arange(size)[:, None]) for size in support.shape)
        found = _found(support, rows, columns, groups)
    return None if found is None else Blocks(reads, writes, *found)


def _found(
    support: BoolArray, rows: list[IntArray], columns: list[IntArray], groups: int | None
) -> tuple[int, IntArray, IntArray] | None:
    """How many groups there are, and that of each column and row, where parts of rows and columns stay together."""
    of_row, of_column = np.empty(len(support), dtype=np.int64), np.empty(support.shape[1], dtype=np.int64)
    for numbers, parts in ((of_row, rows), (of_column, columns)):
        for number, part in enumerate(parts):
            numbers[part] = number
    first, second = support.nonzero()
    edges = (of_row[first], len(rows) + of_column[second])
    size = len(rows) + len(columns)
    _, piece = connected_components(coo_array((np.ones(len(first)), edges), shape=(size, size)), directed=False)
    total = int(piece.max()) + 1
    held = np.stack([np.bincount(p, minlength=total) for p in (piece[: len(rows)], piece[len(rows) :])], 1)
    for number in _numbers(int(np.gcd(len(rows), len(columns))), groups):
        group = _packed(held, np.array([len(rows), len(columns)]) // number, number)
        if group is not None:
            return number, group[piece[len(rows) :]][of_column], group[piece[: len(rows)]][of_row]
    return None


def _numbers(shared: int, groups: int | None) -> list[int]:
    """How many groups there may be, the most first."""
    found = [number for number in range(shared, 1, -1) if shared % number == 0]
    return found if groups is None else [number for number in found if number == groups]


def _packed(held: IntArray, room: IntArray, groups: int) -> IntArray | None:
    """The group of each piece, [pieces]; None where they don't fit. `held` is the rows and columns of pieces,
    [pieces, 2], `room` those of a group."""
    if (held > room).any():
        return None
    left = np.tile(room, (groups, 1))
    group = np.empty(len(held), dtype=np.int64)
    for piece in np.lexsort((-held.min(1), -held.sum(1))):
        fits = (left >= held[piece]).all(1)
        if not fits.any():
            return None
        group[piece] = int(fits.argmax())
        left[group[piece]] -= held[piece]
    return group


# -- the order of units --------------------------------------------------------------------------------------------


@dataclass
class _Orders:
    """In which order the units of groups are to stand. A group that a layer relies on is in `found`, and stays."""

    analysis: Analysis
    kind: IntArray
    found: dict[str, IntArray] = field(default_factory=dict)
    """Group -> for each place, the old unit that comes there."""
    wishes: dict[str, list[IntArray]] = field(default_factory=dict)
    """Group -> for each layer that reads or writes it, the layer's group of every unit."""

    @staticmethod
    def of(program: Program, layers: Iterable[Blocks]) -> _Orders:
        """No order yet; what all layers would like to be together is known."""
        analysis = analyse(program)
        made = _Orders(analysis, kinds(analysis))
        every = list(layers)
        made.wishes = made._wishes((blocks, np.arange(blocks.groups)) for blocks in every)
        made.wishes = made._wishes([(blocks, made.numbers(blocks)) for blocks in every])
        return made

    def _wishes(self, layers: Iterable[tuple[Blocks, IntArray]]) -> dict[str, list[IntArray]]:
        """Group -> the groups that layers see in it, as these are numbered."""
        found: dict[str, list[IntArray]] = {}
        for blocks, number in layers:
            for axis, groups in ((blocks.reads, blocks.columns), (blocks.writes, blocks.rows)):
                member = self.member(axis)
                if member is not None:
                    found.setdefault(member[0], []).append(number[groups][self.first(member)])
        return found

    def first(self, member: tuple[str, Member]) -> IntArray:
        """For each unit of a group, the first position that it has along an axis."""
        name, axis = member
        found = np.full(self.analysis.groups[name].size, axis.positions.size)
        np.minimum.at(found, axis.units, axis.positions)
        return found

    def numbers(self, blocks: Blocks) -> IntArray:
        """Group of a layer -> its number, so that other layers' larger groups, made of several of these, are whole."""
        keys = []
        for axis, groups in ((blocks.reads, blocks.columns), (blocks.writes, blocks.rows)):
            member = self.member(axis)
            mine = np.zeros(0, dtype=np.int64) if member is None else groups[self.first(member)]
            for wish in [] if member is None else self.wishes[member[0]]:
                pairs = np.unique(np.stack([mine, wish]), axis=1)
                if pairs.shape[1] == blocks.groups > len(np.unique(wish)):
                    keys.append(pairs[1])
        return np.argsort(np.lexsort((_by_appearance(blocks.columns), *reversed(keys))))

    def member(self, axis: Axis) -> tuple[str, Member] | None:
        """The group whose units an axis has, all of them, all alike, and nothing else; None where it isn't so."""
        binding = self.analysis.flow.bindings.get(axis)
        if binding is None:
            return None
        units, groups = self.analysis.units(binding.labels).ravel(), self._groups(axis)
        if (units == NO_UNIT).any() or len(groups) != 1:
            return None
        group = groups[0]
        mine = self.kind[group.where]
        counts = np.bincount(units - group.start, minlength=group.size)
        if (counts != counts[0]).any() or (mine != mine[0]).any() or mine[0] == NO_UNIT:
            return None
        return group.name, Member(axis, binding.role, binding.cause, np.arange(units.size), units - group.start)

    def is_open(self, axis: Axis) -> bool:
        """Whether the order along an axis may still be chosen."""
        member = self.member(axis)
        return member is not None and member[0] not in self.found

    def now(self, axis: Axis) -> IntArray:
        """For each position of an axis, the old position that comes there."""
        binding = self.analysis.flow.bindings.get(axis)
        if binding is None:
            return np.arange(self.analysis.program.size(axis))
        return self._places(axis, self.analysis.units(binding.labels).ravel())

    def arrange(self, axis: Axis, of_position: IntArray) -> IntArray:
        """Order the axis's units by the groups of their positions, if the order is open; gives the groups as they stand
        then. From now on, all units along the axis stay where they are."""
        member = self.member(axis)
        if member is not None and member[0] not in self.found:
            name, mine = member[0], of_position[self.first(member)]
            self.found[name] = np.lexsort(
                (*reversed(self.wishes.get(name, [])), mine)
            )  # within groups, others' smaller
        for group in self._groups(axis):
            self.found.setdefault(group.name, np.arange(group.size))
        return of_position[self.now(axis)]

    def _groups(self, axis: Axis) -> list[Group]:
        """The groups whose units an axis has."""
        binding = self.analysis.flow.bindings.get(axis)
        units = np.zeros(0, dtype=np.int64) if binding is None else self.analysis.units(binding.labels).ravel()
        groups = list(self.analysis.groups.values())
        return [groups[number] for number in np.unique(self.analysis.group_of[units[units != NO_UNIT]])]

    def sources(self) -> dict[Axis, IntArray]:
        """Axis -> for each position, the old one that comes there; those that stay in order are left out."""
        sources = {}
        for axis, binding in self.analysis.flow.bindings.items():
            if axis in self.analysis.flow.by_group:
                continue
            places = self._places(axis, self.analysis.units(binding.labels).ravel())
            if (places != np.arange(places.size)).any():
                sources[axis] = places
        return sources

    def _places(self, axis: Axis, units: IntArray) -> IntArray:
        places = np.arange(units.size)
        for name, order in self.found.items():
            group = self.analysis.groups[name]
            mine = np.flatnonzero((units >= group.start) & (units < group.start + group.size))
            if mine.size:
                places[mine] = partners(Member(axis, "", "", mine, units[mine] - group.start), order)
        return places


# -- the rewrite ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ordered:
    """A layer to be grouped, in the order in which its inputs and outputs will stand."""

    blocks: Blocks
    columns: IntArray
    """For each place of a grouped input, the position that comes there."""
    rows: IntArray

    @property
    def tensor(self) -> str:
        """The weight's name."""
        return self.blocks.reads.tensor

    def blocks_of(self, weight: Tensor) -> Tensor:
        """The blocks on the diagonal, [groups, rows, columns, kernel...], of a weight whose axes stand in order."""
        whole = weight.movedim((self.blocks.writes.dim, self.blocks.reads.dim), (0, 1))
        rows, columns = (torch.from_numpy(places).to(weight.device) for places in (self.rows, self.columns))
        return whole[rows.view(self.blocks.groups, -1, 1), columns.view(self.blocks.groups, 1, -1)]

    def convolved(self, weight: Tensor) -> Tensor:
        """The weight of the grouped convolution."""
        found = self.blocks_of(weight)
        found = found.transpose(1, 2) if self.blocks.writes.dim == 1 else found
        return found.flatten(0, 1).contiguous()

    def multiplied(self, weight: Tensor) -> Tensor:
        """The blocks of a linear layer, [groups, inputs, outputs]."""
        return self.blocks_of(weight).transpose(1, 2).contiguous()


def calls(program: Program, layers: Mapping[str, Blocks]) -> dict[fx.Node, str]:
    """The nodes that compute layers -> the layer's name: calls of modules, and functions of their weights."""
    free = {name: blocks for name, blocks in layers.items() if not isinstance(program.state.get(name), nn.Module)}
    by_weight = {blocks.reads.tensor: name for name, blocks in free.items()}
    found: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        if node.op == "call_module" and str(node.target) in layers:
            found[node] = str(node.target)
        elif node.op == "get_attr" and str(node.target) in by_weight:
            found |= dict.fromkeys(node.users, by_weight[str(node.target)])
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    return dict(sorted(found.items(), key=lambda entry: place[entry[0]]))


def unfit(node: fx.Node) -> str:
    """Why a function of a weight can't be made a grouped one; empty where it can."""
    name = op_name(node)
    if node.op == "call_module" or name == "linear" or name.startswith("conv"):
        return ""
    if name not in ("matmul", "mm", "__matmul__"):
        return f"{name} has no form with groups"
    weight = argument(node, 1, "mat2" if name == "mm" else "other")
    return "" if isinstance(weight, fx.Node) and weight.op == "get_attr" else "it multiplies from the left"


def regroup(program: Program, layers: Mapping[str, Blocks]) -> Regrouped:
    """Make the layers grouped ones. They are convolutions and linear layers that share no weights: modules that are
    called, or parameters that `unfit` functions multiply with, by name."""
    orders = _Orders.of(program, layers.values())
    found = calls(program, layers)
    ordered = {name: _ordered(orders, layers[name]) for name in dict.fromkeys(found.values())}
    products = {name for node, name in found.items() if _is_product(program, node)}
    moves: dict[str, list[tuple[int, IntArray]]] = {}
    origin = dict(program.origin)
    for axis, places in orders.sources().items():
        moves.setdefault(axis.tensor, []).append((axis.dim, places))
        origin[axis] = origin.get(axis, np.arange(places.size))[places]
    moved: dict[str, tuple[str, Move]] = {name: (name, _mover(steps)) for name, steps in moves.items()}
    for name, layer in ordered.items():
        put = layer.multiplied if name in products else layer.convolved
        before = _mover(moves.get(layer.tensor, []))
        new = _blocks_name(layer.tensor) if name in products else layer.tensor
        moved[layer.tensor] = new, _then(before, put)
        if isinstance(program.state.get(name), nn.Module) and f"{name}.bias" in program.tensors:
            before = _mover(moves.get(f"{name}.bias", []))
            moved[f"{name}.bias"] = f"{name}.bias", _then(before, _mover([(0, layer.rows)]))
        for axis, places in ((layer.blocks.reads, layer.columns), (layer.blocks.writes, layer.rows)):
            if (places != np.arange(places.size)).any():
                origin[axis] = origin.get(axis, np.arange(places.size))[places]
    state = _state(program, moved, ordered)
    graph, mapping = program.copy_graph_with_map()
    writing = _Writing(program, graph, state)
    gathers = dict.fromkeys(ordered, 0)
    for node, name in found.items():
        gathers[name] = writing.put(mapping[node], ordered[name])
    return Regrouped(program.with_graph(graph, state).derive(origin=origin), moved, gathers)


def _is_product(program: Program, node: fx.Node) -> bool:
    """Whether a node multiplies by a matrix, not by kernels."""
    module = program.state.get(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, nn.Linear) if module is not None else not op_name(node).startswith("conv")


def _blocks_name(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.blocks" if weight.endswith(".weight") else f"{weight}_blocks"


def _ordered(orders: _Orders, blocks: Blocks) -> _Ordered:
    """Put inputs and outputs in order as far as they may be, and say what is left for gathers to do."""
    by_rows = orders.is_open(blocks.reads) and not orders.is_open(blocks.writes)
    axis, groups = (blocks.writes, blocks.rows) if by_rows else (blocks.reads, blocks.columns)
    free = orders.is_open(blocks.reads) and orders.is_open(blocks.writes)
    number = orders.numbers(blocks) if free else _by_appearance(groups[orders.now(axis)])
    columns = orders.arrange(blocks.reads, number[blocks.columns])
    rows = orders.arrange(blocks.writes, number[blocks.rows])
    return _Ordered(blocks, np.argsort(columns, kind="stable"), np.argsort(rows, kind="stable"))


def _by_appearance(groups: IntArray) -> IntArray:
    """Group -> its number, as groups appear."""
    _, first = np.unique(groups, return_index=True)
    return np.argsort(np.argsort(first))


def _mover(steps: list[tuple[int, IntArray]]) -> Move:
    def move(tensor: Tensor) -> Tensor:
        for dim, places in steps:
            tensor = tensor.index_select(dim, torch.from_numpy(places).to(tensor.device))
        return tensor

    return move


def _then(first: Move, second: Move) -> Move:
    return lambda tensor: second(first(tensor))


def _state(
    program: Program, moved: Mapping[str, tuple[str, Move]], ordered: Mapping[str, _Ordered]
) -> dict[str, State]:
    """The state with moved tensors; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for name, (_, move) in moved.items():
        old = program.tensors[name]
        if id(old) not in made:
            new = move(old.detach())
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    state: dict[str, State] = {}
    for name, value in program.state.items():
        if not isinstance(value, nn.Module):
            state[moved[name][0] if name in moved else name] = made.get(id(value), value)
            continue
        own = {key: made[id(tensor)] for key, tensor in module_tensors("", value) if id(tensor) in made}
        if name not in ordered:
            state[name] = clone_module(value, own) if own else value
        elif isinstance(value, nn.Linear):
            state[f"{name}.blocks"] = own["weight"]
            if "bias" in own:
                state[f"{name}.bias"] = own["bias"]
        else:
            state[name] = clone_module(value, own, groups=ordered[name].blocks.groups)
    return state


@dataclass
class _Writing:
    """The graph while layers are put in."""

    program: Program
    graph: fx.Graph
    state: dict[str, State]

    def put(self, node: fx.Node, layer: _Ordered) -> int:
        """Let a node compute the grouped layer, with gathers where they are needed; gives how many."""
        product = _is_product(self.program, node)
        value = argument(node, 0, "input")
        dim = value.meta["val"].ndim - (1 if product else self.program.tensors[layer.tensor].ndim - 1)
        gathers, name = 0, node.name
        source = value
        if (layer.columns != np.arange(layer.columns.size)).any():
            source = self._gather(value, dim, layer.columns, f"{name}_inputs", node)
            gathers += 1
        last = self._product(node, source, layer) if product else node
        if not product:
            node.args, node.kwargs = (source, *node.args[1:]), {k: v for k, v in node.kwargs.items() if k != "input"}
            if node.op != "call_module":
                self._set_groups(node, layer)
        if (layer.rows != np.arange(layer.rows.size)).any():
            with self.graph.inserting_after(last):
                places = np.argsort(layer.rows, kind="stable")
                picked = self._gather(last, dim, places, f"{name}_outputs", last.next)
            last.replace_all_uses_with(picked, delete_user_cb=lambda user: user is not picked)
            gathers += 1
            last = picked
        if product:
            weights = [each for each in node.all_input_nodes if each.op == "get_attr"]
            node.replace_all_uses_with(last)
            self.graph.erase_node(node)
            for each in weights:
                if not each.users:
                    self.graph.erase_node(each)
        return gathers

    def _set_groups(self, node: fx.Node, layer: _Ordered) -> None:
        """Let a function that convolves have groups; its weight is theirs already."""
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        stored = self.state[layer.tensor]
        assert isinstance(stored, Tensor)
        valued(weight, stored.to("meta"))
        said = {"bias": self._bias(bias, layer, node), "groups": layer.blocks.groups}
        args, kwargs = list(node.args), dict(node.kwargs)
        for place, (name, new) in zip((2, 6), said.items(), strict=True):
            if len(args) > place:
                args[place] = new
            elif new is not None:
                kwargs[name] = new
        node.args, node.kwargs = tuple(args), kwargs

    def _bias(self, bias: Any, layer: _Ordered, node: fx.Node) -> Any:
        """A function's bias in the order of the grouped layer's outputs."""
        if not isinstance(bias, fx.Node) or (layer.rows == np.arange(layer.rows.size)).all():
            return bias
        return self._gather(bias, 0, layer.rows, f"{node.name}_bias", node)

    def _gather(self, value: fx.Node, dim: int, places: IntArray, name: str, before: fx.Node) -> fx.Node:
        """An `index_select` before a node."""
        device = next((tensor.device for tensor in self.program.tensors.values()), None)
        taken = {key.partition(".")[0] for key in self.state}
        known = next(key for key in chain([name], (f"{name}_{i}" for i in count(1))) if key not in taken)
        self.state[known] = torch.as_tensor(places, device=device)
        with self.graph.inserting_before(before):
            index = self._made(
                self.graph.get_attr(known), torch.empty(places.shape, dtype=torch.int64, device="meta"), before
            )
            return self._made(
                self.graph.call_function(torch.index_select, (value, dim, index)), value.meta["val"], before
            )

    def _product(self, node: fx.Node, source: fx.Node, layer: _Ordered) -> fx.Node:
        """The nodes that multiply by groups, before the linear layer's node; gives the last of them."""
        name, groups = _blocks_name(layer.tensor), layer.blocks.groups
        blocks = self.state[name]
        assert isinstance(blocks, Tensor)
        split = (groups, blocks.shape[1])
        with self.graph.inserting_before(node):
            weight = self._made(self.graph.get_attr(name), blocks.to("meta"), node)
            found = self._method(source, "unflatten", (-1, split), node)
            found = self._method(found, "transpose", (-3, -2), node)
            product = torch.matmul(found.meta["val"], weight.meta["val"])
            found = self._made(self.graph.call_function(torch.matmul, (found, weight)), product, node)
            found = self._method(found, "transpose", (-3, -2), node)
            found = self._method(found, "flatten", (-2,), node)
            shift = self._shift(node, layer)
            if shift is not None:
                found = self._made(self.graph.call_function(operator.add, (found, shift)), found.meta["val"], node)
        return found

    def _shift(self, node: fx.Node, layer: _Ordered) -> fx.Node | None:
        """What is added behind a product: a module's bias, or a function's; None for nothing."""
        if node.op == "call_module":
            bias = self.state.get(f"{node.target}.bias")
            if not isinstance(bias, Tensor):
                return None
            return self._made(self.graph.get_attr(f"{node.target}.bias"), bias.to("meta"), node)
        given = argument(node, 2, "bias") if op_name(node) == "linear" else None
        found = self._bias(given, layer, node)
        return found if isinstance(found, fx.Node) else None

    def _method(self, source: fx.Node, name: str, options: tuple[Any, ...], like: fx.Node) -> fx.Node:
        value = getattr(source.meta["val"], name)(*options)
        return self._made(self.graph.call_method(name, (source, *options)), value, like)

    def _made(self, node: fx.Node, value: Tensor, like: fx.Node) -> fx.Node:
        """A new node, with the place in the user's code of the layer that it belongs to."""
        kept = {key: known for key, known in like.meta.items() if key not in ("val", "mutates")}
        node.meta.update(kept)
        return valued(node, value)
