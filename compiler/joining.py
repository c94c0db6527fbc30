"""Two traces of one model, in eval mode and in train mode, as one graph; see `halves`.

    eval    %a = conv(%x)   %r = relu(%a)   %fc = fc(%r)                     return softmax(%fc)
    train   %a = conv(%x)   %r = relu(%a)   %aux = aux(%r)   %fc = fc(%r)    return (%fc, %aux)
    joint   %a = conv(%x)   %r = relu(%a)   %aux = aux(%r)   %fc = fc(%r)    %softmax = softmax(%fc)

Nodes are numbered by what they compute: two nodes of one number, one in each trace, become one. A number says the
operation, the arguments, what was written into its operands before, and that it is the first, second, ... node of the
trace that is such: so every node has at most one partner, two dropouts of one value stay two, and either half of the
joint graph is the trace that it came from.

What one mode alone writes into must not be shared, so that value and all that may have its memory get numbers of their
own. The order is train mode's; what only eval mode computes comes where it is needed, or at the end.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import networkx as nx
import torch
import torch.nn.functional as F
from torch import fx, nn

from prunec.compiler.edit import memories
from prunec.compiler.errors import ModelError
from prunec.compiler.halves import joined, output_of, set_defaults
from prunec.compiler.ir import Program, State
from prunec.compiler.recorder import FOLLOWS

Number = int
Numbers = dict[fx.Node, Number]

_DROPPED: Final = {F.scaled_dot_product_attention: "dropout_p"}
"""Functions with a share to drop instead of a flag: code gives them 0 in eval mode."""


class NotJoinable(ModelError):
    """Why two traces can't be one graph."""


@dataclass
class _Trace:
    """One of the two programs, and what is known of its nodes."""

    program: Program
    training: bool
    alone: set[fx.Node] = field(default_factory=set)
    """Nodes that may have no partner."""

    @property
    def nodes(self) -> list[fx.Node]:
        """Those that get a number: neither the output nor the flag."""
        return [node for node in self.program.graph.nodes if node.op != "output" and not _is_flag(node)]

    @cached_property
    def written(self) -> Mapping[fx.Node, frozenset[fx.Node]]:
        """Every node of memory that something writes into -> all nodes of that memory."""
        found: dict[fx.Node, frozenset[fx.Node]] = {}
        for memory in memories(self.program.graph, self.program.state):
            if any(node.meta.get("mutates") for node in memory):
                found.update(dict.fromkeys(memory, frozenset(memory)))
        return found

    def touched(self, node: fx.Node) -> set[frozenset[fx.Node]]:
        """The written memories that a node reads or writes."""
        return {self.written[each] for each in (node, *node.all_input_nodes) if each in self.written}

    def own(self, value: Any) -> Any:
        """A flag in this mode: a bool instead of a node that reads it."""
        return self.training if isinstance(value, fx.Node) and _is_flag(value) else value


def joint_program(evaluated: Program, trained: Program) -> Program:
    """One program of both; that of train mode where eval mode is no different.

    Raises `NotJoinable` where one mode alone writes into an input or a tensor of the model.
    """
    traces = _Trace(_own_constants(evaluated, trained.state), False), _Trace(trained, True)
    numbers = _numbered(*traces)
    while apart := _apart(traces, numbers):
        for trace, nodes in zip(traces, apart, strict=True):
            trace.alone |= nodes
        numbers = _numbered(*traces)
    graph = _Joint(*traces, *numbers).build()
    return replace(trained, graph=graph, state={**traces[0].program.state, **trained.state})


# --- numbers -----------------------------------------------------------------------------------------------------


def _numbered(evaluated: _Trace, trained: _Trace) -> tuple[Numbers, Numbers]:
    """The number of every node of both."""
    known: dict[Hashable, Number] = {}
    return _numbers(evaluated, known), _numbers(trained, known)


def _apart(traces: tuple[_Trace, _Trace], numbers: tuple[Numbers, Numbers]) -> tuple[set[fx.Node], set[fx.Node]] | None:
    """The nodes of each trace that have a partner and may not have one; None where there are none."""
    clashing = _with_other_flags(traces, numbers)
    found = _written_alone(traces[0], *numbers), _written_alone(traces[1], *numbers) | clashing
    return found if any(found) else None


def _with_other_flags(traces: tuple[_Trace, _Trace], numbers: tuple[Numbers, Numbers]) -> set[fx.Node]:
    """The nodes of train mode with a flag that is on in eval mode, and another in train mode: none can follow that."""
    partners = {number: node for node, number in numbers[0].items()}
    found = set()
    for node, number in numbers[1].items():
        off = _flag(traces[0], partners[number]) if number in partners else None
        if off and off != _flag(traces[1], node):
            found.add(node)
    return found


