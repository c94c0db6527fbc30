"""What a rewritten program must compute: the old program, run node by node, as it is or with removed channels masked.

    Same(before)                 the old program
    Replaced(before, tensors)    the old program with other values in some tensors (cluster means, refitted readers)
    Masked(before, removed)      the old program whose removed channels count for nothing where they are read

Everything runs in evaluation mode, in any floating dtype, one batch at a time, and a value is freed after its last
use. Leaf modules are cast on the fly, so that a float64 run never holds a second copy of the weights.
"""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir import train_eval
from prunec.compiler.ir.inputs import map_tensors
from prunec.compiler.ir.modules import clone_module
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.compiler.verify.masks import KEPT, REMOVED, Call, Marked, Value, constant, mark, plain
from prunec.compiler.verify.table import RULES, apply

Step = tuple[fx.Node, Any]

_DROPOUT: Final = frozenset(
    [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout]
)
_TO_FLOAT: Final = frozenset(["float", "double", "half", "bfloat16"])
_ASSIGNING: Final = frozenset([operator.iadd, operator.isub, operator.imul, operator.itruediv])
_SOURCE_NAMES: Final = ("input", "tensors", "x", "query")

_NAMESPACES: Final = (
    *(torch, F, operator, torch.Tensor, torch.special, torch.linalg, torch.fft, torch.ops.torchvision, train_eval),
)
_FAMILIES: Final[Mapping[str, str]] = {
    "torch.nn.modules.dropout": "dropout",
    "torch.nn.modules.padding": "pad",
    "torch.nn.modules.upsampling": "interpolate",
    "torch.nn.modules.activation": "relu",
}
_MODULES: Final[Mapping[type[nn.Module], str]] = {
    nn.PReLU: "prelu", nn.GLU: "glu", nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax", nn.Softmin: "softmin",
    nn.RMSNorm: "rms_norm", nn.MultiheadAttention: "", nn.Softmax2d: "", nn.Unfold: "unfold",
}  # fmt: skip


class StepError(RuntimeError):
    """A node can't be run; the cause is chained."""

    def __init__(self, node: fx.Node, cause: Exception) -> None:
        super().__init__(f"{describe(node)} fails: {cause}")
        self.node = node


