"""What a name stands for in a program, and which groups it has a part in: layers, parameters, axes, operations, globs.

find(program, "dw")               the layer `dw`: group stem, by dw.weight[0], dw.bias[0] and dw.weight[1]
find(program, "dw.weight[0]")     one axis
find(program, "layer1.*")         every name that the pattern fits; `kind:depthwise`, as plans have it
find(program, "relu")             an operation of the graph: the groups whose channels it gives
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import fx, nn

from prunec.compiler.groups.analysis import Analysis, Member, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.patterns import group_kinds
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.labels.flow import FIXED

NEAREST = 5
"""How many names of nearly that spelling are told."""

_AXIS = re.compile(r"(.+)\[(\d+)\]")
_GIVES_NONE = "it gives no channels that a parameter writes"
_INDEX = re.compile(r"\[(\d+)\](?=\.|$)")


@dataclass(frozen=True)
class Part:
    """A name of the model, and its part in groups."""

    name: str
    what: str
    """What it is, in words: `a Conv2d`, `a parameter of [16, 1, 3, 3]`, `an operation`."""
    groups: Mapping[str, tuple[Member, ...]]
    """Group -> the axes of this part that belong to it; none where an operation gives the group's channels."""
    lacks: str = ""
    """Why it has a part in no group; empty where it has one."""


def find(program: Program, name: str) -> list[Part]:
    """What the name stands for: one part, or for a pattern each that fits and belongs to a group; [] for nothing."""
    book = _Book(analyse(program))
    for spelling in dict.fromkeys((name, _INDEX.sub(r".\1", name), name.removeprefix("self."))):
        found = book.part(spelling)
        if found is not None:
            return [found]
    return book.fitting(name)


def near(program: Program, name: str, more: Iterable[str] = ()) -> list[str]:
    """The names of the program, and of `more`, that are spelled nearly so, the nearest first."""
    known = {each.lower(): each for each in (*more, *_Book(analyse(program)).names)}
    close = difflib.get_close_matches(name.lower(), known, n=NEAREST, cutoff=0.6)
    inside = [low for low in known if name.lower() in low and low not in close]
    return [known[low] for low in (*close, *sorted(inside, key=len))][:NEAREST]


