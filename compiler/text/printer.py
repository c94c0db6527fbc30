"""Writes a program as text: what a person reads, what a diff shows, and what pass tests are written in.

    program Model {
      input %x : f32[1, 3, 8, 8]
      axes grouped = {"layer1.*": "whole"}             # how blocks of channels are divided, where a plan says so
      module conv1 = Conv2d(3, 2, kernel_size=(1, 1), bias=False)
      value conv1.weight = [[[[1.0]], [[0.0]], [[2.0]]], [[[0.5]], [[0.5]], [[0.5]]]]    # of tensors in `shown`
      param scale : f32[2, 1, 1]
      tie tail.weight = scale                          # one tensor under a second name
      %conv1 = conv1(%x) : f32[1, 2, 8, 8]             # call_module
      %relu = F.relu(%conv1) : f32[1, 2, 8, 8]         # call_function, by its public name
      %scale = get scale : f32[2, 1, 1]                # get_attr
      %mul = %relu * %scale : f32[1, 2, 8, 8]
      %size = %mul.size(0) : 1                         # call_method; a number shows its value
      %getitem = %mul[:, 0:1] : f32[1, 1, 8, 8]
      %view = %getitem.view(%size, -1) : f32[1, 64]
      return %view
      scores conv1 = [0.5, 1.25]                       # facts: a list is an array, a tuple is a tuple
    }

A program of both modes returns twice, in this order:

      return eval %softmax
      return train (%fc, %aux)

`text/parser.py` reads it back: `to_text(from_text(text)) == text` for every text that `to_text` wrote. A text is about
structure: tensors whose values aren't spelled out get pseudo-random ones when it is read (`text/initialize.py`); the
program's `origin` isn't written.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.granularity import CHOICES
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.program import Program, State
from prunec.compiler.ir.symbols import INFIX, PREFIX, function_name
from prunec.compiler.ir.train_eval import MODES, has_both
from prunec.compiler.text.constructors import constructor, parameter_dtype
from prunec.compiler.text.literals import literal
from prunec.compiler.text.parser import KEYWORDS
from prunec.compiler.text.types import type_text


def to_text(program: Program, values: bool = False) -> str:
    """The program's text, ending in a newline; `values` spells out every tensor, not only those in `program.shown`."""
    shown = frozenset(program.tensors) if values else program.shown
    lines = [*_inputs(program.graph), *_axes(program), *_state(program, shown), *_body(program), *_facts(program.facts)]
    mode = " training" if program.training else ""
    return "\n".join([f"program {program.name}{mode} {{", *(f"  {line}" for line in lines), "}", ""])


def _inputs(graph: fx.Graph) -> Iterator[str]:
    for node in graph.find_nodes(op="placeholder"):
        source = "" if node.target == node.name else f" = {node.target}"
        default = f" default {literal(node.args[0])}" if node.args else ""
        yield f"input %{node.name}{source}{default} : {type_text(node.meta['val'])}"


def _axes(program: Program) -> Iterator[str]:
    for kind in CHOICES:
        if patterns := program.granularity.of(kind):
            yield f"axes {kind} = {literal(dict(patterns))}"


def _state(program: Program, shown: frozenset[str]) -> Iterator[str]:
    """The state in the order in which the graph reads it, then what it doesn't read, by name."""
    reads = (str(node.target) for node in program.graph.nodes if node.op in ("call_module", "get_attr"))
    names = [name for name in dict.fromkeys([*reads, *sorted(program.state)]) if name in program.state]
    ties = []
    first_names: dict[int, str] = {}
    for name in names:
        value = program.state[name]
        if _is_held(program, name):
            continue
        yield _declaration(name, value)
        for key, tensor in _tensors(name, value):
            first = first_names.setdefault(id(tensor), key)
            if first != key:
                ties.append(f"tie {key} = {first}")
            elif key in shown:
                yield f"value {key} = {values_text(tensor)}"
    yield from ties


def _is_held(program: Program, name: str) -> bool:
    """Whether a tensor of the state is declared anyway, by the module of the state that holds it."""
    owner, _, key = name.rpartition(".")
    module = program.state.get(owner)
    return isinstance(module, nn.Module) and dict(module_tensors("", module)).get(key) is program.state[name]


