"""`regroup`: layers whose weights fall into groups become grouped layers.

- block: {into: groups=4}
- finetune: 5
- regroup

Conv2d(64, 64, 3)  75% zeros, four groups of 16 rows and 16 columns   ->  Conv2d(64, 64, 3, groups=4)
Linear(4096, 128)  the same                                           ->  x in 4 parts, each times [1024, 32]

The weights alone decide, whatever has put zeros into them, and what is computed is the same. Inputs and outputs are
put in order by moving channels in all layers that share them; an `index_select` does it where they may not move. Layers
that have zeros and don't fall into groups stay as they are, and their share of zeros is told as `sparsity`. Masks and
an optimizer's memory follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, StrictInt
from torch import nn

from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.rewrite.regroup import Blocks, calls, find_blocks, regroup, unfit
from prunec.passes.tiles.matrices import LAYERS, Matrix, chosen, matrices
from prunec.passes.training.carried import moved


class Regroup(Pass):
    """Make layers whose weights fall into groups grouped layers."""

    name: ClassVar[str] = "regroup"
    rewrites: ClassVar[bool] = True
    shorthand: ClassVar[str | None] = "groups"

    groups: Annotated[StrictInt, Field(ge=2)] | None = Field(
        default=None, description="how many groups a layer gets; as many as its weights fall into where nothing is said"
    )
    only: tuple[str, ...] = Field(default=(), description="glob patterns of the layers; all where none is named")
    protect: tuple[str, ...] = Field(default=(), description="glob patterns of layers that are left alone")

    def check(self, program: Program) -> None:
        """Raise `PassError` for patterns that name no layer."""
        chosen(matrices(program), self.only, self.protect)

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program with grouped layers."""
        found, notes, sparsity = dict[str, Blocks](), list[Note](), dict[str, float]()
        names = _names(program)
        for name, matrix in chosen(matrices(program), self.only, self.protect).items():
            zeros = float((program.tensors[matrix.tensor].detach() == 0).double().mean())
            blocks = find_blocks(program, matrix.reads, matrix.writes, self.groups) if zeros else None
            reason = "they leave no groups" if blocks is None else _unfit(program, matrix, blocks, names)
            if blocks is not None and not reason:
                found[name] = blocks
            elif zeros:
                sparsity[name] = zeros
                notes.append(Note(name, f"{zeros:.1%} of its weights are zero: {reason}"))
        if not found:
            return PassResult(program, tuple(notes), {"grouped": {}, "sparsity": sparsity})
        made = regroup(program, found)
        after = made.program.derive(carried=moved(program, made.program, made.moved))
        grouped = {n: {"groups": blocks.groups, "gathers": made.gathers[n]} for n, blocks in found.items()}
        return PassResult(after, tuple(notes), {"grouped": grouped, "sparsity": sparsity})


def _names(program: Program) -> Mapping[int, list[str]]:
    """A tensor's id -> all its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in program.tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return names


def _unfit(program: Program, matrix: Matrix, blocks: Blocks, names: Mapping[int, list[str]]) -> str:
    """Why a layer can't be made a grouped one; empty where it can."""
    layer = program.state.get(matrix.layer)
    if isinstance(layer, nn.Module):
        if type(layer) not in LAYERS:
            return f"a {type(layer).__name__} may do more than its base class"
        if program.graph.find_nodes(op="get_attr", target=matrix.tensor):
            return "its weight is also read as a value"
    else:
        functions = calls(program, {matrix.layer: blocks})
        if reason := next(filter(None, map(unfit, functions)), ""):
            return reason
    if len(names[id(program.tensors[matrix.tensor])]) > 1:
        return "its weight is another layer's, too"
    return ""
