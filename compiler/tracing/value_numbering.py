"""Global value numbering over two traces of a model: which nodes compute the same in eval mode and in train mode.

A number stands for what a node computes: the operation, its arguments' numbers, what was written into them since they
were made, and whether it is the first, second, ... such node of its trace. So every node has at most one partner in the
other trace, and two dropouts of one value stay two. Partners become one node of the joint graph
(`tracing.joint_graph`).

Memory that one mode alone writes into must not be shared: all values that may lie in it get numbers of their own. Where
two nodes differ in one operand only, and one mode's operand is made of the other's, the node reads a choice of the two,
and the nodes behind it have partners once more:

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
    """Says why two traces can't be one graph."""


@dataclass
class Trace:
    """One of the two programs, and what numbering has found out about its nodes."""

    program: Program
    training: bool
    alone: set[fx.Node] = field(default_factory=set)
    """Nodes that must not have a partner."""
    choices: dict[Pair, Pair] = field(default_factory=dict)
    """(node, an operand of it) -> the pair that the node reads a choice of instead: eval mode's value, train mode's."""

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes that get a number: all but the output and reads of the flag."""
        return [node for node in self.program.graph.nodes if node.op != "output" and not is_flag(node)]

    @cached_property
    def written(self) -> Mapping[fx.Node, frozenset[fx.Node]]:
        """Node -> all nodes whose values lie in the same memory, for memory that some node writes into."""
        found: dict[fx.Node, frozenset[fx.Node]] = {}
        for memory in memories(self.program.graph, self.program.state):
            if any(node.meta.get("mutates") for node in memory):
                found.update(dict.fromkeys(memory, frozenset(memory)))
        return found

    def touched(self, node: fx.Node) -> set[frozenset[fx.Node]]:
        """The written memories that a node reads or writes, but for one that it makes itself."""
        return {self.written[each] for each in node.all_input_nodes if each in self.written}

    def shared_sources(self, node: fx.Node) -> list[fx.Node]:
        """What a node reads in either mode: its operands, but for those in whose place it reads a choice."""
        return [each for each in node.all_input_nodes if (node, each) not in self.choices]

    def own(self, value: Any) -> Any:
        """The value of an argument in this mode: a bool in place of a node that reads the flag."""
        return self.training if isinstance(value, fx.Node) and is_flag(value) else value


Traces = tuple[Trace, Trace]


def numbered(evaluated: Trace, trained: Trace) -> tuple[Numbers, Numbers]:
    """The numbers of both traces' nodes. The traces note which nodes stand alone, and which read a choice.

    Raises `NotJoinable` where one mode alone writes into an input or a tensor of the model.
    """
    traces = evaluated, trained
    while True:
        known: dict[Hashable, Number] = {}
        numbers = _numbers(evaluated, known), _numbers(trained, known)
        if not _choose(traces, numbers) and not _set_apart(traces, numbers):
            return numbers


def _choose(traces: Traces, numbers: tuple[Numbers, Numbers]) -> bool:
    """Let one pair of nodes read a choice, so that they become partners; whether a pair was found."""
    found = _meeting(traces, numbers)
    if found is None:
        return False
    choice = found[0][1], found[1][1]
    for trace, pair in zip(traces, found, strict=True):
        trace.choices[pair] = choice
    return True


def _set_apart(traces: Traces, numbers: tuple[Numbers, Numbers]) -> bool:
    """Let nodes stand alone that have a partner and must not have one; whether there were any."""
    apart = [_written_alone(trace, *numbers) for trace in traces]
    apart[1] |= _with_other_flags(traces, numbers)
    for trace, nodes in zip(traces, apart, strict=True):
        trace.alone |= nodes
    return any(apart)


def _meeting(traces: Traces, numbers: tuple[Numbers, Numbers]) -> tuple[Pair, Pair] | None:
    """(node, operand) of each trace, of nodes that differ in these operands alone; None where there are no such."""
    holes: dict[Hashable, Pair] = {}
    for key, pair in _holes(traces[1], numbers[1], set(numbers[0].values())):
        holes.setdefault(key, pair)
    for key, (user, operand) in _holes(traces[0], numbers[0], set(numbers[1].values())):
        other = holes.get(key)
        if other is not None and _derives((operand, other[1]), numbers):
            return (user, operand), other
    return None


def _holes(trace: Trace, numbers: Numbers, partners: set[Number]) -> Iterator[tuple[Hashable, Pair]]:
    """For each operand of a node without a partner: what the node computes but for it, and (node, operand)."""
    for node in trace.nodes:
        if numbers[node] in partners or node in trace.alone:
            continue
        for operand in node.all_input_nodes:
            if not is_flag(operand) and (node, operand) not in trace.choices:
                yield _key(trace, node, numbers, operand), (node, operand)


def _derives(pair: Pair, numbers: tuple[Numbers, Numbers]) -> bool:
    """Whether two operands, one of each trace, have one shape and dtype, and one is computed from the other."""
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
    """The nodes of train mode whose flag is on in eval mode and has another value here: no flag follows that."""
    partners = {number: node for node, number in numbers[0].items()}
    found = set()
    for node, number in numbers[1].items():
        off = flag_of(traces[0], partners[number]) if number in partners else None
        if off and off != flag_of(traces[1], node):
            found.add(node)
    return found


def _numbers(trace: Trace, known: dict[Hashable, Number]) -> Numbers:
    """The numbers of one trace. `known` holds what both traces have numbered so far."""
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
    """What a node computes: the operation, and its arguments with numbers for nodes; without the operand `hole`."""

    def shown(operand: fx.Node) -> _Shown:
        if is_flag(operand) or operand is hole:
            return _Shown("training" if is_flag(operand) else "hole")
        choice = trace.choices.get((node, operand))
        return _Shown(f"%{numbers[operand]}" if choice is None else f"choice of {choice}")

    args, kwargs = fx.node.map_arg(_without_mode(trace, node), shown)
    return node.op, node.target, repr(args), repr(sorted(kwargs.items()))


class _Shown(str):
    """Text that `repr` shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _written_alone(trace: Trace, evaluated: Numbers, trained: Numbers) -> set[fx.Node]:
    """The nodes with a partner whose memory this mode alone writes into."""
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
    """A node's arguments without its flag: partners may differ in that."""
    return arguments_of(node) if flag_of(trace, node) is None else with_flag(node, "by mode")


def flag_of(trace: Trace, node: fx.Node) -> float | None:
    """The value of a node's flag, or share to drop, in this trace's mode; None where it has none, or a computed one."""
    place = flag_place(node)
    if place is None:
        return None
    position, name, default = place
    value = trace.own(node.kwargs.get(name, default) if position is None else node.args[position])
    return value if isinstance(value, bool | int | float) else None
