"""Which parameters a training moves, and which it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.ir.program import Program


def trainable(program: Program) -> dict[str, nn.Parameter]:
    """The parameters of a program that its owner hasn't frozen, by name; a tied one has a name in each of its
    places."""
    tensors = program.tensors.items()
    return {name: tensor for name, tensor in tensors if isinstance(tensor, nn.Parameter) and tensor.requires_grad}


def frozen(patterns: Iterable[str], parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """The names of those that a pattern means: by their own name, or by that of a layer or part that they belong to.

    A tied parameter is frozen under all its names. Raises PassError for a pattern that means none.
    """
    names, found = list(parameters), set[str]()
    for number, pattern in enumerate(patterns):
        mine = {name for name in names if any(fnmatchcase(each, pattern) for each in with_parents(name))}
        if not mine:
            every = [part for name in names for part in with_parents(name)]
            message = f"the pattern '{pattern}' means no parameter that is trained"
            raise PassError(message, keys=("freeze", number), hint=nearest(pattern, list(dict.fromkeys(every))))
        found |= mine
    still = {parameters[name] for name in found}
    return {name for name, parameter in parameters.items() if parameter in still}


def once(parameters: Mapping[str, nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    """Each parameter once, under its first name."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in parameters.items():
        first.setdefault(parameter, name)
    return [(name, parameter) for parameter, name in first.items()]


def with_parents(name: str) -> list[str]:
    """A parameter's name and those of the layers and parts that it belongs to, from the inside out."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
