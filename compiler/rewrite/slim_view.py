"""What a selection leaves of a program: slim shapes, kept positions and numbers, asked for by nodes of the old graph.

%conv    [1, 8, 4, 4], unit 3 gone       shape [1, 7, 4, 4]      kept(%conv, 1)  1 1 1 0 1 1 1 1
%n       %conv.size(1)                   value 7
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from torch import fx

from prunec.compiler.groups.analysis import Analysis
from prunec.compiler.ir.ops import shape_of_argument
from prunec.compiler.ir.program import BoolArray, IntArray, State
from prunec.compiler.ir.sizes import item, valued
from prunec.compiler.ops.reduction import compares_zeros
from prunec.compiler.rewrite.numbers import Numbers


@dataclass
class View:
    """`labels.registry.Slim` for one selection: what rewriters ask while the slim graph is made. `keep` is [units]."""

    analysis: Analysis
    keep: BoolArray
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Slim values of nodes that give numbers, where these differ from the old ones."""
    reader: fx.Node | None = None
    """The node of the old graph that asks: what it selects by itself is all that it knows of."""
    mapping: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Node of the old graph -> its node in the slim one."""
    indices: dict[str, State] = field(default_factory=dict)
    """Name -> positions: the buffers that the gathers of the slim graph read, which the old state hasn't."""
    picked: dict[tuple[fx.Node, int, bytes], fx.Node] = field(default_factory=dict)
    """(slim node without labels, dimension, positions) -> the node that picks these of it, for all its readers."""
    _masks: dict[int, tuple[IntArray, BoolArray | None]] = field(default_factory=dict)
    _left: dict[int, tuple[IntArray, tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    _blanks: dict[tuple[tuple[int, ...], torch.dtype], torch.Tensor] = field(default_factory=dict)

    @cached_property
    def numbers(self) -> Numbers:
        """The numbers of the slim graph."""
        return Numbers(self.values, self.mapping, self.analysis.flow.fields)

    @cached_property
    def stays(self) -> BoolArray:
        """[labels], see `Analysis.stays`."""
        return self.analysis.stays(self.keep)

    def mask(self, labels: IntArray) -> BoolArray | None:
        """Which elements of a field stay, in its shape; None where all do."""
        if id(labels) not in self._masks:
            mask = self.stays[labels]
            self._masks[id(labels)] = (labels, None if mask.all() else mask)
        return self._masks[id(labels)][1]

    def kept(self, value: object, dim: int) -> BoolArray:
        """Which positions of a value's dimension stay, [size before]: a position stays if any element of it does."""
        shape = shape_of_argument(value)
        kept = np.ones(shape[dim], dtype=bool)
        for labels in self._fields(value):
            mask = self.mask(labels)
            if mask is not None and labels.shape[dim] > 1:
                kept &= mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim))
        return kept

    def _fields(self, value: object) -> tuple[IntArray, ...]:
        flow = self.analysis.flow
        return flow.fields(value) if self.reader is None else flow.fields_at(value, self.reader)

    def is_rectangular(self, labels: IntArray) -> bool:
        """Whether what stays of a field is all that stays of its rows and columns, so that a narrower view holds it."""
        mask = self.mask(labels)
        if mask is None:
            return True
        edges = (
            mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim), keepdims=True) for dim in range(mask.ndim)
        )
        return bool((reduce(np.logical_and, edges) == mask).all())

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The slim shape of a node's tensor."""
        return self._shape(self._fields(node), shape_of_argument(node))

    def _shape(self, fields: tuple[IntArray, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        slim = list(shape)
        for labels in fields:
            for dim, size in self._sizes(labels):
                slim[dim] = size
        return tuple(slim)

    def _sizes(self, labels: IntArray) -> tuple[tuple[int, int], ...]:
        """(dimension, how many positions of it stay) of a field; none where all do."""
        known = self._left.get(id(labels))
        if known is None:
            mask = self.mask(labels)
            wide = [dim for dim, size in enumerate(labels.shape) if size > 1] if mask is not None else []
            known = self._left[id(labels)] = labels, tuple((dim, self._count(mask, dim)) for dim in wide)
        return known[1]

    @staticmethod
    def _count(mask: BoolArray | None, dim: int) -> int:
        assert mask is not None, "something of the field goes"
        others = tuple(d for d in range(mask.ndim) if d != dim)
        return int(np.count_nonzero(mask if mask.shape[dim] == mask.size else mask.any(axis=others)))

    def meta(self, labelled: Any, known: Any) -> Any:
        """A node's slim value on the meta device, from its labels and its old value; the same object where nothing
        changes."""
        if isinstance(known, torch.Tensor) and isinstance(labelled, tuple):
            if not any(map(self._sizes, labelled)):
                return known
            shape = self._shape(labelled, tuple(known.shape))
            return known if shape == tuple(known.shape) else self._blank(known, shape)
        if isinstance(known, tuple | list) and isinstance(labelled, list):
            parts = [self.meta(a, b) for a, b in zip(labelled, known, strict=True)]
            return known if all(a is b for a, b in zip(parts, known, strict=True)) else tuple(parts)
        return known

    def _blank(self, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A meta tensor of that shape and `like`'s type. Nodes share it: it is never written to."""
        key = (shape, like.dtype)
        if key not in self._blanks:
            self._blanks[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return self._blanks[key]

    def value(self, argument: object) -> Any:
        """What an argument (a literal, or a node that gives a number) is in the slim program."""
        if not isinstance(argument, fx.Node):
            return argument
        return self.values.get(argument, argument.meta.get("val"))

    def constant(self, argument: object) -> Any:
        """What an argument is whatever the input: a literal, a number, a buffer of integers; None for anything else."""
        return self.analysis.flow.constant(argument)

    def compares_zeros(self, node: fx.Node) -> bool:
        """Whether zeros among what a node compares may change its result."""
        return compares_zeros(self.analysis.flow, node)

    def positions(
        self, places: IntArray, before: fx.Node, kind: str, free: Set[str] = frozenset(), name: str = ""
    ) -> fx.Node:
        """A new buffer of positions, and the node before the slim node `before` that reads it; returns the node.

        It is called after `name`, or that node, and `kind`. The names in `free` may be used again.
        """
        device = next((tensor.device for tensor in self.analysis.program.tensors.values()), None)
        name = self._free_name(f"{name or before.name}_{kind}", free)
        self.indices[name] = torch.as_tensor(places, device=device)
        with before.graph.inserting_before(before):
            return valued(before.graph.get_attr(name), torch.empty(places.shape, dtype=torch.int64, device="meta"))

    def _free_name(self, wanted: str, free: Set[str]) -> str:
        """A name that no tensor or module of the program has, apart from the names in `free`."""
        state = self.analysis.program.state
        taken = {name.partition(".")[0] for name in state if name not in free} | self.indices.keys()
        return next(name for name in chain([wanted], (f"{wanted}_{i}" for i in count(1))) if name not in taken)

    def index(self, places: IntArray, new: fx.Node) -> fx.Node:
        """A node of the slim graph, before `new`, that gives these positions."""
        return self.positions(places, new, "index", own_tensors(new))

    def line(self, argument: fx.Node, dim: int) -> torch.Tensor | None:
        """The positions along `dim` that an index repeats along all other dimensions, where these are known."""
        return self.analysis.flow.known.line(argument, dim)

    def items(self, size: fx.Node, count: int) -> list[Any]:
        """New nodes for the first `count` items of a node that gives a size."""
        return [item(size, index, size.meta["val"][index]) for index in range(count)]

    def follows(self, number: object, wanted: int) -> bool:
        """Whether an argument is `wanted` in the slim program by itself, whatever the batch."""
        return self.numbers.follows(number, wanted)

    def scaled(self, number: fx.Node, wanted: int) -> fx.Node | None:
        """A node that gives `wanted` for the example and follows the batch as the old `number` does; None where that
        counts channels alone."""
        return self.numbers.scaled(number, wanted)


def own_tensors(node: fx.Node) -> set[str]:
    """The names of the tensors that a node reads alone: the index that a former round made for it."""
    readers = Counter(str(read.target) for read in node.graph.find_nodes(op="get_attr") for _ in read.users)
    mine = (str(read.target) for read in node.all_input_nodes if read.op == "get_attr")
    return {name for name in mine if readers[name] == 1}