def describe(node: fx.Node) -> str:
    """A node with what it calls: `node 'layer1_0_conv1' (layer1.0.conv1)`."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"node '{node.name}' ({target})"


class Interpreter:
    """Runs a program node by node in evaluation mode and in one floating dtype; nothing of the program is changed."""

    def __init__(self, program: Program, dtype: torch.dtype, replaced: Mapping[str, Tensor] | None = None) -> None:
        self.program = program
        self.dtype = dtype
        self.replaced = replaced or {}

    def steps(self, inputs: tuple[Any, ...]) -> Iterator[Step]:
        """Every node with its value, in order; the last is the output. Raises `StepError` where a node fails."""
        feeds = (map_tensors(lambda x: self.cast(x.clone()), value) for value in inputs)
        return self.resume(list(self.program.graph.nodes), {}, feeds)

    def resume(
        self, nodes: Sequence[fx.Node], env: dict[fx.Node, Any], feeds: Iterator[Any] | None = None
    ) -> Iterator[Step]:
        """The same for the last nodes of the graph, from the values in `env` that they read; it is used up."""
        dead, feeds = last_uses(nodes), iter(()) if feeds is None else feeds
        for node in nodes:
            with torch.no_grad(), _default_dtype(self.dtype):
                env[node] = self._step(node, feeds, env)
            yield node, env[node]
            for spent in dead.get(node, ()):
                del env[spent]

    def run(self, inputs: tuple[Any, ...]) -> Any:
        """The outputs, with masks where there are any."""
        value = None
        for _, value in self.steps(inputs):  # noqa: B007  (the last one is the output)
            pass
        return value

    def cast(self, tensor: Tensor) -> Tensor:
        """Floating tensors in the interpreter's dtype; others as they are."""
        if tensor.is_complex():
            return tensor.to(self.dtype.to_complex())
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def cast_any(self, tensor: Tensor) -> Tensor:
        """Any tensor in the interpreter's dtype."""
        return tensor.to(self.dtype)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer, cast and detached."""
        return self.cast(self.replaced[name] if name in self.replaced else self.program.tensors[name]).detach()

    def _step(self, node: fx.Node, feeds: Iterator[Tensor], env: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        try:
            match node.op:
                case "placeholder":
                    return self.feed(next(feeds, *args))
                case "output":
                    return args[0]
                case "get_attr":
                    return self.load(str(node.target))
                case _:
                    return self.call(node, *self._own_dtype(args, kwargs))
        except VerifyError:
            raise
        except Exception as error:
            raise StepError(node, error) from error

    def _own_dtype(self, args: Any, kwargs: Any) -> Any:
        """In float64, floating dtypes that the graph spells out become float64 too."""

        def own(value: Any) -> Any:
            if isinstance(value, torch.dtype) and value.is_complex:
                return torch.complex128
            return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

        pair = (tuple(args), dict(kwargs))
        return pytree.tree_map(own, pair) if self.dtype == torch.float64 else pair

    def feed(self, value: Any) -> Any:
        """The value of an input."""
        return value

    def load(self, name: str) -> Any:
        """The value of a `get_attr`: a tensor, or the flag `training`."""
        return False if name == "training" else self.tensor(name)

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a call."""
        return self.target(node)(*args, **kwargs)

    def target(self, node: fx.Node) -> Callable[..., Any]:
        """What a node calls, as a function of plain values."""
        if node.op == "call_module":
            module = self.program.state[str(node.target)]
            assert isinstance(module, nn.Module), f"'{node.target}' is called but is no module"
            return self._prepared(str(node.target), module)
        if node.op == "call_method":
            name = str(node.target)
            return self.cast_any if name in _TO_FLOAT and self.dtype == torch.float64 else _method(name)
        assert callable(node.target), f"'{node.target}' can't be called"
        return _first if node.target in _DROPOUT else node.target

    def _prepared(self, name: str, module: nn.Module) -> nn.Module:
        """The module in evaluation mode with cast tensors; a shallow copy."""
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        tensors = {key: self.cast(self.replaced.get(f"{name}.{key}", tensor)) for key, tensor in own}
        copy = clone_module(module, tensors, training=False)
        for key, child in module.named_children():
            copy._modules[key] = self._prepared(f"{name}.{key}", child)
        if isinstance(copy, nn.RNNBase):
            copy._flat_weights = [getattr(copy, key) for key in copy._flat_weights_names]
        return copy


