"""Values that no parameter writes: positions that a forward computes, waves of a time, a mask.

    places = torch.arange(x.shape[1])                           sizes, literals, buffers and
    waves = torch.cat([places.sin(), places.cos()], -1)         whole numbers that come in
    x + waves                                                   each channel of x goes with a column of the waves
    x + waves.index_select(-1, order)                           and when some go, the columns of the others are read

A column of a stored table would leave the table; here the table is made in the forward, so that what is left of it is
picked there. Other values without labels (the image, what an operation without a rule gives) are worth keeping: what
meets them stays.
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
    """The given values of a program: of sizes, literals, buffers and whole numbers among the inputs alone."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __contains__(self, node: object) -> bool:
        return node in self.nodes

    @cached_property
    def nodes(self) -> frozenset[fx.Node]:
        """All of them; without those that anything else is written into."""
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
        """Those into which tensors are written."""
        writers = (node for node in self._writers if len(node.all_input_nodes) > 1)
        return self.nodes.intersection(value for node in writers for value in _written(node))

    @cached_property
    def is_rewritten(self) -> bool:
        """Whether anything is written into any of them, so that it needn't be the same at every reader."""
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
    """Whether all tensors that a node reads (not only their type) are among those found."""
    values = node.all_input_nodes
    if node.op == "call_method" and node.target in _READ_THE_TYPE:
        values = [value for value in values[:1] if not str(node.target).startswith("new")]
    return all(value in found or not _tensors(value) for value in values)


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)]


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The first operand of a node that writes, and what that is a view of."""
    value = node.args[0] if node.args else None
    while isinstance(value, fx.Node):
        yield value
        value = value.args[0] if value.args else None
