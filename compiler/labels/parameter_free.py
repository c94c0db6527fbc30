"""Values that no parameter writes: positions that a forward computes, waves of a time, a mask.

    places = torch.arange(x.shape[1])                           made of sizes, literals, buffers and
    waves = torch.cat([places.sin(), places.cos()], -1)         whole-number inputs alone
    x + waves                                                   each channel of x goes with a column of the waves
    x + waves.index_select(-1, order)                           once channels are gone, the columns left are read

Columns of a stored table can be taken out of it; this table is made anew in each forward, so columns are picked from it
where it is read. Other values without labels (the image, what an operation without a rule gives) may hold anything, so
what meets them is pinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.ir.program import Program

_READ_THE_TYPE = frozenset(["to", "type_as", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "new"])
"""Methods that read a type and a device off a second operand, or off their only one."""


class ParameterFree:
    """The parameter-free values of a program: computed from sizes, literals, buffers and whole-number inputs alone."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __contains__(self, node: object) -> bool:
        return node in self.nodes

    @cached_property
    def nodes(self) -> frozenset[fx.Node]:
        """All parameter-free nodes. A value that any other kind of value is written into isn't one."""
        spoilt: set[fx.Node] = set()
        while True:
            found: set[fx.Node] = set()
            for node in self.program.graph.nodes:
                if node not in spoilt and self._is_given(node, found):
                    found.add(node)
            others = {value for node in self._writers if not _reads_only(found, node) for value in _written(node)}
            if not others & found:
                return frozenset(found)
            spoilt |= others

    @cached_property
    def filled(self) -> frozenset[fx.Node]:
        """The parameter-free values that tensors are written into: tables that the forward fills."""
        writers = (node for node in self._writers if len(node.all_input_nodes) > 1)
        return self.nodes.intersection(value for node in writers for value in _written(node))

    @cached_property
    def is_rewritten(self) -> bool:
        """Whether anything is written into a parameter-free value, so that it needn't be the same at every reader."""
        return any(value in self.nodes for node in self._writers for value in _written(node))

    @cached_property
    def _writers(self) -> list[fx.Node]:
        return [node for node in self.program.graph.nodes if node.meta.get("mutates")]

    def _is_given(self, node: fx.Node, found: set[fx.Node]) -> bool:
        if node.op == "placeholder":
            return not any(known.is_floating_point() or known.is_complex() for known in _tensors(node))
        held = self.program.state.get(str(node.target)) if node.op in ("get_attr", "call_module") else None
        if node.op == "get_attr":
            return isinstance(held, torch.Tensor) and not isinstance(held, nn.Parameter)
        if node.op == "output" or (isinstance(held, nn.Module) and held.state_dict()):
            return False
        return _reads_only(found, node)


def _reads_only(found: set[fx.Node], node: fx.Node) -> bool:
    """Whether all tensors whose elements a node reads (not only their type) are among those found."""
    values = node.all_input_nodes
    if node.op == "call_method" and node.target in _READ_THE_TYPE:
        values = [value for value in values[:1] if not str(node.target).startswith("new")]
    return all(value in found or not _tensors(value) for value in values)


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)]


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The value that a node writes into, its first operand, and all values that this is a view of."""
    value = node.args[0] if node.args else None
    while isinstance(value, fx.Node):
        yield value
        value = value.args[0] if value.args else None
