"""Two traces of one model, in eval mode and in train mode, as one graph; see `ir.train_eval`.

    eval    %a = conv(%x)   %r = relu(%a)   %fc = fc(%r)                     return softmax(%fc)
    train   %a = conv(%x)   %r = relu(%a)   %aux = aux(%r)   %fc = fc(%r)    return (%fc, %aux)
    joint   %a = conv(%x)   %r = relu(%a)   %aux = aux(%r)   %fc = fc(%r)    %softmax = softmax(%fc)

Nodes of the two traces that have one number (`tracing.value_numbering`) become one node, so that either half of the
joint graph is the trace that it came from. The order is train mode's; what only eval mode computes comes where it is
needed, or at the end.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.program import Program, State
from prunec.compiler.ir.train_eval import ByMode, by_mode, has_both, joint_output, set_defaults
from prunec.compiler.tracing.training_flag import arguments_of, is_flag, with_flag
from prunec.compiler.tracing.value_numbering import NotJoinable, Number, Numbers, Pair, Trace, flag_of, numbered


def joint_program(evaluated: Program, trained: Program) -> Program:
    """One program of both traces; that of train mode alone where eval mode computes nothing else.

    Raises `NotJoinable` where one mode alone writes into an input or a tensor of the model.
    """
    traces = Trace(_own_constants(evaluated, trained.state), False), Trace(trained, True)
    numbers = numbered(*traces)
    graph = _Joint(*traces, *numbers).build()
    return replace(trained, graph=graph, state={**traces[0].program.state, **trained.state})


# --- the joint graph ---------------------------------------------------------------------------------------------


@dataclass
class _Joint:
    """The joint graph while it is built; `made` holds the node of each number so far."""

    evaluated: Trace
    trained: Trace
    eval_numbers: Numbers
    train_numbers: Numbers
    graph: fx.Graph = field(default_factory=fx.Graph)
    made: dict[Number, fx.Node] = field(default_factory=dict)
    flag: fx.Node | None = None
    chosen: dict[Pair, fx.Node] = field(default_factory=dict)
    """(eval mode's value, train mode's) -> the node that chooses between them."""

    def build(self) -> fx.Graph:
        """All nodes in order, and both results."""
        eval_nodes = {number: node for node, number in self.eval_numbers.items()}
        train_nodes = {number: node for node, number in self.train_numbers.items()}
        for number in self._order():
            self.made[number] = self._create(eval_nodes.get(number), train_nodes.get(number))
        results = [self._result(trace) for trace in (self.evaluated, self.trained)]
        (evaluated, eval_value), (trained, train_value) = results
        output = self.graph.output(joint_output(self.graph, evaluated, trained))
        output.meta["val"] = ByMode(eval_value, train_value) if has_both(self.graph) else train_value
        set_defaults(self.graph)
        self.graph.lint()
        return self.graph

    def _order(self) -> list[Number]:
        """All numbers, each after those that it reads; what touches one memory keeps its order in each trace."""
        import networkx as nx  # noqa: PLC0415  (slow to import, and few models are traced in both modes)

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
        if evaluated and trained:
            args, kwargs = fx.node.map_arg(self._followed(evaluated, trained), lambda n: self._shared(trained, n))
        else:
            numbers = self.train_numbers if trained else self.eval_numbers
            args, kwargs = fx.node.map_arg(arguments_of(node), lambda n: self._new(n, numbers))
        new = self.graph.create_node(node.op, node.target, args, kwargs, name=node.name, type_expr=node.type)
        new.meta.update(node.meta)
        return new

    def _followed(self, evaluated: fx.Node, trained: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a node of both traces; where these differ in the flag, one that is right in both modes."""
        off, on = flag_of(self.evaluated, evaluated), flag_of(self.trained, trained)
        if off is None or on is None:
            return arguments_of(trained)
        value: Any
        if off == on:
            value = on
        elif isinstance(on, bool):
            value = self._training()
        else:
            value = self.graph.call_function(operator.mul, (self._training(), on))
            value.meta["val"] = off * on
        return with_flag(trained, value)

    def _training(self) -> fx.Node:
        """The one node that reads the flag; false, as the program is one in eval mode."""
        if self.flag is None:
            self.flag = self.graph.get_attr("training")
            self.flag.meta["val"] = False
        return self.flag

    def _shared(self, user: fx.Node, operand: fx.Node) -> fx.Node:
        """The operand of a node of both traces: one node for both, or one that chooses by mode."""
        choice = self.trained.choices.get((user, operand))
        if choice is None:
            return self._new(operand, self.train_numbers)
        if choice not in self.chosen:
            args = self._new(choice[0], self.eval_numbers), self._new(choice[1], self.train_numbers)
            self.chosen[choice] = self.graph.call_function(by_mode, args)
            self.chosen[choice].meta["val"] = args[0].meta["val"]
        return self.chosen[choice]

    def _new(self, node: fx.Node, numbers: Numbers) -> fx.Node:
        if node.graph is self.graph:
            return node
        return self._training() if is_flag(node) else self.made[numbers[node]]

    def _result(self, trace: Trace) -> tuple[Any, Any]:
        numbers = self.train_numbers if trace.training else self.eval_numbers
        output = output_of(trace.program.graph)
        return fx.node.map_arg(output.args[0], lambda n: self._new(n, numbers)), output.meta["val"]


def _reads(trace: Trace, numbers: Numbers) -> Iterator[tuple[Number, Number]]:
    """(number, number of a node that reads it)."""
    for node in trace.nodes:
        yield from ((numbers[n], numbers[node]) for n in node.all_input_nodes if not is_flag(n))


def _writes(trace: Trace, numbers: Numbers) -> Iterator[tuple[Number, Number]]:
    """(earlier number, later number) where both touch one memory and one of them writes: their order must stay."""
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
    """Eval mode's program with the names of train mode's `state` for what both hold, and new names where a name stands
    for another tensor there: constants of the code are numbered as they come."""
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
    """Whether both are the same constant of the model's code."""
    kinds = (nn.Module, nn.Parameter)
    return not isinstance(one, kinds) and not isinstance(other, kinds) and _same(one, other)


def _same(one: State, other: State) -> bool:
    """Whether two entries of one name are the same; modules always are."""
    if isinstance(one, nn.Module) or isinstance(other, nn.Module) or one is other:
        return True
    return one.dtype == other.dtype and torch.equal(one, other)