class _Book:
    """The names of a program, and what each stands for."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.program = analysis.program
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.program.graph.nodes}
        self.members: dict[Axis, list[tuple[str, Member]]] = {}
        for group in analysis.groups.values():
            for member in group.members:
                self.members.setdefault(member.axis, []).append((group.name, member))
        self.modules = dict.fromkeys(prefix for name in self.program.tensors for prefix in _prefixes(name))
        self.modules |= dict.fromkeys(
            prefix
            for node in self.program.graph.nodes
            for scope in (node.meta.get("scope"), node.target if node.op == "call_module" else None)
            if scope
            for prefix in (*_prefixes(str(scope)), str(scope))
        )

    @property
    def names(self) -> list[str]:
        """Every name once: groups, modules, parameters and buffers, operations."""
        return list(dict.fromkeys((*self.analysis.groups, *self.modules, *self.program.tensors, *self.nodes)))

    def part(self, name: str) -> Part | None:
        """What exactly this name stands for; None where it stands for nothing."""
        if name in self.program.tensors:
            return self._tensor(name)
        if name in self.modules:
            return self._module(name)
        axis = _AXIS.fullmatch(name)
        if axis and axis[1] in self.program.tensors:
            return self._axis(Axis(axis[1], int(axis[2])))
        if name in self.analysis.groups:
            group = self.analysis.groups[name]
            return Part(name, "a group", {name: group.members})
        return self._operation(name) if name in self.nodes else None

    def fitting(self, pattern: str) -> list[Part]:
        """The parts that a pattern fits and that belong to groups: groups by kind, else layers and tensors, or axes,
        else operations."""
        if pattern.startswith("kind:"):
            fits = (g for g in self.analysis.groups.values() if any(fnmatchcase(k, pattern) for k in group_kinds(g)))
            return [Part(group.name, "a group", {group.name: group.members}) for group in fits]
        stem = _AXIS.fullmatch(pattern)
        known = [Axis(t, dim) for t, tensor in self.program.tensors.items() for dim in range(tensor.ndim)]
        known = [axis for axis in known if axis in self.members]
        axes = [axis for axis in known if fnmatchcase(axis.tensor, stem[1] if stem else pattern)]
        if stem:
            return [self._axis(axis) for axis in axes if axis.dim == int(stem[2])]
        layers = dict.fromkeys(name for name in self.modules if fnmatchcase(name, pattern))
        owners = {axis.tensor: axis.owner for axis in known if any(name in layers for name in _prefixes(axis.tensor))}
        parts = dict.fromkeys((*owners.values(), *(axis.tensor for axis in axes if axis.tensor not in owners)))
        if parts:
            return [self._module(name) if name in self.modules else self._tensor(name) for name in parts]
        found = [self._module(name) for name in layers]
        found = found or [self._operation(name) for name in self.nodes if fnmatchcase(name, pattern)]
        return [part for part in found if part.groups] or found[:1]

    def _module(self, name: str) -> Part:
        module = self.program.state.get(name)
        what = article(type(module).__name__) if isinstance(module, nn.Module) else "a module"
        tensors = [tensor for tensor in self.program.tensors if tensor.startswith(f"{name}.")]
        groups = self._groups(Axis(t, dim) for t in tensors for dim in range(self.program.tensors[t].ndim))
        if groups:
            return Part(name, what, groups)
        passed = self._carried(node for node in self.program.graph.nodes if _is_of(node, name))
        return Part(name, what, passed, "" if passed else _GIVES_NONE)

    def _tensor(self, name: str) -> Part:
        tensor = self.program.tensors[name]
        kind = "a parameter" if isinstance(tensor, nn.Parameter) else "a buffer"
        groups = self._groups(Axis(name, dim) for dim in range(tensor.ndim))
        lacks = "" if groups else self._why_not([Axis(name, dim) for dim in range(tensor.ndim)])
        return Part(name, f"{kind} of {list(tensor.shape)}", groups, lacks)

    def _axis(self, axis: Axis) -> Part:
        dims = self.program.tensors[axis.tensor].ndim
        if axis.dim >= dims:
            return Part(str(axis), "an axis", {}, f"{axis.tensor} has {dims} dimensions, counted from 0")
        groups = self._groups([axis])
        what = f"an axis of {self.program.size(axis)} positions"
        return Part(str(axis), what, groups, "" if groups else self._why_not([axis]))

    def _operation(self, name: str) -> Part:
        node = self.nodes[name]
        if node.op == "placeholder":
            return Part(name, "an input of the model", {}, "what the model is given keeps its size")
        ends = node.op == "output"
        what, lacks = ("the model's output", "no channels reach it") if ends else ("an operation", _GIVES_NONE)
        passed = self._carried(node.all_input_nodes if ends else [node])
        return Part(name, what, passed, "" if passed else lacks)

    def _groups(self, axes: Iterable[Axis]) -> dict[str, tuple[Member, ...]]:
        """Group -> those of the axes that belong to it."""
        found: dict[str, list[Member]] = {}
        for axis in axes:
            for group, member in self.members.get(axis, ()):
                found.setdefault(group, []).append(member)
        return {group: tuple(members) for group, members in found.items()}

    def _carried(self, nodes: Iterable[fx.Node]) -> dict[str, tuple[Member, ...]]:
        """The groups whose channels the values of nodes have, without axes."""
        arrays = [labels for node in nodes for labels in _arrays(self.analysis.flow.values.get(node))]
        units = [self.analysis.units(labels).ravel() for labels in arrays]
        found = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *units]))
        names = list(self.analysis.groups)
        return {names[number]: () for number in np.unique(self.analysis.group_of[found[found != NO_UNIT]])}

    def _why_not(self, axes: Sequence[Axis]) -> str:
        """Why none of the axes belongs to a group."""
        bound = [self.analysis.flow.bindings[axis] for axis in axes if axis in self.analysis.flow.bindings]
        if not bound:
            return "it holds no channels"
        if any(binding.labels.size == 1 for binding in bound):
            return "it has a single channel, which has to stay"
        if all(bool((binding.labels == FIXED).all()) for binding in bound):
            return "what it meets is the model's input, or constants, which keep their sizes"
        return "no parameter writes what it meets"


def article(name: str) -> str:
    """`a Linear`, `an Embedding`; letters that are spelled out count as they sound: `an LSTM`."""
    spelled_out = name[:2].isupper()
    return f"{'an' if name[:1].lower() in ('aefhilmnorsx' if spelled_out else 'aeio') else 'a'} {name}"


def _prefixes(name: str) -> Iterator[str]:
    """`layer1`, `layer1.0` of `layer1.0.weight`."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _is_of(node: fx.Node, module: str) -> bool:
    """Whether a node was traced within a module, or calls it."""
    scope = str(node.target) if node.op == "call_module" else str(node.meta.get("scope", ""))
    return f"{scope}.".startswith(f"{module}.")


def _arrays(value: Any) -> Iterator[Any]:
    """The label arrays of a node's value, or of a tuple of values."""
    for part in value or ():
        if isinstance(part, np.ndarray):
            yield part
        else:
            yield from _arrays(part)
