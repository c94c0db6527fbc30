"""Reads a program's text (its form is shown in `text/printer.py`) line by line, and computes the shapes as it goes.

Every operation is run once on meta tensors: the `: shape` behind it may be left out, and is checked where it is given.
Every error is a `TextError` that points at its place.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from prunec.compiler.errors import nearest
from prunec.compiler.ir.aliasing import mutates
from prunec.compiler.ir.granularity import Granularity, Patterns, misread
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.program import Program, State
from prunec.compiler.ir.symbols import INFIX, PREFIX, function_names, resolve_function
from prunec.compiler.ir.train_eval import MODES, ByMode
from prunec.compiler.text.constructors import read_constructor
from prunec.compiler.text.initialize import example_inputs, materialised
from prunec.compiler.text.lexer import TOO_DEEP, Fragment, blank_strings
from prunec.compiler.text.literals import Reader
from prunec.compiler.text.types import LARGEST, read_tensor_type, read_type, same_type, type_text
from prunec.compiler.user_code import name_of, text_of

_HEADER: Final = re.compile(r"program\s+(?P<name>[A-Za-z_]\w*)(?P<training>\s+training)?\s*\{")
_NAME: Final = r"""[^\s()\[\]{}=:,#%"']+"""
_ASSIGNED: Final = re.compile(rf"(?P<name>{_NAME})\s*=\s*")
_DECLARED: Final = re.compile(rf"(?P<name>{_NAME})\s*:\s*")
_NODE: Final = re.compile(r"%(?P<name>[A-Za-z_]\w*)\s*=\s*")
_INPUT: Final = re.compile(r"%(?P<name>[A-Za-z_]\w*)(\s*=\s*(?P<target>\*{0,2}\w+))?(\s+default\s+(?P<default>.+))?\s*")
_FACT: Final = re.compile(r"(?P<fact>[A-Za-z_]\w*)(\s+(?P<key>[^\s=]+))?\s*=\s*")
_CALLEE: Final = re.compile(rf"(?P<name>{_NAME})\(")
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*")

_Operation = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def _operators() -> Iterator[tuple[type[ast.AST], Callable[..., Any]]]:
    """The syntax of every operator that the printer writes -> its function."""
    for function, symbol in INFIX.items():
        expr = ast.parse(f"a {symbol} b", mode="eval").body
        yield type(expr.ops[0] if isinstance(expr, ast.Compare) else expr.op), function  # type: ignore[attr-defined]
    for function, symbol in PREFIX.items():
        yield type(ast.parse(f"{symbol}a", mode="eval").body.op), function  # type: ignore[attr-defined]


_OPERATORS: Final = dict(_operators())


def from_text(text: str, file: str = "<text>") -> Program:
    """The program that a text spells; `file` stands in the messages. Raises `TextError`."""
    parser = _Parser()
    line = Fragment("", 0, 0, file)
    for number, content in enumerate(text.split("\n"), 1):
        code = Fragment(content, 0, len(without_comment(content)), file, number).strip()
        if code.code:
            parser.read(code)
            line = code
    return parser.program(line)


def without_comment(line: str) -> str:
    """The line up to its comment."""
    found = blank_strings(line).find("#")
    return line if found < 0 else line[:found].rstrip()


@dataclass
class _Parser:
    """What is known so far; modules and tensors live on the meta device until the whole text was read."""

    name: str | None = None
    training: bool = False
    closed: bool = False
    returned: bool = False
    in_eval: tuple[Any] | None = None
    """What `return eval` gave."""
    graph: fx.Graph = field(default_factory=fx.Graph)
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    state: dict[str, State] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    elements: int = 0
    """Of all declared tensors."""
    facts: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Patterns] = field(default_factory=dict)

    def read(self, line: Fragment) -> None:
        """Take in one line that isn't empty."""
        odd = next((i for i, char in enumerate(line.code) if not char.isprintable() and char != "\t"), None)
        if odd is not None:
            raise line.part(odd, odd + 1).error(f"the character U+{ord(line.code[odd]):04X} may not stand in a program")
        try:
            self._read(line)
        except RecursionError as fault:
            raise line.error(TOO_DEEP) from fault

    def _read(self, line: Fragment) -> None:
        if self.closed:
            raise line.error(f"expected the end of the text, got '{line.code}'")
        if self.name is None:
            self._header(line)
        elif line.code == "}":
            self.closed = True
        elif self.returned:
            self._fact(line)
        elif line.code.startswith("%"):
            self._node(line)
        else:
            self._statement(line)

    def program(self, last: Fragment) -> Program:
        """The finished program; `last` is where the text ends."""
        if not self.closed:
            raise last.error("expected '}', got the end of the text")
        if not self.returned:
            raise last.error("expected a return before '}'")
        state = materialised(self.state, self.values, self.ties, training=self.training)
        for node in self.graph.find_nodes(op="get_attr"):
            owner, _, key = str(node.target).rpartition(".")
            if isinstance(held := state.get(owner), nn.Module):
                state[str(node.target)] = dict(module_tensors("", held))[key]
        for node in self.graph.nodes:
            if mutates(node, state):
                node.meta["mutates"] = True
        inputs = tuple(example_inputs(self.graph))
        shown = frozenset(self.values)
        granularity = Granularity(**self.axes)
        return Program(
            self.graph,
            state,
            inputs,
            self.name or "",
            self.training,
            facts=self.facts,
            shown=shown,
            granularity=granularity,
        )

    # --- lines --------------------------------------------------------------------------------------------------------

    def _header(self, line: Fragment) -> None:
        match = _HEADER.fullmatch(line.code)
        if match is None:
            raise line.error(f"expected 'program NAME {{', got '{line.code}'")
        self.name, self.training = match["name"], bool(match["training"])

    def _statement(self, line: Fragment) -> None:
        word = line.code.split(maxsplit=1)[0]
        handle = _STATEMENTS.get(word)
        if handle is None:
            raise line.part(0, len(word)).error(f"expected a statement, got '{word}'", nearest(word, KEYWORDS))
        handle(self, line.part(len(word)))

    def _input(self, rest: Fragment) -> None:
        colon = rest.find(":")
        head = rest.part(0, colon if colon >= 0 else None)
        match = _INPUT.fullmatch(head.code)
        if match is None or colon < 0:
            raise rest.error(f"expected '%name : f32[1, 3, 8, 8]', got '{rest.code}'")
        given = match["default"]
        default = () if given is None else (self._literal(head.part(*match.span("default"))),)
        stated = rest.part(colon + 1)
        value = self._literal(stated) if given is not None and "[" not in stated.code else read_type(stated)
        node = self._create(
            head.part(0, 1 + len(match["name"])), "placeholder", match["target"] or match["name"], default
        )
        node.meta["val"] = value

    def _module(self, rest: Fragment) -> None:
        name, call = self._split(rest, _ASSIGNED, "name = Module(...)")
        constructor = read_constructor(call)
        try:
            module = constructor.build("meta").eval()
        except Exception as fault:  # whatever a class raises of impossible arguments
            raise call.error(
                f"{constructor.cls.__name__} refuses its arguments: {text_of(fault) or name_of(fault)}"
            ) from fault
        self._declare(name, module)

    def _parameter(self, rest: Fragment) -> None:
        name, stated = self._split(rest, _DECLARED, "name : f32[8]")
        tensor = read_tensor_type(stated)
        self._declare(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))

    def _buffer(self, rest: Fragment) -> None:
        name, stated = self._split(rest, _DECLARED, "name : f32[8]")
        self._declare(name, read_tensor_type(stated))

    def _value(self, rest: Fragment) -> None:
        name, spelled = self._split(rest, _ASSIGNED, "name = [1.0, 2.0]")
        tensor = self._known(name)
        shape = list(tensor.shape)
        try:
            value = torch.tensor(self._literal(spelled), dtype=tensor.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError) as fault:
            raise spelled.error(f"expected numbers of shape {shape}, got {fault}") from fault
        if list(value.shape) != shape and value.numel() + tensor.numel() > 0:
            raise spelled.error(f"expected numbers of shape {shape}, got {list(value.shape)}")
        self.values[name.code] = value.reshape(shape)

    def _tie(self, rest: Fragment) -> None:
        name, other = self._split(rest, _ASSIGNED, "name = other_name")
        tied, source = type_text(self._known(name)), type_text(self._known(other))
        if tied != source:
            raise other.error(f"expected a tensor of type {tied}, got {source}")
        self.ties[name.code] = other.code

    def _axes(self, rest: Fragment) -> None:
        kind, spelled = self._split(rest, _ASSIGNED, 'grouped = {"layer1.*": "whole"}')
        said = self._literal(spelled)
        if complaint := misread(kind.code, said):
            raise rest.error(complaint)
        self.axes[kind.code] = tuple(said.items())

    def _return(self, rest: Fragment) -> None:
        mode, result = _result_of(rest)
        if mode == "eval" and self.in_eval is None:
            self.in_eval = (self._literal(result),)
            return
        value = self._literal(result)
        if (mode == "train") != (self.in_eval is not None):
            raise rest.error("expected 'return eval ...' and then 'return train ...', or one 'return ...'")
        value = value if self.in_eval is None else ByMode(*self.in_eval, value)
        self.graph.output(value).meta["val"] = _values_of(value)
        self.returned = True

    def _fact(self, line: Fragment) -> None:
        match = _FACT.match(line.code)
        if match is None:
            raise line.error(f"expected a fact such as 'scores conv1 = [0.5]' or '}}', got '{line.code}'")
        value = _array(self._literal(line.part(match.end())))
        if match["key"] is None:
            self.facts[match["fact"]] = value
        else:
            self.facts.setdefault(match["fact"], {})[match["key"]] = value

    def _node(self, line: Fragment) -> None:
        match = _NODE.match(line.code)
        if match is None:
            raise line.error(f"expected '%name = operation', got '{line.code}'")
        rest = line.part(match.end())
        colon = rest.find(":")
        spelled = rest if colon < 0 else rest.part(0, colon)
        node = self._create(line.part(0, 1 + len(match["name"])), *self._operation(spelled))
        node.meta["val"] = computed = self._run(node, spelled, None if colon < 0 else rest.part(colon + 1))
        if colon >= 0:
            stated, known = rest.part(colon + 1), type_text(computed)
            if not same_type(stated.code, known):
                raise stated.error(f"%{node.name}: text says {stated.code}, computed {known}")

    # --- parts of lines -----------------------------------------------------------------------------------------------

    def _split(self, rest: Fragment, pattern: re.Pattern[str], form: str) -> tuple[Fragment, Fragment]:
        match = pattern.match(rest.code)
        if match is None:
            raise rest.error(f"expected '{form}', got '{rest.code}'")
        return rest.part(*match.span("name")), rest.part(match.end())

    def _literal(self, fragment: Fragment) -> Any:
        return Reader(fragment, self.nodes).value(fragment.expression())

    def _declare(self, name: Fragment, value: State) -> None:
        if name.code in self.state:
            raise name.error(f"expected a new name, got '{name.code}' a second time")
        self.state[name.code] = value
        own = dict(module_tensors(name.code, value)) if isinstance(value, nn.Module) else {name.code: value}
        self.elements += sum(tensor.numel() for tensor in own.values())
        if self.elements > LARGEST:
            raise name.error(f"expected at most {LARGEST:,} elements in all tensors, got {self.elements:,}")
        self.tensors.update(own)

    def _known(self, name: Fragment) -> torch.Tensor:
        if name.code not in self.tensors:
            hint = nearest(name.code, self.tensors)
            raise name.error(f"expected a tensor that is declared above, got '{name.code}'", hint)
        return self.tensors[name.code]

    def _create(self, place: Fragment, op: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        name = place.code[1:]
        if name in self.nodes:
            raise place.error(f"expected a new name, got '%{name}' a second time")
        node = self.graph.create_node(op, target, args, kwargs or {}, name=name)
        if node.name != name:
            raise place.error(f"expected a name that a graph may use, got '%{name}'", f"write %{node.name}")
        self.nodes[name] = node
        return node

    # --- operations ---------------------------------------------------------------------------------------------------

    def _operation(self, spelled: Fragment) -> _Operation:
        if spelled.code.startswith("get "):
            source = spelled.part(len("get "))
            if source.code.rpartition(".")[2] != "training":  # the model's own flag, which needs no declaration
                self._known(source)
            return "get_attr", source.code, (), {}
        callee = _CALLEE.match(spelled.code)
        name = callee["name"] if callee else ""
        called = self.state.get(name)
        expr = spelled.expression(callee=len(name) if isinstance(called, nn.Module) else 0)
        if isinstance(called, nn.Module) and isinstance(expr, ast.Call):
            return "call_module", name, *self._call_arguments(spelled, expr)
        return self._expression(spelled, expr)

    def _expression(self, spelled: Fragment, expr: ast.expr) -> _Operation:
        read = Reader(spelled, self.nodes)
        match expr:
            case ast.Call(func=ast.Name() | ast.Attribute()):
                return self._call(spelled, expr)
            case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
                return "call_function", _OPERATORS[type(op)], (read.value(left), read.value(right)), {}
            case ast.UnaryOp(op, operand):
                return "call_function", _OPERATORS[type(op)], (read.value(operand),), {}
            case ast.Subscript(value, index):
                return "call_function", operator.getitem, (read.value(value), read.value(index)), {}
            case ast.Attribute(value, name):
                return "call_function", getattr, (read.value(value), _public(spelled.at(expr), name)), {}
        raise spelled.error(f"expected an operation, got '{spelled.code}'")

    def _call(self, spelled: Fragment, call: ast.Call) -> _Operation:
        place = spelled.at(call.func)
        args, kwargs = self._call_arguments(spelled, call)
        if isinstance(call.func, ast.Attribute) and not _DOTTED.fullmatch(place.code):
            subject = Reader(spelled, self.nodes).value(call.func.value)
            return "call_method", _public(place, call.func.attr), (subject, *args), kwargs
        function = resolve_function(place.code)
        if function is None:
            modules = (name for name, value in self.state.items() if isinstance(value, nn.Module))
            hint = nearest(place.code, [*function_names(), *modules])
            raise place.error(f"expected a function or module, got '{place.code}'", hint)
        return "call_function", function, args, kwargs

    def _call_arguments(self, spelled: Fragment, call: ast.Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        read = Reader(spelled, self.nodes)
        for word in call.keywords:
            if word.arg is None:
                raise spelled.at(word).error(f"expected 'name=value', got '{spelled.at(word).code}'")
        return tuple(map(read.value, call.args)), {str(word.arg): read.value(word.value) for word in call.keywords}

    def _run(self, node: fx.Node, spelled: Fragment, stated: Fragment | None) -> Any:
        """What the node computes, on the meta device; the type that the text states where that depends on values, as
        what a mask chooses does."""
        args, kwargs = _values_of(node.args), _values_of(node.kwargs)
        if node.op == "get_attr":
            return self.tensors.get(str(node.target), self.training)
        call = node.target if node.op == "call_function" else self.state.get(str(node.target))
        if node.op == "call_method":
            args, kwargs = _to_meta(str(node.target), args, kwargs)
            if node.target in ("cpu", "cuda"):
                return args[0]
            call, args = operator.methodcaller(str(node.target), *args[1:], **kwargs), args[:1]
            kwargs = {}
        assert callable(call), f"%{node.name} calls {node.target!r}"
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
            _check_numbers(call, args, spelled)
        try:
            with torch.no_grad(), torch.device("meta"):
                return call(*args, **kwargs)
        except Exception as fault:  # whatever torch raises of impossible arguments
            if isinstance(fault, NotImplementedError) and stated is not None:
                return read_type(stated)
            reason = str(fault).strip().split("\n")[0]
            raise spelled.error(f"the operation fails: {reason or type(fault).__name__}") from fault


_EXPLOSIVE: Final = frozenset(
    {
        pow,
        operator.pow,
        operator.ipow,
        operator.lshift,
        operator.ilshift,
        operator.mul,
        operator.imul,
        math.factorial,
        math.comb,
        math.perm,
    }
)
"""Functions of whole numbers whose results may have any number of digits, or items."""


def _check_numbers(call: Callable[..., Any], args: tuple[Any, ...], spelled: Fragment) -> None:
    """Refuse calls on plain values that would never end, or fill the memory."""
    large = any(isinstance(value, int) and abs(value) > 10**6 for value in args)
    if call in _EXPLOSIVE and large and not any(isinstance(value, float) for value in args):
        if call in (operator.mul, operator.imul) and all(isinstance(value, int) for value in args):
            return
        raise spelled.error("this gives too large a value")


def _result_of(rest: Fragment) -> tuple[str, Fragment]:
    """The mode that a return names ('' where one result is that of both modes), and the fragment of its result."""
    word = rest.code.split(maxsplit=1)[0] if rest.code else ""
    return (word, rest.part(len(word))) if word in MODES else ("", rest)


def _values_of(value: Any) -> Any:
    """Nodes replaced by their values, and every device by the meta device."""

    def swap(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return item.meta["val"]
        return torch.device("meta") if isinstance(item, torch.device) else item

    return map_aggregate(value, swap)


def _to_meta(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a method, with a device that they name as a string replaced by the meta device."""
    if method == "to":
        args = tuple("meta" if isinstance(arg, str) else arg for arg in args)
    return args, {key: "meta" if key == "device" else value for key, value in kwargs.items()}


def _public(place: Fragment, name: str) -> str:
    if name.startswith("_"):
        raise place.error(f"expected a public name, got '{name}'")
    return name


def _array(value: Any) -> Any:
    """A list of numbers as an array; anything else as it is."""
    if not isinstance(value, list):
        return value
    if not value:
        return np.zeros(0, dtype=np.int64)
    try:
        array = np.array(value)
    except ValueError:  # lists of unequal lengths
        return value
    return array if array.dtype.kind in "bif" else value


_STATEMENTS: Final[Mapping[str, Callable[[_Parser, Fragment], None]]] = {
    "input": _Parser._input,
    "module": _Parser._module,
    "param": _Parser._parameter,
    "buffer": _Parser._buffer,
    "value": _Parser._value,
    "tie": _Parser._tie,
    "axes": _Parser._axes,
    "return": _Parser._return,
}
KEYWORDS: Final = frozenset(_STATEMENTS)
