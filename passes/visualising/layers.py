"""Which values of a program show what a layer's units do: behind its batch norm, before the nonlinearity.

conv - bn - relu      the value of bn: what the nonlinearity is given, with the sign that bn's scale gives it
conv - add - relu     the value of conv: what is added is somebody else's
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.interchangeable import label_arrays_of
from prunec.compiler.ir.graph import is_impure, output_of
from prunec.compiler.ir.ops import elements, shape_of_argument
from prunec.compiler.ir.program import IntArray, Program
from prunec.compiler.tracing.batch_dim import batch_places
from prunec.passes.criteria.reads import Read
from prunec.passes.criteria.watching import evaluated

Wanted = Literal["late", "all"] | tuple[str, ...]
"""Layers: those of the last stage, all convolutions, or those that glob patterns name."""


@dataclass(frozen=True)
class Layer:
    """The units of one layer, and where their activations are."""

    name: str
    read: Read
    """Of the value that shows them; its units are numbers of the whole program."""
    positions: IntArray
    """[units]: the first position of each unit among the layer's channels."""
    program: Program = field(repr=False)
    """What is run, in evaluation mode."""

    @property
    def units(self) -> IntArray:
        """The units' numbers, program-wide, rising."""
        return self.read.units

    def activations(self, value: Tensor) -> Tensor:
        """[samples, units]: the mean of each unit's channels over space."""
        return self.read.sums(value) / self.read.elements

    def own(self, value: Tensor, units: Tensor) -> Tensor:
        """[samples]: the activation of one unit for each sample, by its place among the layer's units."""
        return self.activations(value).gather(1, units[:, None])[:, 0]

    @cached_property
    def cut(self) -> Program:
        """The program as far as this layer, in evaluation mode, without gradients of weights."""
        return _cut(self.program, self.read.source.name)


def find_layers(program: Program, wanted: Wanted) -> list[Layer]:
    """The layers in the order of the graph. Raises `PassError` for a pattern that names none, or where there are
    none."""
    found = _known(program)
    known = [layer for layer in found.values() if isinstance(layer, Layer)]
    if not known:
        why = next((reason for reason in found.values() if isinstance(reason, str)), "it has no layer with weights")
        raise PassError(f"the model has no layer that can be visualised: {why}", keys=("layers",))
    if isinstance(wanted, str):
        return _late(known) if wanted == "late" else [layer for layer in known if _is_map(layer)] or known
    named: set[str] = set()
    for index, pattern in enumerate(wanted):
        names = fnmatch.filter(found, pattern)
        if not any(isinstance(found[name], Layer) for name in names):
            raise _unknown(pattern, index, {name: found[name] for name in names}, [layer.name for layer in known])
        named.update(names)
    return [layer for layer in known if layer.name in named]


def _unknown(pattern: str, index: int, found: Mapping[str, Layer | str], names: Sequence[str]) -> PassError:
    """The error of a pattern that names no layer, or only layers that can't be visualised, with the reason."""
    if found:
        name, why = next(iter(found.items()))
        return PassError(f"'{name}' can't be visualised: {why}", keys=("layers", index))
    hint = nearest(pattern, names) or f"for example: {', '.join(names[-3:])}"
    return PassError(f"no layer with weights is called '{pattern}'", keys=("layers", index), hint=hint)


def _late(known: list[Layer]) -> list[Layer]:
    """The layers of the last stage: those with the smallest maps of more than one position."""
    maps = [layer for layer in known if _is_map(layer)]
    least = min((_places(layer) for layer in maps), default=0)
    return [layer for layer in maps if _places(layer) == least] or known[-1:]


def _is_map(layer: Layer) -> bool:
    """Whether a layer gives a map of several positions for each channel."""
    return _places(layer) > 1


def _places(layer: Layer) -> int:
    """How many positions of space the layer's value has."""
    read = layer.read
    shape = shape_of_argument(read.source)
    return elements([shape[d] for d in range(len(shape)) if d not in (read.batch, *read.dims)]) * read.rows


def _known(program: Program) -> dict[str, Layer | str]:
    """Every layer with weights, or the reason why it can't be visualised; one that is called more than once shows in
    its first call."""
    analysis, run = analyse(program), evaluated(program.deployed)
    values = {node.name: node for node in program.graph.nodes}
    places = batch_places(run)
    weighty = {product.node for product in analysis.flow.macs}
    found: dict[str, Layer | str] = {}
    for node in run.graph.nodes:
        name = str(node.target) if node.op == "call_module" else node.name
        if node.name in weighty and name not in found and _has_weights(run, node):
            shown = _pre_activation(run, node)
            found[name] = _layer(analysis, name, values[shown.name], places.get(shown), run)
    return found


def _layer(analysis: Analysis, name: str, node: fx.Node, place: tuple[int, int] | None, run: Program) -> Layer | str:
    """A layer that shows in a node's value, of which `place` says where its samples are; or why there is none."""
    arrays = list(label_arrays_of(analysis.flow.values.get(node)))
    if len(arrays) != 1 or not isinstance(node.meta.get("val"), Tensor):
        return "it gives no channels"
    if place is None:
        return "what it gives doesn't follow the batch: the model takes one batch size alone up to there"
    batch, rows = place
    flat = analysis.units(arrays[0])
    dims = tuple(d for d, size in enumerate(flat.shape) if size > 1)
    flat = flat.ravel()
    units, first = np.unique(flat, return_index=True)
    units, first = units[units != NO_UNIT], first[units != NO_UNIT]
    if not units.size or batch in dims:
        return "its channels are no units"
    index = np.searchsorted(units, flat)
    index[flat == NO_UNIT] = units.size
    return Layer(name, Read(node, node, units, dims, index, batch, rows), first, run)


def _has_weights(program: Program, node: fx.Node) -> bool:
    """Whether a node multiplies by weights, not two values by each other."""
    if node.op == "call_module":
        return any(True for _ in program.graph_module.get_submodule(str(node.target)).parameters())
    return any(source.op == "get_attr" for source in node.all_input_nodes)


_NORMS: Final = (nn.modules.batchnorm._BatchNorm,)
_NOTHING: Final = (nn.Identity, nn.modules.dropout._DropoutNd)
"""What changes nothing in evaluation mode."""


def _pre_activation(program: Program, node: fx.Node) -> fx.Node:
    """The batch norm that alone reads a layer, or else the layer itself."""
    last = node
    while len(last.users) == 1:
        (user,) = last.users
        module: Any = program.state.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, _NORMS) or user.target is F.batch_norm:
            return user if user.args[:1] == (last,) else node
        if not isinstance(module, _NOTHING):
            return node
        last = user
    return node


def _cut(program: Program, name: str) -> Program:
    """The program with the value of one node (by its name) as its output; what comes behind it is gone."""
    graph = program.copy_graph()
    names = [each.name for each in graph.nodes]
    late = set(names[names.index(name) + 1 :])
    shown = next(each for each in graph.nodes if each.name == name)
    output = output_of(graph)
    output.args, output.meta["val"] = (shown,), shown.meta["val"]
    for each in reversed(list(graph.nodes)):
        unused = not each.users and not is_impure(each) and each is not shown
        if each.op not in ("output", "placeholder") and (each.name in late or unused):
            graph.erase_node(each)
    return program.with_graph(graph, program.state)
