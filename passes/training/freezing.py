"""Which parameters a training moves, and which it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.ir.program import Program


def trainable(program: Program) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a program that its owner hasn't frozen, by name."""
    for name, tensor in program.tensors.items():
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            yield name, tensor


def frozen(patterns: Iterable[str], names: Sequence[str]) -> set[str]:
    """The parameters that a pattern means: by their own name, or by that of a layer or part that they belong to.

    Raises PassError for a pattern that means none.
    """
    found: set[str] = set()
    for number, pattern in enumerate(patterns):
        mine = {name for name in names if any(fnmatchcase(each, pattern) for each in with_parents(name))}
        if not mine:
            every = [part for name in names for part in with_parents(name)]
            message = f"the pattern '{pattern}' means no parameter that is trained"
            raise PassError(message, keys=("freeze", number), hint=nearest(pattern, list(dict.fromkeys(every))))
        found |= mine
    return found


def with_parents(name: str) -> list[str]:
    """A parameter's name and those of the layers and parts that it belongs to, from the inside out."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
