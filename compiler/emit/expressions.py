"""An fx node as Python text: names of functions, infix operators, slices, method calls.

    call_function  torch._C._nn.gelu, (conv1,)                    F.gelu(conv1)
    call_function  operator.getitem, (x, (slice(None), slice(1))) x[:, :1]
    call_method    view, (x, getitem, -1)                         x.view(x.shape[0], -1)
    call_module    layer1.0.conv1, (x,)                           self.layer1["0"].conv1(x)

Every operand of a text is an atom (a variable, a literal or a postfix chain), because a node's value is kept in a
variable of its own; only reads of attributes, and sizes read once, are spelled in place. So no text needs
parentheses for precedence, with one exception: a negative number raised to a power.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.operations import operation_of
from prunec.compiler.ir.symbols import IN_PLACE, INFIX, OP_NAMESPACES, PREFIX, public_name
from prunec.compiler.ir.train_eval import by_mode
from prunec.compiler.text.literals import quote

METADATA = frozenset({"shape", "ndim", "dtype", "device"})
RESHAPES_IN_PLACE = frozenset(
    {"resize_", "t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "set_"}
)

# `input` is a usual argument's name, and no emitted text calls the builtin. A reader takes l, O and I for digits.
RESERVED = frozenset(dir(builtins)) - {"input"} | frozenset(
    ("torch", "torchvision", "nn", "F", "math", "operator", "self", "Parts", "load", "l", "O", "I")
)


class ExpressionWriter:
    """Writes the nodes of a graph in their order, and collects what their text needs: `imports`, `records`."""

    def __init__(self, graph: fx.Graph, tables: Collection[str] = ()) -> None:
        """`tables` are the paths of the model's parts that hold others by key; see `attribute_path`."""
        self._tables = tables
        self.imports: set[str] = set()
        self.packages: set[str] = set()
        """Modules of other packages that have to be imported, since they register operators with torch."""
        self.records: dict[str, tuple[str, ...]] = {}
        self.texts: dict[fx.Node, str] = {}
        self.reads: dict[fx.Node, frozenset[str]] = {}
        """The variables that a user of the node reads: the node's own, or those of a text spelled in place."""
        self._taken = set(RESERVED)
        self._may_inline = not any(node.target in RESHAPES_IN_PLACE for node in graph.nodes)

    def argument(self, node: fx.Node) -> str:
        """A placeholder as an argument of `forward`; it keeps its name where that is legal."""
        name = str(node.target)
        stars = "*" * (len(name) - len(name.lstrip("*")))
        self.texts[node] = variable = self._fresh(name.lstrip("*"))
        self.reads[node] = frozenset({variable})
        if node.args:
            return f"{variable}={self.value(node.args[0])}"
        kind = ": torch.Tensor" if isinstance(node.meta.get("val"), torch.Tensor) and not stars else ""
        return f"{stars}{variable}{kind}"

    def statement(self, node: fx.Node) -> str | None:
        """The node as a statement; None where its text goes into its users' statements."""
        self.reads[node] = self.read_by(node)
        if node.op == "output":
            return f"return {self.value(node.args[0])}"
        if node.target is operator.setitem:
            base, index, value = node.args
            return f"{self.value(base)}[{self._index(index)}] = {self.value(value)}"
        if node.target in IN_PLACE and _changes_a_variable(node):
            self.texts[node] = variable = self.value(node.args[0])
            self.reads[node] = frozenset({variable})
            return f"{variable} {IN_PLACE[node.target]} {self.value(node.args[1])}"
        text = self.expression(node)
        if self._may_inline and _is_cheap_read(node):
            self.texts[node] = text
            return None
        if not node.users:
            return text
        self.texts[node] = variable = self._fresh(node.name)
        self.reads[node] = frozenset({variable})
        return f"{variable} = {text}"

    def read_by(self, node: fx.Node) -> frozenset[str]:
        """The variables that the node's statement reads."""
        return frozenset[str]().union(*(self.reads[source] for source in node.all_input_nodes))

    def expression(self, node: fx.Node) -> str:
        """The text of the value that a node computes."""
        if node.op == "get_attr":
            return attribute_path(str(node.target), self._tables)
        if node.op == "call_module":
            return f"{attribute_path(str(node.target), self._tables)}({self._arguments(node.args, node.kwargs)})"
        if node.op == "call_method":
            return f"{self.value(node.args[0])}.{node.target}({self._arguments(node.args[1:], node.kwargs)})"
        return self._call(node)

    def value(self, value: Any) -> str:
        """The text of an argument: a node's variable, a literal, or a structure of these."""
        for kinds, spell in _VALUES:
            if isinstance(value, kinds):
                return spell(self, value)
        raise ModelError(f"no way to write a {type(value).__name__} as Python source: {value!r}")

    def _call(self, node: fx.Node) -> str:
        target, args = node.target, node.args
        if target is operator.getitem:
            return f"{self.value(args[0])}[{self._index(args[1])}]"
        if target is getattr and len(args) == 2:
            return f"{self.value(args[0])}.{args[1]}"
        if target in INFIX:
            left = self.value(args[0])
            left = f"({left})" if target is operator.pow and left.startswith("-") else left
            return f"{left} {INFIX[target]} {self.value(args[1])}"
        if target in PREFIX:
            return f"{PREFIX[target]}{self.value(args[0])}"
        if target is by_mode:
            return f"{self.value(args[1])} if self.training else {self.value(args[0])}"
        if target is operator.contains:
            return f"{self.value(args[1])} in {self.value(args[0])}"
        assert callable(target), f"{node.name} calls {target!r}"
        return f"{self._function(node, target)}({self._arguments(args, without_defaults(target, node.kwargs))})"

    def _function(self, node: fx.Node, target: Callable[..., Any]) -> str:
        if isinstance(target, type) and issubclass(target, tuple) and hasattr(target, "_fields"):
            return self._record(target.__name__, target._fields)
        name = public_name(target)
        if name is None:
            origin = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', target)}"
            raise ModelError(
                f"node '{node.name}' calls '{origin}', which has no public name in torch",
                hint="an emitted model loads with torch alone: write the function with torch's operations",
            )
        self.imports.add(name.partition(".")[0])
        operation = operation_of(target)
        if operation is not None:
            self.packages.add(type(operation).__module__)
        elif name.startswith("torch.ops.") and name.split(".")[2] not in OP_NAMESPACES:
            raise ModelError(
                f"node '{node.name}' calls '{name}', which isn't torch's own",
                hint="register it in the entry-point group 'prunec.ops': the file then imports its package",
            )
        return name

    def _record(self, name: str, fields: tuple[str, ...]) -> str:
        """The name of a named tuple's class, which the emitted file defines again."""
        while self.records.setdefault(name, fields) != fields:
            name += "_"
        self._taken.add(name)
        return name

    def _arguments(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
        return ", ".join([*map(self.value, args), *(f"{key}={self.value(value)}" for key, value in kwargs.items())])

    def _index(self, index: Any) -> str:
        if isinstance(index, slice):
            parts = [("" if part is None else self.value(part)) for part in (index.start, index.stop, index.step)]
            return ":".join(parts if parts[2] else parts[:2])
        if isinstance(index, tuple) and index:
            return ", ".join(map(self._index, index)) + ("," if len(index) == 1 else "")
        return self.value(index)

    def _fresh(self, name: str) -> str:
        while name in self._taken or keyword.iskeyword(name):
            name += "_"
        self._taken.add(name)
        return name

    def _sequence(self, values: Iterable[Any]) -> str:
        return ", ".join(map(self.value, values))

    def _tuple(self, value: tuple[Any, ...]) -> str:
        if hasattr(value, "_fields"):
            return f"{self._record(type(value).__name__, value._fields)}({self._sequence(value)})"
        return f"({self._sequence(value)}{',' if len(value) == 1 else ''})"

    def _dict(self, value: Mapping[Any, Any]) -> str:
        return "{" + ", ".join(f"{self.value(key)}: {self.value(item)}" for key, item in value.items()) + "}"

    def _float(self, value: float) -> str:
        return repr(value) if math.isfinite(value) else f'float("{value}")'

    def _slice(self, value: slice) -> str:
        return f"slice({self._sequence((value.start, value.stop, value.step))})"

    def _class(self, value: type) -> str:
        name = public_name(value)
        if name is None:
            raise ModelError(f"the class '{value.__module__}.{value.__qualname__}' has no public name in torch")
        self.imports.add(name.partition(".")[0])
        return name


# In this order: a bool is an int, a torch.Size and a named tuple are tuples.
_VALUES: tuple[tuple[Any, Callable[[ExpressionWriter, Any], str]], ...] = (
    (fx.Node, lambda writer, value: writer.texts[value]),
    (str, lambda writer, value: quote(value)),
    (float, ExpressionWriter._float),
    ((bool, int, complex, type(None)), lambda writer, value: repr(value)),
    (type(...), lambda writer, value: "..."),
    ((torch.dtype, torch.memory_format, torch.layout), lambda writer, value: str(value)),
    (torch.device, lambda writer, value: f"torch.device({quote(str(value))})"),
    (slice, ExpressionWriter._slice),
    (range, lambda writer, value: repr(value)),
    (tuple, ExpressionWriter._tuple),
    (list, lambda writer, value: f"[{writer._sequence(value)}]"),
    (dict, ExpressionWriter._dict),
    (type, ExpressionWriter._class),
)


def attribute_path(target: str, tables: Collection[str] = ()) -> str:
    """`self.layer1["0"].conv1` for `layer1.0.conv1` where `tables` (module or parameter dicts) hold the path `layer1`.

    What no identifier names and no table holds is read by `getattr`, which TorchScript knows, too. A flag `training` is
    read off the whole model.
    """
    *owner, last = target.split(".")
    if last == "training":
        return "self.training"
    parent = attribute_path(".".join(owner), tables) if owner else "self"
    if is_attribute(last):
        return f"{parent}.{last}"
    return f"{parent}[{quote(last)}]" if ".".join(owner) in tables else f"getattr({parent}, {quote(last)})"


def is_attribute(name: str) -> bool:
    """Whether Python lets one write `parent.name`."""
    return name.isidentifier() and not keyword.iskeyword(name)


def without_defaults(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that differ from the function's defaults; all, for a function of unknown signature."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin
        return dict(kwargs)
    known = {name: parameter.default for name, parameter in parameters.items()}
    return {
        key: value
        for key, value in kwargs.items()
        if key not in known or type(known[key]) is not type(value) or known[key] != value
    }


def _changes_a_variable(node: fx.Node) -> bool:
    """Whether `x += y` says what the node does: `x` is a tensor in a variable, not a number, a list or an attribute."""
    first = node.args[0]
    return isinstance(first, fx.Node) and first.op != "get_attr" and isinstance(first.meta.get("val"), torch.Tensor)


def _is_cheap_read(node: fx.Node) -> bool:
    """Whether a node's text is put in place of a variable: attributes, and sizes that are read once."""
    if node.op == "get_attr":
        return True
    if node.target is getattr:
        return len(node.args) == 2 and node.args[1] in METADATA
    if len(node.users) != 1:
        return False
    if node.op == "call_method":
        return node.target in {"size", "dim"}
    return node.target is operator.getitem and _is_shape(node.args[0]) and isinstance(node.args[1], int)


def _is_shape(value: Any) -> bool:
    if not isinstance(value, fx.Node):
        return False
    return value.target == "size" or (value.target is getattr and value.args[1:] == ("shape",))
