"""Which nodes of two traces of a model, in eval mode and in train mode, compute the same; see `joining`.

Nodes are numbered by what they compute: two nodes of one number, one in each trace, become one. A number says the
operation, the arguments, what was written into them since they were made, and that it is the first, second, ... node
of the trace that is such: so every node has at most one partner, and two dropouts of one value stay two.

What one mode alone writes into must not be shared, so that value and all that may have its memory get numbers of their
own. Where the modes differ in one operand only, and one mode's is made of the other's, they meet again: from there on
nodes have partners once more.

    eval    %b = conv(%a)                        %y = %x + %b
    train   %b = conv(%a)    %c = %b * %noise    %y = %x + %c          %y reads a choice of %b and %c
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.aliasing import memories
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.train_eval import behind
from prunec.compiler.tracing.training_flag import arguments_of, flag_place, is_flag, with_flag

Number = int
Numbers = dict[fx.Node, Number]
Pair = tuple[fx.Node, fx.Node]


class NotJoinable(ModelError):
    """Why two traces can't be one graph."""


@dataclass
class Trace:
    """One of the two programs, and what is known of its nodes."""

    program: Program
    training: bool
    alone: set[fx.Node] = field(default_factory=set)
    """Nodes that may have no partner."""
    choices: dict[Pair, Pair] = field(default_factory=dict)
    """A node and an operand of it -> what the node reads instead of it: a choice of two values, eval mode's first."""

    @property
    def nodes(self) -> list[fx.Node]:
        """Those that get a number: neither the output nor the flag."""
        return [node for node in self.program.graph.nodes if node.op != "output" and not is_flag(node)]

    @cached_property
    def written(self) -> Mapping[fx.Node, frozenset[fx.Node]]:
        """Every node of memory that something writes into -> all nodes of that memory."""
        found: dict[fx.Node, frozenset[fx.Node]] = {}
        for memory in memories(self.program.graph, self.program.state):
            if any(node.meta.get("mutates") for node in memory):
                found.update(dict.fromkeys(memory, frozenset(memory)))
        return found

    def touched(self, node: fx.Node) -> set[frozenset[fx.Node]]:
        """The written memories that a node reads or writes; one that it makes anew has held nothing before."""
        return {self.written[each] for each in node.all_input_nodes if each in self.written}

    def shared_sources(self, node: fx.Node) -> list[fx.Node]:
        """What a node reads in either mode: not what a choice is made of."""
        return [each for each in node.all_input_nodes if (node, each) not in self.choices]

    def own(self, value: Any) -> Any:
        """A flag in this mode: a bool instead of a node that reads it."""
        return self.training if isinstance(value, fx.Node) and is_flag(value) else value


Traces = tuple[Trace, Trace]


def numbered(evaluated: Trace, trained: Trace) -> tuple[Numbers, Numbers]:
    """The number of every node of both; the traces take down which nodes stand alone, and which read a choice.

    Raises `NotJoinable` where one mode alone writes into an input or a tensor of the model.
    """
    traces = evaluated, trained
    while True:
        known: dict[Hashable, Number] = {}
        numbers = _numbers(evaluated, known), _numbers(trained, known)
        if not _choose(traces, numbers) and not _set_apart(traces, numbers):
            return numbers


def _choose(traces: Traces, numbers: tuple[Numbers, Numbers]) -> bool:
    """Let a node read a choice, so that it gets a partner; whether there was one to find."""
    found = _meeting(traces, numbers)
    if found is None:
        return False
    choice = found[0][1], found[1][1]
    for trace, pair in zip(traces, found, strict=True):
        trace.choices[pair] = choice
    return True


def _set_apart(traces: Traces, numbers: tuple[Numbers, Numbers]) -> bool:
    """Let nodes stand alone that have a partner and may not have one; whether there were any."""
    apart = [_written_alone(trace, *numbers) for trace in traces]
    apart[1] |= _with_other_flags(traces, numbers)
    for trace, nodes in zip(traces, apart, strict=True):
        trace.alone |= nodes
    return any(apart)


