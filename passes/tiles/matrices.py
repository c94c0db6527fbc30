"""The weights of layers as matrices: a row for each output, columns for each input.

Conv2d            weight [out, in, k, k]     matrix [out, in * k * k]     k * k columns an input
ConvTranspose2d   weight [in, out, k, k]     matrix [out, in * k * k]
Linear            weight [out, in]           matrix [out, in]             1 column an input

A call of torch's functions with a parameter as its weight is a layer as well, and bears the parameter's name; so is a
product with one (`x @ w`) that is nothing else (`Flow.reading`). `left_alone` names what isn't seen as a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from torch import Tensor, fx, nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.groups.patterns import match_names
from prunec.compiler.ir.ops import argument, op_name, words
from prunec.compiler.ir.program import Axis, Program

LAYERS: Final = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)
"""The layers whose weights are matrices."""
FUNCTIONS: Final = {
    "linear": False,
    **{f"conv{rank}d": False for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": True for rank in (1, 2, 3)},
}
"""The functions that do the same, and whether their weights are transposed."""
_PRODUCTS: Final = frozenset([*FUNCTIONS, *words("matmul mm bmm mv addmm baddbmm einsum __matmul__")])


@dataclass(frozen=True)
class Matrix:
    """A layer's weight, seen as a matrix."""

    layer: str
    tensor: str
    """The weight's name."""
    shape: tuple[int, ...]
    """The weight's own."""
    transposed: bool = False

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
    for layer, name, weight, (transposed, groups) in (*_modules(program), *_calls(program)):
        if groups == 1 and id(weight) not in seen:
            seen.add(id(weight))
            found[layer] = Matrix(layer, name, tuple(weight.shape), transposed)
    for axis in analyse(program).flow.reading:
        weight = program.tensors[axis.tensor]
        found.setdefault(axis.tensor, Matrix(axis.tensor, axis.tensor, tuple(weight.shape), axis.dim == 0))
    return found


def left_alone(program: Program) -> dict[str, str]:
    """Layers with weights that aren't seen as matrices, and why."""
    known = matrices(program)
    found = dict.fromkeys(grouped(program), "it has groups, and its tiles are left alone")
    for name, module in program.state.items():
        if name in known or name in found or not isinstance(module, nn.Module):
            continue
        if isinstance(module, LAYERS):
            found[name] = "it has the weight of another layer, and its tiles"
        elif any(p.ndim > 1 for p in module.parameters()) and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            found[name] = f"it is a {type(module).__name__}, whose weights aren't seen as matrices"
    weights = {matrix.tensor for matrix in known.values()}
    for node, name in _multiplied(program):
        value = program.tensors[name]
        if name not in weights and isinstance(value, nn.Parameter) and value.ndim > 1:
            found.setdefault(name, f"{node.name} doesn't use it as it is, or not alone")
    return found


def _multiplied(program: Program) -> Iterator[tuple[fx.Node, str]]:
    """(product, parameter) for every factor that is a parameter, or computed of one alone."""
    for node in program.graph.nodes:
        if node.op in ("call_function", "call_method") and op_name(node) in _PRODUCTS:
            for source in node.all_input_nodes:
                while source.op in ("call_function", "call_method") and len(source.all_input_nodes) == 1:
                    source = source.all_input_nodes[0]
                if source.op == "get_attr" and str(source.target) in program.tensors:
                    yield node, str(source.target)


def grouped(program: Program) -> list[str]:
    """The layers that are no matrix, since they have groups already."""
    return [layer for layer, _, _, (_, groups) in (*_modules(program), *_calls(program)) if groups > 1]


_Form = tuple[bool, int]
"""Whether a layer's weight is transposed, and its groups."""


def _modules(program: Program) -> Iterator[tuple[str, str, Tensor, _Form]]:
    """(layer, its weight's name, the weight, its form) of modules."""
    for layer, module in program.state.items():
        if isinstance(module, LAYERS):
            form = bool(getattr(module, "transposed", False)), int(getattr(module, "groups", 1))
            yield layer, f"{layer}.weight", module.weight, form


def _calls(program: Program) -> Iterator[tuple[str, str, Tensor, _Form]]:
    """The same of functions whose weight is a parameter."""
    for node in program.graph.nodes:
        form = FUNCTIONS.get(op_name(node)) if node.op == "call_function" else None
        if form is None:
            continue
        weight, groups = argument(node, 1, "weight"), argument(node, 6, "groups", 1)
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not isinstance(groups, int):
            continue
        name = str(weight.target)
        value = program.tensors[name]
        if isinstance(value, nn.Parameter) and value.ndim > 1:
            yield name, name, value, (form, groups)


def chosen(found: Mapping[str, Matrix], only: Iterable[str] = (), protect: Iterable[str] = ()) -> dict[str, Matrix]:
    """Those that `only` names (all, where it is empty), without those that `protect` names.

    Patterns name layers, their weights, or parts that they belong to. Raises `PassError` for one that names none.
    """
    wanted = meant({name: matrix.tensor for name, matrix in found.items()}, only, protect)
    return {name: matrix for name, matrix in found.items() if name in wanted}


def meant(tensors: Mapping[str, str], only: Iterable[str] = (), protect: Iterable[str] = ()) -> set[str]:
    """Of layers, by the names of their weights, those that `only` names, as `chosen` has it."""
    called = {name: _called(tensor) for name, tensor in tensors.items()}
    names = [each for parts in called.values() for each in parts]
    asked, kept = match_names(only, names, "only"), match_names(protect, names, "protect")
    return {n for n, c in called.items() if (not asked or not asked.isdisjoint(c)) and kept.isdisjoint(c)}


def _called(tensor: str) -> list[str]:
    parts = tensor.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
