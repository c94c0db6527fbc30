"""The two tables of operations, which the files of `ops/` fill: how labels flow through an operation, and how the sizes
in its arguments follow when units are removed.

    @on_op, @on_module     (flow, node) -> labels of its value                  `Row`
    @rewriter              x.view(-1, 64 * 4 * 4)        ->  x.view(-1, 48 * 4 * 4)
                           x.chunk(2, 1)                 ->  torch.split(x, [20, 28], 1)
                           x[:, :32]                     ->  x[:, :20]
                           F.pad(x, (0, 0, 0, 0, 8, 8))  ->  F.pad(x, (0, 0, 0, 0, 5, 6))

The slim operation on slim operands then gives what is kept of the old result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import fx, nn

from prunec.compiler.errors import PrunecError
from prunec.compiler.ir.operations import Operation, operation_of
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.table import Table
from prunec.compiler.labels.flow import Flow, Labelled

Rule = Callable[[Flow, fx.Node], Labelled]
"""(flow, node): reports to the flow what the operation couples, pins or costs; returns the labels of its value."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the analysis knows of an operation: how labels flow through it, and of which kind it is."""

    rule: Rule
    moves: bool = False
    """It only moves data, or picks from it, and computes nothing. Such an operation carries copies, too."""
    reduces: bool = False
    """It reduces or mixes a dimension: there, a removed channel is seen as a zero."""
    carries_copies: bool = False
    """It passes on the labels of copies (`Flow.loosen`), or pins by itself those that it needs. Before any other
    operation, which would miss a copy, all of them are pinned."""


MODULE_ROWS: Final[Table[type[nn.Module], Row]] = Table()
"""Leaf modules by class; subclasses that share their forward have the same row."""
OP_ROWS: Final[Table[str, Row]] = Table()
"""Functions and methods, by `op_name`."""


def on_module(
    *classes: type[nn.Module], moves: bool = False, reduces: bool = False, carries_copies: bool = False
) -> Callable[[Rule], Rule]:
    """Register a rule for leaf modules of these classes; a second rule for one class is an error. Flags: see `Row`."""

    def register(rule: Rule) -> Rule:
        MODULE_ROWS.add(classes, Row(rule, moves, reduces, carries_copies or moves))
        return rule

    return register


def on_op(
    *names: str, moves: bool = False, reduces: bool = False, carries_copies: bool = False
) -> Callable[[Rule], Rule]:
    """Register a rule for functions and tensor methods of these names (`op_name`). Flags: see `Row`."""

    def register(rule: Rule) -> Rule:
        OP_ROWS.add(names, Row(rule, moves, reduces, carries_copies or moves))
        return rule

    return register


def row_for(flow: Flow, node: fx.Node) -> Row | None:
    """The row of a node's operation. None where it has none, and for a module that a hook, a parametrization or a
    subclass's own forward makes another operation."""
    if node.op == "call_module":
        module = flow.program.state[str(node.target)]
        assert isinstance(module, nn.Module)
        if module._modules or module._forward_pre_hooks or module._forward_hooks:
            return None  # a parametrization or a hook: the tensors aren't what the forward computes with
        kind: Any = type(module)
        return _row_of(operation_of(module), _module_row(kind, len(MODULE_ROWS)))
    return _row_of(operation_of(node.target), OP_ROWS.get(op_name(node)))


@cache
def _module_row(kind: Hashable, known: int) -> Row | None:
    """The row of a class; `known` is how many rows there are."""
    assert isinstance(kind, type)
    for cls in kind.__mro__:
        if issubclass(cls, nn.Module) and cls in MODULE_ROWS:
            # A subclass with a forward of its own is another operation.
            return MODULE_ROWS[cls] if kind is cls or getattr(kind, "forward", None) is cls.forward else None
    return None


def _row_of(operation: Operation | None, own: Row | None) -> Row | None:
    """The row that another package's operation is, where there is one; prunec's own stay as they are."""
    if operation is None:
        return own
    if own is not None:
        raise PrunecError(
            f"the operation '{operation.name}' is one that prunec knows", hint="take it out of its package"
        )
    return Row(operation.labels, operation.moves, operation.reduces, operation.carries_copies or operation.moves)


Attributes = dict[str, Any]
TensorSizes = Callable[[nn.Module, Mapping[str, torch.Tensor]], Attributes]
"""(module, its slim tensors by their short names) -> attributes"""
ValueSizes = Callable[[Any, tuple[int, ...], np.ndarray[Any, np.dtype[np.bool_]]], Attributes]
"""(module, the slim shape of what it gives, which positions of its dimension 1 are kept) -> attributes"""

