"""The weights of layers as matrices: a row for each output, columns for each input.

Conv2d            weight [out, in, k, k]     matrix [out, in * k * k]     k * k columns an input
ConvTranspose2d   weight [in, out, k, k]     matrix [out, in * k * k]
Linear            weight [out, in]           matrix [out, in]             1 column an input
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from torch import Tensor, nn

from prunec.compiler.groups.patterns import match_names
from prunec.compiler.ir.program import Axis, Program

LAYERS: Final = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)
"""The layers whose weights are matrices."""


@dataclass(frozen=True)
class Matrix:
    """A layer's weight, seen as a matrix."""

    layer: str
    shape: tuple[int, ...]
    """The weight's own."""
    transposed: bool = False

    @property
    def tensor(self) -> str:
        """The weight's name."""
        return f"{self.layer}.weight"

    @property
    def writes(self) -> Axis:
        """The weight's dimension of outputs."""
        return Axis(self.tensor, 1 if self.transposed else 0)

    @property
    def reads(self) -> Axis:
        """The weight's dimension of inputs."""
        return Axis(self.tensor, 0 if self.transposed else 1)

    @property
    def rows(self) -> int:
        """How many outputs there are."""
        return self.shape[self.writes.dim]

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return self.shape[self.reads.dim]

    @property
    def kernel(self) -> int:
        """Columns of one input."""
        return prod(self.shape[2:])

    def of(self, values: Tensor) -> Tensor:
        """The weight, or what has its shape, as a matrix [rows, columns]."""
        turned = values.transpose(0, 1) if self.transposed else values
        return turned.reshape(self.rows, -1)

    def back(self, matrix: Tensor) -> Tensor:
        """A matrix in the weight's shape."""
        turned = matrix.reshape(self.rows, self.inputs, *self.shape[2:])
        return turned.transpose(0, 1).contiguous() if self.transposed else turned


def matrices(program: Program) -> dict[str, Matrix]:
    """Layer -> its matrix, for every layer that isn't grouped. Of tied weights, the first layer's."""
    found: dict[str, Matrix] = {}
    seen: set[int] = set()
    for name, module in program.state.items():
        if isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1 and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = Matrix(name, tuple(module.weight.shape), bool(getattr(module, "transposed", False)))
    return found


def chosen(found: Mapping[str, Matrix], only: Iterable[str] = (), protect: Iterable[str] = ()) -> dict[str, Matrix]:
    """Those that `only` names (all, where it is empty), without those that `protect` names.

    Patterns name layers, their weights, or parts that they belong to. Raises `PassError` for one that names none.
    """
    names = [each for name in found for each in _called(name)]
    asked, kept = match_names(only, names, "only"), match_names(protect, names, "protect")
    wanted = {name for name in found if not asked or not asked.isdisjoint(_called(name))}
    return {name: matrix for name, matrix in found.items() if name in wanted and kept.isdisjoint(_called(name))}


def _called(name: str) -> list[str]:
    parts = [*name.split("."), "weight"]
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
