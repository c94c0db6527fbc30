"""What a rewritten program must compute: the old program, as it is, with other values, or with removed channels masked.

    Same(before)                 the old program
    Replaced(before, tensors)    the old program with other values in some tensors (cluster means, refitted readers)
    Masked(before, removed)      the old program whose removed channels count for nothing where they are read
    MaskedOutputs(before, ...)   the same, compared at the outputs alone

`Masked` turns positions that are removed from parameters into marks, which then flow along with the data by the rules
of `verify.ops`:

    removed     {conv1.weight[0]: [2], conv2.weight[1]: [2]}
    conv1.weight [4, 3, 3, 3]    marks [4, 1, 1, 1]    K K R K
    x = conv1(image)             marks [1, 4, 1, 1]    K K R K
    conv2(x)                     x is read as zero at R; conv2.weight's columns are R at the same places

A node that selects what it reads has marks of its own on that: the value itself keeps its marks for other readers.

    removed     {x[1] at bn: [5], bn.weight[0]: [5]}     bn reads x with R at 5; another reader of x has it there
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.inputs import map_tensors
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.program import Axis, Edge, IntArray, Program
from prunec.compiler.verify import ops  # noqa: F401  (with it come the rows of all operations)
from prunec.compiler.verify.interpreter import Instead, Interpreter, Step, describe
from prunec.compiler.verify.masks import KEPT, REMOVED, Call, Lined, Lines, Marked, Value, constant, plain
from prunec.compiler.verify.names import function_name, method_name, module_name
from prunec.compiler.verify.table import apply

_ASSIGNING: Final = frozenset([operator.iadd, operator.isub, operator.imul, operator.itruediv])
_SOURCE_NAMES: Final = ("input", "tensors", "x", "query")
"""What torch calls a function's first tensor, for calls that give it by name."""


