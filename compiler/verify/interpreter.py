"""Runs a program node by node in evaluation mode, in any floating-point dtype.

    Interpreter(program, torch.float64).run((x,))      the outputs
    Interpreter(program, torch.float64).steps((x,))    (node, value) of every node, in order

A value is freed after its last use. Leaf modules are cast on the fly, so that a float64 run never holds a second copy
of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.aliasing import written
from prunec.compiler.ir.inputs import map_tensors
from prunec.compiler.ir.modules import clone_module, is_scripted
from prunec.compiler.ir.program import Program

Step = tuple[fx.Node, Any]


@dataclass(frozen=True)
class Instead:
    """A call that tells the marks of a node's value in place of its own."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    run: Callable[..., Any]


Give = Callable[[fx.Node, Any, Any], Any]
"""(node, args, kwargs) -> the value that the node is given; None where it is to be computed, an `Instead` where marks
are."""

_DROPOUT: Final = frozenset(
    [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout]
)
_TO_FLOAT: Final = frozenset(["float", "double", "half", "bfloat16"])


class StepError(RuntimeError):
    """A node fails when it is run; the exception that it raised is chained."""

    def __init__(self, node: fx.Node, cause: Exception) -> None:
        super().__init__(f"{describe(node)} fails: {cause}")
        self.node = node


def precision_of(program: Program) -> torch.dtype:
    """The dtype to run a program in: float64 for one that has any, else float32; half precision is slow on a CPU."""
    return torch.float64 if any(t.dtype == torch.float64 for t in program.tensors.values()) else torch.float32


