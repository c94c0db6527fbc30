"""The class axis of a classifier: the units that go with each class, once the output doesn't hold them.

    fc = fc(x)                     [N, 10]    class c is unit c of the group fc
    return fc.softmax(1)           [N, 10]    the same; the softmax is taken over the classes that are left

Dimension 1 of an output is freed, and so is every softmax on the way to it; all else that pins a class holds. A class
is no channel that counts as zero where it is read: so nothing may read or add up classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.errors import ModelError
from prunec.compiler.groups.analysis import Analysis, solve
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.ops import argument, op_name, shape_of_argument
from prunec.compiler.ir.program import BoolArray, IntArray, Program, shape_of
from prunec.compiler.labels.flow import FIXED, Flow
from prunec.compiler.labels.propagate import run_rules

SOFTMAXES: Final = ("softmax", "log_softmax")


@dataclass(frozen=True)
class ClassAxis:
    """Outputs [samples, classes, ...] of a program, and what goes with their classes."""

    analysis: Analysis
    outputs: tuple[fx.Node, ...]
    units: IntArray
    """[outputs, classes]: the unit of each class in each output."""
    softmaxes: Mapping[fx.Node, int]
    """Softmaxes over the classes -> their dimension."""

    @property
    def count(self) -> int:
        """How many classes there are."""
        return int(self.units.shape[1])

    def without(self, kept: Sequence[int]) -> BoolArray:
        """[units]: which stay when these classes do. Raises `ModelError` where the others can't go."""
        left = np.zeros(self.count, dtype=bool)
        left[list(kept)] = True
        stay = self.units[:, left]
        keep = np.ones(self.analysis.size, dtype=bool)
        keep[self.units[:, ~left]] = False
        if not keep[stay].all():
            raise ModelError("a class that is kept is computed together with one that isn't")
        for block in self.analysis.balanced:
            lost = block.lost(keep)
            if lost.min() != lost.max():
                raise ModelError(f"{block.node} divides the classes into rows, which would lose unequally many")
        for units in (*self.analysis.covers, *(part.units for part in self.analysis.least)):
            if not keep[units].any():
                raise ModelError("all classes of one piece of a split would go")
        for part in self.analysis.least:
            if keep[part.units].sum() < part.count:
                raise ModelError(f"{part.count} of the classes have to stay: each of them {part.reason}")
        return keep


def class_axis(program: Program, outputs: Sequence[fx.Node], needed: Sequence[fx.Node]) -> ClassAxis:
    """The class axis of those `outputs` whose positions along dimension 1 nobody else reads; of the `needed` ones among
    them in any case. All have as many positions there.

    Raises `ModelError` where a class of a needed output can't go for itself.
    """
    open_ = list(outputs)
    while True:
        softmaxes = {node: dim for output in open_ for node, dim in _softmaxes(program, output)}
        flow = Flow(program, classes=frozenset(open_), renormalised=frozenset(softmaxes))
        run_rules(flow)
        analysis = solve(flow)
        read = _read(analysis)
        found = {output: _units(analysis, output, read) for output in open_}
        held = [output for output, units in found.items() if isinstance(units, str)]
        for output in held:
            if output in needed:
                raise ModelError(f"the output {list(shape_of(output))} can't lose classes: {found[output]}")
        if not held:
            units = np.stack([units for units in found.values() if not isinstance(units, str)])
            return ClassAxis(analysis, tuple(found), units, softmaxes)
        open_ = [output for output in open_ if output not in held]


def gives_probabilities(program: Program, output: fx.Node) -> bool:
    """Whether an output comes of a softmax over its classes."""
    return any(not _is_log(program, node) for node, _ in _softmaxes(program, output))


def _is_log(program: Program, node: fx.Node) -> bool:
    module = program.state[str(node.target)] if node.op == "call_module" else None
    return isinstance(module, nn.LogSoftmax) or (module is None and op_name(node) == "log_softmax")


def _read(analysis: Analysis) -> Mapping[int, str]:
    """Unit -> who reads it or counts it."""
    flow = analysis.flow
    readers = (b for b in flow.bindings.values() if b.role == "reader" or b.axis in flow.reading)
    found = {int(unit): f"is read by {b.axis.owner or b.axis}" for b in readers for unit in analysis.units(b.labels)}
    return {**found, **analysis.counted}


def _units(analysis: Analysis, output: fx.Node, read: Mapping[int, str]) -> IntArray | str:
    """The units of the classes; or what is in the way."""
    size = shape_of(output)[1]
    fields = [labels for labels in analysis.flow.fields(output) if labels.shape[1] > 1]
    if len(fields) != 1 or fields[0].size != size or bool((fields[0] == FIXED).any()):
        return "the positions of dimension 1 aren't written by weights of their own"
    units = analysis.units(fields[0].reshape(-1))
    if bool((units == NO_UNIT).any()):
        return "the positions of dimension 1 aren't written by weights of their own"
    if np.unique(units).size < size:
        return "several positions of dimension 1 go together"
    pinned = [reason for group in analysis.groups.values() for reason in group.pinned]
    for position, unit in enumerate(units.tolist()):
        reason = pinned[unit] or read.get(unit)
        if reason:
            return f"class {position} {reason}"
    return units


def _softmaxes(program: Program, output: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """The softmaxes over the classes between an output and what has several operands, each with its dimension."""
    size, node = shape_of(output)[1], output
    while node.op in ("call_function", "call_method", "call_module"):
        module = program.state[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.Module) and next(module.parameters(), None) is not None:
            return
        sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        if len(sources) != 1:
            return
        dim = _softmax_dim(node, module)
        if dim is not None:
            shape = shape_of_argument(sources[0])
            if -len(shape) <= dim < len(shape) and shape[dim] == size:
                yield node, dim % len(shape)
        node = sources[0]


def _softmax_dim(node: fx.Node, module: object) -> int | None:
    """The dimension that a softmax is taken over; None for anything else."""
    if isinstance(module, nn.Softmax | nn.LogSoftmax):
        dim = module.dim
    elif module is None and op_name(node) in SOFTMAXES:
        dim = argument(node, 1, "dim")
    else:
        return None
    return dim if isinstance(dim, int) else None