class MaskedInterpreter(Interpreter):
    """An interpreter whose values carry marks (see `verify.masks`); `marks` are those of parameters, by name."""

    def __init__(
        self,
        program: Program,
        dtype: torch.dtype,
        marks: Mapping[str, Lines],
        memo: dict[bytes, Tensor],
        edges: Mapping[Edge, IntArray] | None = None,
    ) -> None:
        super().__init__(program, dtype)
        self.marks = marks
        self.memo = memo
        self.edges = {(edge.reader, edge.source): (edge.dim, lost) for edge, lost in (edges or {}).items()}

    def seen(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """What the node reads, with the positions removed that it hasn't selected."""
        found = self.edges.get((node.name, source.name))
        return value if found is None else without(value, *found)

    def feed(self, value: Any) -> Any:
        """The input. Integers and booleans are FREE: indices and conditions, whose channels may go."""
        return map_tensors(lambda x: x if x.is_floating_point() or x.is_complex() else constant(x), value)

    def load(self, name: str) -> Any:
        value = super().load(name)
        if not isinstance(value, Tensor) or name in self.marks:
            return value if name not in self.marks else Lined(value, self.marks[name])
        return value if isinstance(self.program.tensors[name], nn.Parameter) else constant(value)

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:
            named = next((name for name in _SOURCE_NAMES if name in kwargs), None)
            args = () if named is None else (kwargs.pop(named),)
        given = self.give(node, args, kwargs)
        if isinstance(given, Instead):
            return apply(replace(self._described(node, given.args, given.kwargs), run=given.run))
        return apply(self._described(node, args, kwargs)) if given is None else given

    def _described(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        where, run = describe(node), self.target(node)
        if isinstance(run, nn.Module):
            name, own = str(node.target), module_tensors("", run)
            params = {key: self._own(f"{name}.{key}", tensor) for key, tensor in own}
            return Call(where, module_name(run), run, args, kwargs, run, params, memo=self.memo)
        if node.op == "call_method":
            name = str(node.target)
            return Call(where, method_name(name), run, args, kwargs, in_place=name.endswith("_"), memo=self.memo)
        in_place = node.target in _ASSIGNING or getattr(node.target, "__name__", "").endswith("_")
        return Call(where, function_name(node.target), run, args, kwargs, in_place=in_place, memo=self.memo)

    def _own(self, name: str, tensor: Tensor) -> Value:
        return Lined(tensor, self.marks[name]) if name in self.marks else tensor


def without(value: Value, dim: int, positions: IntArray) -> Value:
    """A value with some positions of one dimension removed."""
    data = plain(value)
    line = torch.full((data.shape[dim],), KEPT, dtype=torch.uint8)
    line[torch.as_tensor(positions, dtype=torch.int64)] = REMOVED
    marks = line.reshape([-1 if d == dim else 1 for d in range(data.ndim)])
    return Marked(data, torch.maximum(marks, value.marks) if isinstance(value, Marked) else marks)


def parameter_marks(program: Program, removed: Mapping[Axis, IntArray]) -> dict[str, Lines]:
    """The marks of every tensor that loses positions, by name; a tied tensor has them under each of its names.

    An element is removed if its position along any axis is. Along dimension 1 of a grouped convolution's weight,
    positions count input channels, so that an element's position depends on the group of its row.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in program.tensors.items():
        names.setdefault(id(tensor), []).append(name)
    found: dict[str, list[Tensor]] = {}
    for axis, positions in removed.items():
        if axis.tensor not in program.tensors:
            raise VerifyError(f"positions of {axis} are removed, but the program has no such tensor")
        lost = _axis_marks(program, axis, positions)
        for name in names[id(program.tensors[axis.tensor])]:
            found.setdefault(name, []).append(lost)
    return {name: Lines(lines) for name, lines in found.items()}


def _axis_marks(program: Program, axis: Axis, positions: IntArray) -> Tensor:
    shape = program.tensors[axis.tensor].shape
    owner = program.state.get(axis.owner)
    groups = int(getattr(owner, "groups", 1)) if axis.dim == 1 and isinstance(owner, nn.Module) else 1
    size = shape[axis.dim] * groups
    index = torch.as_tensor(positions, dtype=torch.int64)
    if bool(((index < 0) | (index >= size)).any()):
        raise VerifyError(f"{axis} has {size} positions, removed are {index.tolist()}")
    line = torch.full((size,), KEPT, dtype=torch.uint8)
    line[index] = REMOVED
    if groups > 1:
        rows = line.reshape(groups, 1, -1).expand(-1, shape[0] // groups, -1)
        return rows.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
    return line.reshape([size if dim == axis.dim else 1 for dim in range(len(shape))])


class Reference(ABC):
    """What a rewritten program is compared with."""

    nodewise: ClassVar[bool] = False
    """Whether a rewritten program that has the same nodes must agree with the reference at each of them."""

    def __init__(self, before: Program) -> None:
        self.before = before

    @abstractmethod
    def interpreter(self, dtype: torch.dtype) -> Interpreter:
        """An interpreter of the reference in this dtype."""

    def run(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> Any:
        """The outputs, as the model nests them, without marks. Raises `VerifyError` if removed channels reach them."""
        outputs = self.interpreter(dtype).run(inputs)
        self.check_whole(outputs)
        return plain(outputs)

    def check_whole(self, outputs: Any) -> None:
        """Raise `VerifyError` where an output has removed elements."""
        if any(isinstance(leaf, Marked) and leaf.has_removed for leaf in pytree.tree_leaves(outputs)):
            raise VerifyError("removed channels reach the model's output")

    def values(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> Iterator[Step]:
        """Every node with its value, in order, `Marked` where not all is kept; freed as the caller moves on."""
        return self.interpreter(dtype).steps(inputs)


class Same(Reference):
    """The old program itself, for rewrites that must not change what is computed."""

    def interpreter(self, dtype: torch.dtype) -> Interpreter:
        return Interpreter(self.before, dtype)


class Replaced(Reference):
    """The old program with other values in some of its tensors, each of the same shape as before."""

    def __init__(self, before: Program, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(before)
        self.tensors = dict(tensors)
        for name, tensor in self.tensors.items():
            if name not in before.tensors or before.tensors[name].shape != tensor.shape:
                raise VerifyError(f"'{name}' can't be replaced: the program has no such tensor of that shape")

    def interpreter(self, dtype: torch.dtype) -> Interpreter:
        return Interpreter(self.before, dtype, self.tensors)


class Masked(Reference):
    """The old program with removed channels masked where they are read; positions are numbered as in `before`."""

    nodewise: ClassVar[bool] = True

    def __init__(self, before: Program, removed: Mapping[Axis | Edge, IntArray]) -> None:
        super().__init__(before)
        lost = {place: positions for place, positions in removed.items() if len(positions)}
        self.removed = {axis: positions for axis, positions in lost.items() if isinstance(axis, Axis)}
        self.edges = {edge: positions for edge, positions in lost.items() if isinstance(edge, Edge)}
        self.memo: dict[bytes, Tensor] = {}

    @cached_property
    def marks(self) -> Mapping[str, Lines]:
        """The marks of the tensors that lose positions, by name."""
        return parameter_marks(self.before, self.removed)

    def interpreter(self, dtype: torch.dtype) -> MaskedInterpreter:
        return MaskedInterpreter(self.before, dtype, self.marks, self.memo, self.edges)


class MaskedOutputs(Masked):
    """`Masked`, where channels are gone that aren't masked, since their readers have taken in what they gave: outputs
    alone can be compared then."""

    nodewise: ClassVar[bool] = False
