"""What a classifier must compute once some of its classes are gone: the old outputs, at the classes that are kept.

Picked(before, outputs=[0], kept=[1, 4])                     the outputs that it had, columns 1 and 4
Picked(before, [0], [1, 4], softmaxes={"softmax": 1})        the softmax's of logits that are -inf elsewhere:
                                                             probabilities, renormalised over the kept classes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.compiler.ir.program import Program
from prunec.compiler.verify.interpreter import Interpreter
from prunec.compiler.verify.reference import Reference


class PickingInterpreter(Interpreter):
    """An interpreter whose softmaxes don't see some classes, and whose outputs lack these."""

    def __init__(
        self,
        program: Program,
        dtype: torch.dtype,
        outputs: Sequence[int],
        kept: Sequence[int],
        softmaxes: Mapping[str, int],
    ) -> None:
        super().__init__(program, dtype)
        self.outputs, self.softmaxes = set(outputs), softmaxes
        self.kept = torch.tensor(list(kept))

    def seen(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """What a node reads: a softmax sees the kept classes alone, the output picks them."""
        dim = self.softmaxes.get(node.name)
        if dim is None or not isinstance(value, Tensor):
            return value
        return torch.full_like(value, -math.inf).index_copy(dim, self.kept, value.index_select(dim, self.kept))

    def run(self, inputs: tuple[Any, ...]) -> Any:
        """The outputs, nested as the model returns them, with the kept classes alone."""
        leaves, spec = pytree.tree_flatten(super().run(inputs))
        picked = [x.index_select(1, self.kept) if i in self.outputs else x for i, x in enumerate(leaves)]
        return pytree.tree_unflatten(picked, spec)


class Picked(Reference):
    """The old program with the kept classes picked along dimension 1 of some outputs, which are numbered as the leaves
    of what it returns. `softmaxes` are nodes, with the dimension of the classes."""

    def __init__(
        self,
        before: Program,
        outputs: Sequence[int],
        kept: Sequence[int],
        softmaxes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(before)
        self.outputs, self.kept, self.softmaxes = tuple(outputs), tuple(kept), dict(softmaxes or {})

    def interpreter(self, dtype: torch.dtype) -> PickingInterpreter:
        """As in `Reference`."""
        return PickingInterpreter(self.before, dtype, self.outputs, self.kept, self.softmaxes)