def _first(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors get this dtype where the graph names none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def last_uses(nodes: Iterable[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Which values nobody among the nodes needs once a node has run."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        last.update(dict.fromkeys(node.all_input_nodes, node))
    dead: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        dead.setdefault(user, []).append(value)
    return dead


def _function_name(target: Any) -> str:
    """The name of a function of torch or `operator`, without in-place underscores; empty for anyone else's."""
    name = getattr(target, "__name__", "")
    if target is getattr:
        return "getattr"
    short = name.removeprefix("linalg_").removeprefix("fft_")  # the name that `torch.linalg.vector_norm` has itself
    known = any(getattr(space, key, None) is target for space in _NAMESPACES for key in (name, short))
    return _method_name(name) if known else ""


def _method_name(name: str) -> str:
    """A method's name without in-place underscores."""
    return name if name in RULES else name.rstrip("_")


def _module_name(module: nn.Module) -> str:
    """The functional name of a standard module's operation; empty for others."""
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules."):
        return ""
    if kind in _MODULES:
        return _MODULES[kind]
    if kind.__module__ in _FAMILIES:
        return _FAMILIES[kind.__module__]
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
    return re.sub(r"(?<=norm)\dd$", "", snake)


class MaskedInterpreter(Interpreter):
    """An interpreter whose values carry marks; see `masks`."""

    def __init__(
        self, program: Program, dtype: torch.dtype, marks: Mapping[str, Tensor], memo: dict[bytes, Tensor]
    ) -> None:
        super().__init__(program, dtype)
        self.marks = marks
        self.memo = memo

    def feed(self, value: Any) -> Any:
        """Whole numbers and truth values are places and choices, not channels: a column made of them may go."""
        return map_tensors(lambda x: x if x.is_floating_point() or x.is_complex() else constant(x), value)

    def load(self, name: str) -> Any:
        value = super().load(name)
        if not isinstance(value, Tensor) or name in self.marks:
            return value if name not in self.marks else mark(value, self.marks[name])
        return value if isinstance(self.program.tensors[name], nn.Parameter) else constant(value)

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:
            named = next((name for name in _SOURCE_NAMES if name in kwargs), None)
            args = () if named is None else (kwargs.pop(named),)
        return apply(self._described(node, args, kwargs, self.target(node)))

    def _described(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], run: Any) -> Call:
        where = describe(node)
        if node.op == "call_module":
            own = (*run.named_parameters(), *run.named_buffers())
            params = {key: self._own(f"{node.target}.{key}", tensor) for key, tensor in own}
            return Call(where, _module_name(run), run, args, kwargs, run, params, memo=self.memo)
        if node.op == "call_method":
            name = str(node.target)
            return Call(where, _method_name(name), run, args, kwargs, in_place=name.endswith("_"), memo=self.memo)
        in_place = node.target in _ASSIGNING or getattr(node.target, "__name__", "").endswith("_")
        return Call(where, _function_name(node.target), run, args, kwargs, in_place=in_place, memo=self.memo)

    def _own(self, name: str, tensor: Tensor) -> Value:
        return mark(tensor, self.marks[name]) if name in self.marks else tensor


def parameter_marks(program: Program, removed: Mapping[Axis, IntArray]) -> dict[str, Tensor]:
    """The marks of every tensor that loses positions, under each of its names.

    An element is removed if its position along any axis is. Along dimension 1 of a grouped convolution the position of
    an element depends on its row's group.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in program.tensors.items():
        names.setdefault(id(tensor), []).append(name)
    marks: dict[str, Tensor] = {}
    for axis, positions in removed.items():
        if axis.tensor not in program.tensors:
            raise VerifyError(f"positions of {axis} are removed, but the program has no such tensor")
        lost = _axis_marks(program, axis, positions)
        for name in names[id(program.tensors[axis.tensor])]:
            marks[name] = torch.maximum(marks[name], lost) if name in marks else lost
    return marks


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
    """Whether the rewritten program, where it has the same nodes, must agree at each of them."""

    def __init__(self, before: Program) -> None:
        self.before = before

    @abstractmethod
    def interpreter(self, dtype: torch.dtype) -> Interpreter:
        """What runs it in a dtype."""

    def run(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> Any:
        """The outputs: plain tensors in the nest that the model returns. Raises `VerifyError` if they aren't whole."""
        outputs = self.interpreter(dtype).run(inputs)
        self.check_whole(outputs)
        return plain(outputs)

    def check_whole(self, outputs: Any) -> None:
        """Raise `VerifyError` where an output has lost elements."""
        if any(isinstance(leaf, Marked) and leaf.has_removed for leaf in pytree.tree_leaves(outputs)):
            raise VerifyError("removed channels reach the model's output")

    def values(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> Iterator[Step]:
        """Every node with its value, in order; removed elements are marked. Values are freed as the caller moves on."""
        return self.interpreter(dtype).steps(inputs)


class Same(Reference):
    """The old program itself, for rewrites that change nothing."""

    def interpreter(self, dtype: torch.dtype) -> Interpreter:
        return Interpreter(self.before, dtype)


class Replaced(Reference):
    """The old program with other values in some of its tensors; each of the old one's shape."""

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

    def __init__(self, before: Program, removed: Mapping[Axis, IntArray]) -> None:
        super().__init__(before)
        self.removed = {axis: positions for axis, positions in removed.items() if len(positions)}
        self.memo: dict[bytes, Tensor] = {}

    @cached_property
    def marks(self) -> Mapping[str, Tensor]:
        """The marks of the tensors that lose positions, by name."""
        return parameter_marks(self.before, self.removed)

    def interpreter(self, dtype: torch.dtype) -> Interpreter:
        return MaskedInterpreter(self.before, dtype, self.marks, self.memo)