def _declaration(name: str, value: State) -> str:
    if isinstance(value, nn.Module):
        return f"module {name} = {constructor(value).with_dtype(parameter_dtype(value)).source('')}"
    kind = "param" if isinstance(value, nn.Parameter) else "buffer"
    return f"{kind} {name} : {type_text(value)}"


def _tensors(name: str, value: State) -> Iterator[tuple[str, torch.Tensor]]:
    """Every name of every tensor; a tensor that one module holds twice comes twice."""
    if isinstance(value, nn.Module):
        yield from module_tensors(name, value)
    else:
        yield name, value


def values_text(tensor: torch.Tensor) -> str:
    """Nested lists of the shortest numbers that the tensor's type tells apart."""
    if tensor.is_meta:
        raise ModelError("a tensor on the meta device has no values to show")
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return literal(tensor.tolist())
    exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    shortest = [
        float(str(number)) for number in exact.numpy(force=True).reshape(-1)
    ]  # str() of a numpy scalar knows its type
    return literal(np.array(shortest).reshape(exact.shape).tolist())


def _body(program: Program) -> Iterator[str]:
    for node in program.graph.nodes:
        if node.op == "output" and has_both(program.graph):
            yield from (f"return {mode} {literal(getattr(node.args[0], mode))}" for mode in MODES)
        elif node.op == "output":
            yield f"return {literal(node.args[0])}"
        elif node.op != "placeholder":
            yield f"%{node.name} = {_operation(node, program.state)} : {type_text(node.meta['val'])}"


def _operation(node: fx.Node, state: Mapping[str, State]) -> str:
    """The right-hand side of a node."""
    match node.op:
        case "get_attr":
            return f"get {node.target}"
        case "call_module":
            return f"{node.target}({_arguments(node.args, node.kwargs)})"
        case "call_method":
            return f"{literal(node.args[0])}.{node.target}({_arguments(node.args[1:], node.kwargs)})"
    spelled = None if node.kwargs else _with_operator(node)
    if spelled is not None:
        return spelled
    assert callable(node.target), f"{node.name} calls {node.target!r}"
    name = function_name(node.target)
    prefix = "builtins." if name in state else ""  # a module called `sum` comes first
    return f"{prefix}{name}({_arguments(node.args, node.kwargs)})"


def _with_operator(node: fx.Node) -> str | None:
    """`%a + 1`, `%x[:, 0]`, `%x.shape`; `None` for what is no operator, and for one that no node takes part in."""
    target, args = node.target, node.args
    if not any(isinstance(arg, fx.Node) for arg in args):
        return None
    if target in INFIX and len(args) == 2:
        left = literal(args[0])
        return f"{f'({left})' if left.startswith('-') else left} {INFIX[target]} {literal(args[1])}"
    if target in PREFIX and len(args) == 1:
        return f"{PREFIX[target]}{literal(args[0])}"
    if not isinstance(args[0], fx.Node) or len(args) != 2:
        return None
    if target is operator.getitem:
        return f"{literal(args[0])}[{_index(args[1])}]"
    if target is getattr and isinstance(args[1], str) and args[1].isidentifier():
        return f"{literal(args[0])}.{args[1]}"
    return None


def _index(index: Any) -> str:
    if isinstance(index, tuple) and index:
        return ", ".join(map(_position, index)) + ("," if len(index) == 1 else "")
    return _position(index)


def _position(index: Any) -> str:
    if not isinstance(index, slice):
        return literal(index)
    start, stop, step = ("" if part is None else literal(part) for part in (index.start, index.stop, index.step))
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    return ", ".join([*map(literal, args), *(f"{key}={literal(kwargs[key])}" for key in sorted(kwargs))])


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for fact in sorted(facts):
        assert fact.isidentifier(), f"'{fact}' can't name a fact"
        assert fact not in KEYWORDS, f"'{fact}' can't name a fact: the text has another use for it"
        value = facts[fact]
        if not isinstance(value, Mapping):
            yield f"{fact} = {literal(_plain(value))}"
            continue
        for key in sorted(value):
            yield f"{fact} {key} = {literal(_plain(value[key]))}"


def _plain(value: Any) -> Any:
    """Arrays as lists, also inside tuples and dicts."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
