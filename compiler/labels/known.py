"""Values that are known whatever the input: buffers, and what a forward computes of them without its inputs.

x[:, self.mask]                     a buffer of truth values
x[:, self.scale > 0.1]              a comparison of one
index.view(1, 1, -1).expand_as(y)   the same positions for every sample and step: a `known_line` along the last
                                    dimension, though its other sizes follow the input
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx, nn

from prunec.compiler.ir.graph import call
from prunec.compiler.ir.ops import op_name, words
from prunec.compiler.ir.program import Program

_LARGEST: Final = 2**22
"""Elements of the largest value that is computed: what is larger holds no positions of channels."""

_SPREADING: Final = frozenset(words("expand expand_as broadcast_to repeat view reshape view_as reshape_as"))
"""Operations that may read sizes: they repeat or reshape the known values."""
_COMPUTING: Final = _SPREADING | frozenset(
    words("""
        eq ne lt le gt ge invert logical_not logical_and logical_or logical_xor and or xor bitwise_not bitwise_and
        bitwise_or add sub mul neg abs floordiv floor_divide remainder mod to long int bool nonzero argsort cat stack
        getitem unsqueeze squeeze flatten permute transpose t flip roll clone contiguous detach
    """)
)
"""Operations that give the same whenever they run."""


class Known:
    """The known values of a program's nodes, computed when they are asked for."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._values: dict[fx.Node, Any] = {}
        self._written = any(
            node.meta.get("mutates") and any(n.op == "get_attr" for n in _behind(node)) for node in program.graph.nodes
        )

    def value(self, node: fx.Node) -> torch.Tensor | None:
        """The tensor of whole numbers or truth values that a node gives, where no size has a part in it; else None."""
        return self._whole(node, spread=False)

    def line(self, node: fx.Node, dim: int) -> torch.Tensor | None:
        """The vector along `dim` that a node's tensor of whole numbers repeats along all other dimensions; None where
        it isn't known, or isn't the same everywhere."""
        value = self._whole(node, spread=True)
        if value is None or not value.ndim:
            return None
        line = value
        for other in range(value.ndim):
            if other != dim % value.ndim:
                line = line.narrow(other, 0, 1)
        return line.reshape(-1) if line.numel() and bool((value == line).all()) else None

    def _whole(self, node: fx.Node, *, spread: bool) -> torch.Tensor | None:
        known = node.meta.get("val")
        if self._written or not isinstance(known, torch.Tensor) or known.is_floating_point() or known.is_complex():
            return None
        return self._computed(node) if self._is_known(node, spread=spread) else None

    def _is_known(self, node: fx.Node, *, spread: bool) -> bool:
        known = node.meta.get("val")
        if not isinstance(known, torch.Tensor) or known.numel() > _LARGEST:
            return False
        if node.op == "get_attr":
            held = self.program.state.get(str(node.target))
            return isinstance(held, torch.Tensor) and not isinstance(held, nn.Parameter)
        if node.op not in ("call_function", "call_method") or op_name(node) not in _COMPUTING:
            return False
        tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        like = tensors[1:] if op_name(node).endswith("_as") else []
        sized = bool(like) or len(tensors) < len(node.all_input_nodes)
        if not tensors or (sized and not (spread and op_name(node) in _SPREADING)):
            return False
        return all(self._is_known(n, spread=spread) for n in tensors if n not in like)

    def _computed(self, node: fx.Node) -> Any:
        """The real value of a known node; of a size, or of a tensor whose size alone is read, the example's."""
        if node not in self._values:
            known = node.meta.get("val")
            if node.op == "get_attr":
                held = self.program.state[str(node.target)]
                assert isinstance(held, torch.Tensor), "`_is_known` has seen to that"
                self._values[node] = held.detach()
            elif not isinstance(known, torch.Tensor):
                return known
            elif op_name(node).endswith("_as"):
                source, like = node.all_input_nodes
                shape = like.meta["val"].shape
                value = self._computed(source)
                self._values[node] = value.expand(shape) if "expand" in op_name(node) else value.reshape(shape)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._computed)
                self._values[node] = call(node, args, kwargs)
        return self._values[node]


def _behind(node: fx.Node) -> list[fx.Node]:
    """A node's first operand, and all values that this is a view or a result of, first operands only."""
    found: list[fx.Node] = []
    value = node.args[0] if node.args else None
    while isinstance(value, fx.Node):
        found.append(value)
        value = value.args[0] if value.args else None
    return found