def describe(node: fx.Node) -> str:
    """A node with what it calls: `node 'layer1_0_conv1' (layer1.0.conv1)`."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"node '{node.name}' ({target})"


class Interpreter:
    """Runs a program node by node; nothing of the program is changed.

    `replaced` holds other values for some parameters and buffers, by name. `MaskedInterpreter` overrides `feed`, `load`
    and `call`, to let marks travel with the values. `give` may give values to nodes, which aren't called then.
    """

    def __init__(self, program: Program, dtype: torch.dtype, replaced: Mapping[str, Tensor] | None = None) -> None:
        self.program = program
        self.dtype = dtype
        self.replaced = replaced or {}
        self.give: Give = _nothing
        self._written: dict[str, Tensor] = {}
        """Copies of the tensors that the run writes into."""

    def steps(self, inputs: tuple[Any, ...]) -> Iterator[Step]:
        """Every node with its value, in order; the last is the output. Raises `StepError` where a node fails."""
        self._written = {}
        feeds = (map_tensors(lambda x: self.cast(x.clone()), value) for value in inputs)
        return self.resume(list(self.program.graph.nodes), {}, feeds)

    def resume(
        self, nodes: Sequence[fx.Node], env: dict[fx.Node, Any], feeds: Iterator[Any] | None = None
    ) -> Iterator[Step]:
        """`steps` for `nodes`, the last ones of the graph; `env` holds earlier values, and is emptied on the way."""
        dead, feeds = last_uses(nodes), iter(()) if feeds is None else feeds
        for node in nodes:
            with torch.no_grad(), _default_dtype(self.dtype):
                env[node] = self._step(node, feeds, env)
            yield node, env[node]
            for spent in dead.get(node, ()):
                del env[spent]

    def follow(self, other: Interpreter) -> None:
        """Have what another run has written into tensors by now, to be resumed from there."""
        self._written = {name: tensor.clone() for name, tensor in other._written.items()}

    def run(self, inputs: tuple[Any, ...]) -> Any:
        """The outputs, nested as the model returns them."""
        value = None
        for _, value in self.steps(inputs):  # noqa: B007  (the last one is the output)
            pass
        return value

    def cast(self, tensor: Tensor) -> Tensor:
        """Floating-point and complex tensors in the interpreter's precision; others unchanged."""
        if tensor.is_complex():
            return tensor.to(self.dtype.to_complex())
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def cast_any(self, tensor: Tensor) -> Tensor:
        """Any tensor, also an integer one, in the interpreter's dtype: `x.float()` in a float64 run."""
        return tensor.to(self.dtype)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer, cast and detached."""
        return self.cast(self.replaced[name] if name in self.replaced else self.program.tensors[name]).detach()

    def _step(self, node: fx.Node, feeds: Iterator[Tensor], env: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.seen(node, n, env[n]))
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
        """The arguments of a call; in a float64 run, the floating-point dtypes among them become float64."""

        def own(value: Any) -> Any:
            if isinstance(value, torch.dtype) and value.is_complex:
                return torch.complex128
            return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

        pair = (tuple(args), dict(kwargs))
        return pytree.tree_map(own, pair) if self.dtype == torch.float64 else pair

    def seen(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """The value of a source as the node reads it."""
        return value

    def feed(self, value: Any) -> Any:
        """The value of an input."""
        return value

    def load(self, name: str) -> Any:
        """The value of a `get_attr`: a parameter, a buffer or a constant, or False for the flag `training`."""
        if name == "training":
            return False
        if name not in written(self.program):
            return self.tensor(name)
        if name not in self._written:
            self._written[name] = self.tensor(name).clone()
        return self._written[name]

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a call."""
        given = self.give(node, args, kwargs)
        return self.target(node)(*args, **kwargs) if given is None else given

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
        if node.target is torch.cdist:
            return _cdist
        return _first if node.target in _DROPOUT else node.target

    def _prepared(self, name: str, module: nn.Module) -> nn.Module:
        """The module in evaluation mode with cast tensors; a shallow copy, unless it is so already."""
        if is_scripted(module):
            return self._scripted(name, module)
        if not self.replaced and self._is_ready(module):
            return module
        own = (*module._parameters.items(), *module._buffers.items())
        tensors = {
            key: self.cast(self.replaced.get(f"{name}.{key}", tensor)) for key, tensor in own if tensor is not None
        }
        prepared = clone_module(module, tensors, training=False)
        for key, child in module.named_children():
            prepared._modules[key] = self._prepared(f"{name}.{key}", child)
        return prepared

    def _is_ready(self, module: nn.Module) -> bool:
        """Whether a module can run as it is: a plain layer of torch, which keeps nothing of a run, of this dtype."""
        if module.training or module._modules or not type(module).__module__.startswith("torch.nn.modules."):
            return False
        tensors = (*module._parameters.values(), *module._buffers.values())
        return all(
            tensor is None or tensor.dtype == self.dtype or not (tensor.is_floating_point() or tensor.is_complex())
            for tensor in tensors
        )

    def _scripted(self, name: str, module: nn.Module) -> nn.Module:
        """A TorchScript module, which can't be taken apart: a full copy in the interpreter's precision."""
        copied = copy.deepcopy(module).eval().to(self.dtype)
        for key, tensor in (*copied.named_parameters(), *copied.named_buffers()):
            if f"{name}.{key}" in self.replaced:
                tensor.copy_(self.replaced[f"{name}.{key}"])
        return copied


def _nothing(_node: fx.Node, _args: Any, _kwargs: Any) -> None:
    """Every node is computed."""


def _first(value: Any, *_: Any, **__: Any) -> Any:
    """Dropout in evaluation mode."""
    return value


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """`torch.cdist` by differences: by products, distances near zero are rounding errors, others in each program."""
    return torch.cdist(x1, x2, p, compute_mode="donot_use_mm_for_euclid_dist")


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors made without a dtype (`torch.zeros(3)`) get this one."""
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def last_uses(nodes: Iterable[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the values that none of `nodes` reads after it, so that they can be freed."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        last.update(dict.fromkeys(node.all_input_nodes, node))
    dead: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        dead.setdefault(user, []).append(value)
    return dead