TENSOR_SIZES: Final[Table[type[nn.Module], TensorSizes]] = Table()
"""Attributes that repeat a tensor's shape (`in_channels`), by the module's class or a base of it."""

VALUE_SIZES: Final[Table[type[nn.Module], ValueSizes]] = Table()
"""Attributes that repeat the shape of what a module without tensors gives."""


def repeats_tensors(*classes: type[nn.Module]) -> Callable[[TensorSizes], TensorSizes]:
    """Register which attributes of these classes repeat the shapes of their tensors."""
    return TENSOR_SIZES.register(*classes)


def repeats_value(*classes: type[nn.Module]) -> Callable[[ValueSizes], ValueSizes]:
    """Register which attributes of these classes repeat the shape of what they give, where they have no tensors."""
    return VALUE_SIZES.register(*classes)


def tensor_sizes(module: nn.Module) -> TensorSizes | None:
    """Which attributes of a module repeat the shapes of its tensors; None where nobody has said so."""
    operation = operation_of(module)
    if operation is not None:
        return operation.attributes
    kind: Any = type(module)
    return _tensor_sizes(kind, len(TENSOR_SIZES))


@cache
def _tensor_sizes(kind: Hashable, known: int) -> TensorSizes | None:
    """The first row for a class; `known` is how many rows there are."""
    return next(
        (sizes for cls, sizes in TENSOR_SIZES.items() if isinstance(kind, type) and issubclass(kind, cls)), None
    )


def value_sizes(module: nn.Module) -> ValueSizes | None:
    """Which attributes of a module repeat the shape of what it gives; None where none do."""
    kind: Any = type(module)
    return _value_sizes(kind, len(VALUE_SIZES))


@cache
def _value_sizes(kind: Hashable, known: int) -> ValueSizes | None:
    return next((sizes for cls, sizes in VALUE_SIZES.items() if isinstance(kind, type) and issubclass(kind, cls)), None)


def rewrite_for(node: fx.Node) -> Rewrite | None:
    """How the literal sizes of a call follow, if it has any."""
    operation = operation_of(node.target)
    return REWRITES.get(op_name(node)) if operation is None else operation.resize


def decides_sizes(node: fx.Node) -> bool:
    """Whether a call's rewriter decides about numbers that were read off a size."""
    operation = operation_of(node.target)
    return op_name(node) in SIZED if operation is None else type(operation).resize is not Operation.resize


class Slim(Protocol):
    """What a rewriter asks about the slim program; nodes are those of the old one."""

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The slim shape of a node's value."""

    def kept(self, value: object, dim: int) -> np.ndarray[Any, Any]:
        """Which positions of a value's dimension are kept: a boolean array of the old size."""

    def value(self, argument: object) -> Any:
        """What an argument (a literal, or a node that gives a number) is in the slim program."""

    def constant(self, argument: object) -> Any:
        """What an argument is whatever the input: a literal, a number, a buffer of integers; None for anything else."""

    def compares_zeros(self, node: fx.Node) -> bool:
        """Whether zeros among what a node compares (`amax`) may change its result."""

    def index(self, places: np.ndarray[Any, Any], new: fx.Node) -> fx.Node:
        """A node of the slim graph, before its node `new`, that gives these positions."""

    def line(self, argument: fx.Node, dim: int) -> torch.Tensor | None:
        """The positions along `dim` that an index repeats along all other dimensions, where these are known."""

    def items(self, size: fx.Node, count: int) -> list[Any]:
        """New nodes for the `count` items of a node of the slim graph that gives a size."""

    def follows(self, number: object, wanted: int) -> bool:
        """Whether an argument is `wanted` in the slim program by itself, whatever the batch."""

    def scaled(self, number: fx.Node, wanted: int) -> fx.Node | None:
        """A slim node that gives `wanted` for the example and follows the batch as the old `number` does; None where
        the number counts channels alone."""


Rewrite = Callable[[fx.Node, fx.Node, Slim], None]
"""(old node, new node, slim): sets the new node's arguments. Runs only where the shapes of operands or value change."""


REWRITES: Final[Table[str, Rewrite]] = Table()
"""By `op_name`; an operation without an entry has no arguments that follow."""


SIZED: set[str] = set()
"""Operations whose rewriter adapts numbers that were read off a size; elsewhere such a number keeps its old value."""


def rewriter(*names: str, sized: bool = False) -> Callable[[Rewrite], Rewrite]:
    """Register how the arguments of these operations (`op_name`) follow what is removed; `sized` is said in `SIZED`."""

    def register(rewrite: Rewrite) -> Rewrite:
        REWRITES.add(names, rewrite)
        SIZED.update(names if sized else ())
        return rewrite

    return register