def _meeting(traces: Traces, numbers: tuple[Numbers, Numbers]) -> tuple[Pair, Pair] | None:
    """A node of each trace, with the operand in which alone they differ; None where there are none any more."""
    holes: dict[Hashable, Pair] = {}
    for key, pair in _holes(traces[1], numbers[1], set(numbers[0].values())):
        holes.setdefault(key, pair)
    for key, (user, operand) in _holes(traces[0], numbers[0], set(numbers[1].values())):
        other = holes.get(key)
        if other is not None and _derives((operand, other[1]), numbers):
            return (user, operand), other
    return None


def _holes(trace: Trace, numbers: Numbers, partners: set[Number]) -> Iterator[tuple[Hashable, Pair]]:
    """What nodes without a partner compute, but for one operand."""
    for node in trace.nodes:
        if numbers[node] in partners or node in trace.alone:
            continue
        for operand in node.all_input_nodes:
            if not is_flag(operand) and (node, operand) not in trace.choices:
                yield _key(trace, node, numbers, operand), (node, operand)


def _derives(pair: Pair, numbers: tuple[Numbers, Numbers]) -> bool:
    """Whether two operands, one of each trace, are tensors of one kind, and one mode's is made of the other's."""
    one, other = (node.meta.get("val") for node in pair)
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    (mine, sources), (others, other_sources) = (_lineage(*each) for each in zip(pair, numbers, strict=True))
    return mine != others and (mine in other_sources or others in sources)


def _lineage(node: fx.Node, numbers: Numbers) -> tuple[Number, set[Number]]:
    """The number of a node, and those of all that it is computed from."""
    return numbers[node], {numbers[each] for each in behind([node]) if each in numbers}


def _with_other_flags(traces: Traces, numbers: tuple[Numbers, Numbers]) -> set[fx.Node]:
    """The nodes of train mode with a flag that is on in eval mode, and another in train mode: none can follow that."""
    partners = {number: node for node, number in numbers[0].items()}
    found = set()
    for node, number in numbers[1].items():
        off = flag_of(traces[0], partners[number]) if number in partners else None
        if off and off != flag_of(traces[1], node):
            found.add(node)
    return found


def _numbers(trace: Trace, known: dict[Hashable, Number]) -> Numbers:
    """The numbers of one trace. What was written into an operand before it was made is told by its own number."""
    found: Numbers = {}
    seen: Counter[Hashable] = Counter()
    history: dict[frozenset[fx.Node], list[Number]] = {}
    born: dict[fx.Node, int] = {}
    for node in trace.nodes:
        sources = [each for each in trace.shared_sources(node) if each in trace.written]
        since = [tuple(history.get(trace.written[each], [])[born[each] :]) for each in sources]
        key: Hashable = (*_key(trace, node, found), tuple(sorted(filter(None, since))))
        key = (trace.training, node.name) if node in trace.alone else key
        seen[key] += 1
        found[node] = known.setdefault((key, seen[key]), len(known))
        for memory in trace.touched(node) if node.meta.get("mutates") else ():
            history.setdefault(memory, []).append(found[node])
        born[node] = len(history.get(trace.written.get(node, frozenset()), []))
    return found


def _key(trace: Trace, node: fx.Node, numbers: Numbers, hole: fx.Node | None = None) -> tuple[Hashable, ...]:
    """What a node computes: the operation, and the arguments with numbers for nodes; with one operand left out."""

    def shown(operand: fx.Node) -> _Shown:
        if is_flag(operand) or operand is hole:
            return _Shown("training" if is_flag(operand) else "hole")
        choice = trace.choices.get((node, operand))
        return _Shown(f"%{numbers[operand]}" if choice is None else f"choice of {choice}")

    args, kwargs = fx.node.map_arg(_without_mode(trace, node), shown)
    return node.op, node.target, repr(args), repr(sorted(kwargs.items()))


class _Shown(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _written_alone(trace: Trace, evaluated: Numbers, trained: Numbers) -> set[fx.Node]:
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


def _without_mode(trace: Trace, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments without what may be the mode's alone."""
    return arguments_of(node) if flag_of(trace, node) is None else with_flag(node, "by mode")


def flag_of(trace: Trace, node: fx.Node) -> float | None:
    """What stands there in this trace's mode; None where there is nothing such, or it is computed."""
    place = flag_place(node)
    if place is None:
        return None
    position, name, default = place
    value = trace.own(node.kwargs.get(name, default) if position is None else node.args[position])
    return value if isinstance(value, bool | int | float) else None