def _numbers(trace: _Trace, known: dict[Hashable, Number]) -> Numbers:
    found: Numbers = {}
    seen: Counter[Hashable] = Counter()
    history: dict[frozenset[fx.Node], tuple[Number, ...]] = {}
    for node in trace.nodes:
        touched = sorted(history[memory] for memory in trace.touched(node) if memory in history)
        key: Hashable = (*_key(trace, node, found), tuple(touched))
        key = (trace.training, node.name) if node in trace.alone else key
        seen[key] += 1
        found[node] = known.setdefault((key, seen[key]), len(known))
        for memory in trace.touched(node) if node.meta.get("mutates") else ():
            history[memory] = (*history.get(memory, ()), found[node])
    return found


def _key(trace: _Trace, node: fx.Node, numbers: Numbers) -> tuple[Hashable, ...]:
    """What a node computes: the operation, and the arguments with numbers for nodes."""
    args, kwargs = _without_mode(trace, node)
    shown = fx.node.map_arg((args, kwargs), lambda n: _Shown("training" if _is_flag(n) else f"%{numbers[n]}"))
    return node.op, node.target, repr(shown[0]), repr(sorted(shown[1].items()))


class _Shown(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _written_alone(trace: _Trace, evaluated: Numbers, trained: Numbers) -> set[fx.Node]:
    """The nodes whose memory this mode alone writes into, and which are shared so far."""
    mine, others = (trained, evaluated) if trace.training else (evaluated, trained)
    taken = set(others.values())
    found: set[fx.Node] = set()
    for node, number in mine.items():
        if node.meta.get("mutates") and number not in taken:
            found |= {each for memory in trace.touched(node) for each in memory if mine.get(each) in taken}
    outer = next((node for node in found if node.op in ("placeholder", "get_attr")), None)
    if outer is not None:
        mode = "train" if trace.training else "eval"
        raise NotJoinable(f"'{outer.target}' is written into in {mode} mode alone")
    return found


# --- flags -------------------------------------------------------------------------------------------------------


def _is_flag(node: fx.Node) -> bool:
    return node.op == "get_attr" and str(node.target).rpartition(".")[2] == "training"


def _place(node: fx.Node) -> tuple[int | None, str, Any] | None:
    """Where a node's arguments hold what may be the mode's alone: the position, if any, the name, and the default."""
    if node.op != "call_function" or not callable(node.target):
        return None
    if node.target in FOLLOWS:
        position, default = FOLLOWS[node.target]
        return (position if len(node.args) > position else None), "training", default
    name = _DROPPED.get(node.target, "")
    return (None, name, None) if name in node.kwargs else None


def _flag(trace: _Trace, node: fx.Node) -> float | None:
    """What stands there in this trace's mode; None where there is nothing such, or it is computed."""
    place = _place(node)
    if place is None:
        return None
    position, name, default = place
    value = trace.own(node.kwargs.get(name, default) if position is None else node.args[position])
    return value if isinstance(value, bool | int | float) else None


def _without_mode(trace: _Trace, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments without what may be the mode's alone."""
    return _arguments(node) if _flag(trace, node) is None else _with_flag(node, "by mode")


def _with_flag(node: fx.Node, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = _arguments(node)
    place = _place(node)
    assert place is not None, f"{node.name} has a place for a flag"
    position, name, _ = place
    if position is None:
        return args, {**kwargs, name: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs


def _arguments(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(node.args), dict(node.kwargs)


# --- the joint graph ---------------------------------------------------------------------------------------------


@dataclass
class _Joint:
    """The graph under way."""

    evaluated: _Trace
    trained: _Trace
    eval_numbers: Numbers
    train_numbers: Numbers
    graph: fx.Graph = field(default_factory=fx.Graph)
    made: dict[Number, fx.Node] = field(default_factory=dict)
    flag: fx.Node | None = None

    def build(self) -> fx.Graph:
        """All nodes in order, and both results."""
        eval_nodes = {number: node for node, number in self.eval_numbers.items()}
        train_nodes = {number: node for node, number in self.train_numbers.items()}
        for number in self._order():
            self.made[number] = self._create(eval_nodes.get(number), train_nodes.get(number))
        results = [self._result(trace) for trace in (self.evaluated, self.trained)]
        (evaluated, eval_value), (trained, train_value) = results
        output = joined(evaluated, trained)
        self.graph.output(output).meta["val"] = (
            train_value if output is trained else type(output)(eval_value, train_value)
        )
        set_defaults(self.graph)
        self.graph.lint()
        return self.graph

    def _order(self) -> list[Number]:
        """Every number after those that it reads, and readers of a written memory in their trace's order."""
        before: nx.DiGraph[Number] = nx.DiGraph()
        rank: dict[Number, int] = {}
        train = [self.train_numbers[node] for node in self.trained.nodes]
        for number in (*train, *(self.eval_numbers[node] for node in self.evaluated.nodes)):
            rank.setdefault(number, len(rank))
        before.add_nodes_from(rank)
        before.add_edges_from(pairwise(train))
        before.add_edges_from(_reads(self.evaluated, self.eval_numbers))
        before.add_edges_from(_writes(self.evaluated, self.eval_numbers))
        try:
            return list(nx.lexicographical_topological_sort(before, key=rank.__getitem__))
        except nx.NetworkXUnfeasible as error:
            raise NotJoinable("the two modes compute the same values in orders that exclude each other") from error

    def _create(self, evaluated: fx.Node | None, trained: fx.Node | None) -> fx.Node:
        node = trained or evaluated
        assert node is not None, "a number is some node's"
        numbers = self.train_numbers if trained else self.eval_numbers
        args, kwargs = self._followed(evaluated, trained) if evaluated and trained else _arguments(node)
        args, kwargs = fx.node.map_arg((args, kwargs), lambda n: self._new(n, numbers))
        new = self.graph.create_node(node.op, node.target, args, kwargs, name=node.name, type_expr=node.type)
        new.meta.update(node.meta)
        return new

    def _followed(self, evaluated: fx.Node, trained: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a shared node, with a flag that is right in both modes where there is one."""
        off, on = _flag(self.evaluated, evaluated), _flag(self.trained, trained)
        if off is None or on is None:
            return _arguments(trained)
        value: Any
        if off == on:
            value = on
        elif isinstance(on, bool):
            value = self._training()
        else:
            value = self.graph.call_function(operator.mul, (self._training(), on))
            value.meta["val"] = off * on
        return _with_flag(trained, value)

    def _training(self) -> fx.Node:
        """The one node that reads the flag; false, as the program is one in eval mode."""
        if self.flag is None:
            self.flag = self.graph.get_attr("training")
            self.flag.meta["val"] = False
        return self.flag

    def _new(self, node: fx.Node, numbers: Numbers) -> fx.Node:
        if node.graph is self.graph:
            return node
        return self._training() if _is_flag(node) else self.made[numbers[node]]

    def _result(self, trace: _Trace) -> tuple[Any, Any]:
        numbers = self.train_numbers if trace.training else self.eval_numbers
        output = output_of(trace.program.graph)
        return fx.node.map_arg(output.args[0], lambda n: self._new(n, numbers)), output.meta["val"]


def _reads(trace: _Trace, numbers: Numbers) -> Iterator[tuple[Number, Number]]:
    for node in trace.nodes:
        yield from ((numbers[n], numbers[node]) for n in node.all_input_nodes if not _is_flag(n))


def _writes(trace: _Trace, numbers: Numbers) -> Iterator[tuple[Number, Number]]:
    """Whoever touches a memory stands after the last one that wrote into it, and before the next."""
    last: dict[frozenset[fx.Node], Number] = {}
    since: dict[frozenset[fx.Node], list[Number]] = {}
    for node in trace.nodes:
        for memory in trace.touched(node):
            if memory in last:
                yield last[memory], numbers[node]
            if node.meta.get("mutates"):
                yield from ((reader, numbers[node]) for reader in since.pop(memory, ()))
                last[memory] = numbers[node]
            else:
                since.setdefault(memory, []).append(numbers[node])


# --- the state ---------------------------------------------------------------------------------------------------


def _own_constants(program: Program, state: Mapping[str, State]) -> Program:
    """The program with its tensors under the names that they have in the other's state, and with new names for those
    whose names stand for others there: constants of the code are numbered as they come."""
    names: dict[str, str] = {}
    for name, value in program.state.items():
        if name in state and _same(value, state[name]):
            continue
        twin = next((other for other, there in state.items() if _is_twin(value, there)), None)
        if twin or name in state:
            taken = (f"{name}_eval{'_' * extra}" for extra in range(len(state) + 1))
            names[name] = twin or next(new for new in taken if new not in state and new not in program.state)
    if not names:
        return program
    graph = program.copy_graph()
    for node in graph.find_nodes(op="get_attr"):
        node.target = names.get(str(node.target), node.target)
    return replace(program, graph=graph, state={names.get(k, k): value for k, value in program.state.items()})


def _is_twin(one: State, other: State) -> bool:
    """Whether both are one constant of the model's code."""
    kinds = (nn.Module, nn.Parameter)
    return not isinstance(one, kinds) and not isinstance(other, kinds) and _same(one, other)


def _same(one: State, other: State) -> bool:
    """Modules of one name are one module of the model."""
    if isinstance(one, nn.Module) or isinstance(other, nn.Module) or one is other:
        return True
    return one.dtype == other.dtype and torch.equal(one, other)
