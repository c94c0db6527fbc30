"""What a row of the direct writer is given of a call, and the tables that hold the rows.

    @on_module(nn.ReLU)
    @on_op("relu")
    def relu(call: Call) -> str:
        return call.add("Relu", call.first)

A row adds nodes to the graph and gives the names of the call's value. The value's shape and type are known
(`call.shape`, `call.dtype`): a row that moves data writes the shape that comes out. What it can't write exactly it
declines. A second row for one operation is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, op_name
from prunec.compiler.ir.table import Table
from prunec.compiler.targets.onnx.graph import TYPES, Graph
from prunec.compiler.targets.onnx.sizes import Affine, NotAffine, Shapes, Size

Names = Any
"""The names of a value: one, or a nest of them; a constant stands for itself, as a tensor."""
Row = Callable[["Call"], Names]

OP_ROWS: Final[Table[str, Row]] = Table()
"""Functions and methods, by `op_name`."""
MODULE_ROWS: Final[Table[type[nn.Module], Row]] = Table()
"""Leaf modules by class; subclasses that share their forward have the same row."""


class Declined(Exception):
    """The direct writer has no form of an operation; the text names the operation and says why."""


def on_op(*names: str) -> Callable[[Row], Row]:
    """Register a row for functions and tensor methods of these names."""
    return OP_ROWS.register(*names)


def on_module(*classes: type[nn.Module]) -> Callable[[Row], Row]:
    """Register a row for leaf modules of these classes."""
    return MODULE_ROWS.register(*classes)


def module_row(module: nn.Module) -> Row | None:
    """The row of a leaf module; None where it has none, and where hooks or children make it another operation."""
    if module._modules or module._forward_pre_hooks or module._forward_hooks:
        return None
    for cls in type(module).__mro__:
        if issubclass(cls, nn.Module) and cls in MODULE_ROWS:
            return MODULE_ROWS[cls] if type(module).forward is cls.forward else None
    return None


class Call:
    """One call in the program, with the names that its operands have in the ONNX graph."""

    def __init__(
        self, graph: Graph, shapes: Shapes, env: Mapping[fx.Node, Names], node: fx.Node, module: nn.Module | None
    ) -> None:
        self.graph = graph
        self.node = node
        self._shapes = shapes
        self._env = env
        self._module = module

    # -- what is called ------------------------------------------------------------------------------------------------

    @property
    def is_module(self) -> bool:
        """Whether a leaf module is called."""
        return self._module is not None

    @property
    def module(self) -> Any:
        """The leaf module that is called."""
        assert self._module is not None, f"{self.node.name} calls no module"
        return self._module

    @property
    def kind(self) -> str:
        """The function's name, or that of the module's class."""
        return type(self._module).__name__ if self.is_module else op_name(self.node)

    def decline(self, why: str) -> NoReturn:
        """Leave the whole model to torch's exporter."""
        raise Declined(why)

    # -- arguments -----------------------------------------------------------------------------------------------------

    def given(self, position: int, name: str, default: Any = None) -> Any:
        """An argument as the fx graph has it."""
        return argument(self.node, position, name, default)

    def literal(self, position: int, name: str, default: Any = None) -> Any:
        """The value of an argument that holds no tensor and doesn't follow the batch."""
        return self.plain(self.given(position, name, default))

    def option(self, position: int, name: str, default: Any = None) -> Any:
        """A module's attribute, or a function's literal argument of the same name."""
        return getattr(self._module, name, default) if self.is_module else self.literal(position, name, default)

    def plain(self, argument: Any) -> Any:
        """What an argument without tensors is, at any batch."""
        values = self._shapes.of(argument)
        if any(value != values[0] for value in values[1:]):
            self.decline("an argument follows the batch")
        return values[0]

    def operand(self, position: int, name: str) -> Any:
        """A tensor among the arguments as the fx graph has it; of a module, its parameter or buffer of that name."""
        return getattr(self._module, name, None) if self.is_module and position else self.given(position, name)

    @property
    def first(self) -> str:
        """The name of the first operand."""
        return self.name(self.subject)

    @property
    def subject(self) -> Any:
        """The first operand as the fx graph has it."""
        return self.given(0, "input")

    # -- operands ------------------------------------------------------------------------------------------------------

    def is_tensor(self, operand: Any) -> bool:
        """Whether an argument is a tensor."""
        return isinstance(operand, torch.Tensor) or isinstance(self._shapes.of(operand)[0], torch.Tensor)

    def constant(self, operand: Any) -> torch.Tensor | None:
        """The tensor that an operand always is; None where it depends on the inputs."""
        value = self._env.get(operand) if isinstance(operand, fx.Node) else operand
        return value if isinstance(value, torch.Tensor) else None

    def name(self, operand: Any, dtype: torch.dtype | None = None) -> str:
        """The name of an operand: a tensor, a number, or a size; converted to a type where one is given."""
        if not self.is_tensor(operand):
            return self._number(operand, dtype or self.dtype)
        fixed = self.constant(operand)
        if fixed is not None:
            same = dtype is None or fixed.dtype == dtype
            return self.graph.tensor(fixed if same else fixed.to(dtype))
        name = self._env[operand]
        assert isinstance(name, str), f"{operand} is no tensor"
        return name if dtype is None else self.cast(name, self.dtype_of(operand), dtype)

    def _number(self, operand: Any, dtype: torch.dtype) -> str:
        values = self._shapes.of(operand)
        if not all(isinstance(value, bool | int | float) for value in values):
            self.decline("an operand is neither a tensor nor a number")
        if all(value == values[0] for value in values):
            return self.graph.constant(values[0], dtype)
        vector = self.cast(self.graph.size(self._size(values)), torch.int64, dtype)
        return self.add("Squeeze", vector, self.graph.numbers([0]))

    def cast(self, name: str, old: torch.dtype, new: torch.dtype) -> str:
        """A value in another type."""
        return name if old == new else self.add("Cast", name, to=self.type_of(new))

    def type_of(self, dtype: torch.dtype) -> int:
        """ONNX's number of a type."""
        if dtype not in TYPES:
            self.decline(f"a value is {dtype}")
        return TYPES[dtype]

    def names(self, operands: Any) -> tuple[str, ...]:
        """The names of a list of tensors."""
        found = operands if isinstance(operands, list | tuple) else self._env[operands]
        if not isinstance(found, list | tuple):
            self.decline("it isn't called with a list")
        return tuple(name if isinstance(name, str) else self.name(name) for name in found)

    def parts(self, operand: Any) -> Any:
        """The names in a tuple, list or mapping of tensors."""
        return self._env[operand]

    def example(self, operand: Any) -> Any:
        """An operand's value for the example inputs, on the meta device."""
        return self._shapes.of(operand)[0]

    def dtype_of(self, operand: Any) -> torch.dtype:
        """The type of an operand."""
        found: torch.dtype = self.example(operand).dtype
        return found

    def shape_of(self, operand: Any) -> tuple[Size, ...]:
        """The shape of an operand."""
        return self._shape(self._shapes.of(operand))

    def rank_of(self, operand: Any) -> int:
        """The rank of an operand."""
        return len(self.shape_of(operand))

    def fixed_shape_of(self, operand: Any, dims: Sequence[int]) -> list[int]:
        """Some dimensions of an operand, which must not follow the batch."""
        shape = self.shape_of(operand)
        return [self.fixed(shape[dim]) for dim in dims]

    def fixed(self, size: Size) -> int:
        """A size that doesn't follow the batch; declines one that does."""
        if isinstance(size, Affine):
            self.decline("a size follows the batch")
        return size

    # -- the value -----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[Size, ...]:
        """The value's shape."""
        return self.shape_of(self.node)

    @property
    def rank(self) -> int:
        """The value's rank."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The value's type."""
        return self.dtype_of(self.node)

    @property
    def shapes(self) -> list[tuple[Size, ...]]:
        """The shapes of the tensors in a value that is a tuple of them."""
        values = self._shapes.of(self.node)
        if len({len(value) for value in values}) > 1:
            self.decline("the number of parts follows the batch")
        return [self._shape(parts) for parts in zip(*values, strict=True)]

    def _shape(self, tensors: Sequence[torch.Tensor]) -> tuple[Size, ...]:
        try:
            return self._shapes.shape(tensors)
        except NotAffine:
            self.decline("a shape doesn't follow the batch in proportion")

    def _size(self, values: Sequence[int]) -> Size:
        try:
            return self._shapes.size(values)
        except NotAffine:
            self.decline("a size doesn't follow the batch in proportion")

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is given."""
        return self.graph.add(kind, *inputs, **attributes)

    def numbers(self, *values: int) -> str:
        """A vector of whole numbers."""
        return self.graph.numbers(values)

    def scalar(self, value: float, dtype: torch.dtype | None = None) -> str:
        """A number of the value's type, or of another."""
        return self.graph.constant(value, dtype or self.dtype)

    def reshaped(self, name: str, old: Sequence[Size], new: Sequence[Size]) -> str:
        """A value in another shape; the value itself where that is its own."""
        if tuple(old) == tuple(new):
            return name
        if 0 in new:
            self.decline("a tensor is empty")
        open_dims = [dim for dim, size in enumerate(new) if isinstance(size, Affine)]
        if len(open_dims) > 1:
            return self.add("Reshape", name, self.graph.shape(new))
        return self.add("Reshape", name, self.numbers(*(-1 if isinstance(size, Affine) else size for size in new)))

    def transposed(self, name: str, order: Sequence[int]) -> str:
        """A value with its dimensions in another order."""
        return name if list(order) == sorted(order) else self.add("Transpose", name, perm=list(order))

    def reduced(self, kind: str, name: str, dims: Sequence[int] | None, keep: bool) -> str:
        """A reduction over some dimensions; None stands for all."""
        axes = [] if dims is None else [self.numbers(*dims)]
        return self.add(kind, name, *axes, keepdims=int(keep))

    def bound(self, dim: int, rank: int) -> int:
        """A dimension counted from the front."""
        return dim % rank if rank else 0

    def spread(self, value: Any, count: int) -> list[int]:
        """`(2, 2)` of 2: an option for each dimension of an image."""
        values = list(value) if isinstance(value, list | tuple) else [value]
        return [int(x) for x in (values * count if len(values) == 1 else values)]
