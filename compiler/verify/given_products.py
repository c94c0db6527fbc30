"""Runs of both programs side by side in which costly layers aren't computed, or not by both.

first batch      x -> conv -> norm -> relu -> view -> fc        all is computed, on whole samples
another batch    x -> [  ] -> [  ] -> [  ] -> view -> [  ]      of what is given, operands are compared

What can depend on the batch size is what lies between products: sizes, views, indices, and where samples meet. It is
all computed. A product itself does to each sample what it does to any other, and so do norms and activations. That the
old one and the new one do the same has been seen in the first batch, so that equal operands give equal results in every
batch: both programs go on with the same random numbers in their place, the new one with those of the kept elements. So
a fault shows where the operands of the next product differ, as it would had they been computed. What only such layers
read has no numbers at all, only a shape. Marks are those of the first batch, as long as the same ones arrive.

Of the costly products of the first batch the old program computes few rows (`verify.sampled_products`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, fx

from prunec.compiler.ir.program import Program
from prunec.compiler.verify.compare import compare_values, kept_elements
from prunec.compiler.verify.interpreter import Interpreter
from prunec.compiler.verify.masks import Lined, Lines, Marked, leaves_of, plain
from prunec.compiler.verify.products import given_nodes, has_tensors_alone, is_costly, shape_of

_DRAWN: Final = 100_003
"""So many numbers are drawn; a prime, lest they repeat with a tensor's rows."""

_Mark = Tensor | Lines | None


class SideBySide:
    """What a run of two programs, node by node, computes: here, everything."""

    difference = 0.0
    """The largest relative difference that was found besides those of the nodes' values."""

    def connect(self, old: Interpreter, new: Interpreter) -> None:
        """Tell both interpreters what they are given, before they run."""

    def take(self, node: fx.Node, want: Any) -> None:
        """The old program has come to this value of a node; the new one hasn't."""

    def settles(self, node: fx.Node, want: Any, got: Any) -> bool:
        """Whether the values of a node need no comparison."""
        return False

    def note(self, node: fx.Node, want: Any, got: Any) -> None:
        """The values of a node have been compared, and agree."""


class Products:
    """The products, norms and activations of a program and its rewritten form, and the marks that they have."""

    def __init__(self, before: Program, after: Program, dtype: torch.dtype, seed: int, tolerance: float) -> None:
        self.before, self.after, self.dtype, self.seed, self.tolerance = before, after, dtype, seed, tolerance
        self.names, self.unseen = given_nodes(before, after)
        """Nodes that are given in both programs; those of them whose values only such nodes read."""
        self.costly = frozenset(
            node.name for node in before.graph.nodes if node.name in self.names and is_costly(before, node)
        )
        """Products that take long."""
        self.arriving: dict[str, tuple[_Mark, ...]] = {}
        """The marks of a node's operands in the first batch, ..."""
        self.leaving: dict[str, _Mark] = {}
        """... and of its value."""


class Learning(SideBySide):
    """The run of a first batch, in which everything is computed: it tells the marks of what is given in the others."""

    def __init__(self, products: Products) -> None:
        self.products = products

    def connect(self, old: Interpreter, new: Interpreter) -> None:
        old.give = self.learn

    def learn(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Remember the marks that arrive at a node of the old program; nothing is given."""
        if node.name in self.products.names:
            self.products.arriving[node.name] = _marks((args, kwargs))

    def take(self, node: fx.Node, want: Any) -> None:
        if node.name in self.products.arriving:
            self.products.leaving[node.name] = mark_of(want)


class Operands:
    """The operands of both programs at one node after the other, and whether they agree."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.node = ""
        self.values: list[Any] = []
        self.places: list[str] = []
        self.agreed: dict[str, tuple[int, ...]] = {}

    def take(self, node: fx.Node, args: Any, kwargs: Any) -> None:
        """Keep the old program's operands at a node."""
        self.node, self.values = node.name, leaves_of((args, kwargs))
        places = leaves_of((node.args, node.kwargs)) if node.args else self.values
        self.places = [place.name if isinstance(place, fx.Node) else "" for place in places]

    def check(self, node: fx.Node, args: Any, kwargs: Any) -> None:
        """Raise ValueError where the new program's operands at a node aren't the old one's."""
        own, places = leaves_of((args, kwargs)), leaves_of((node.args, node.kwargs))
        if len(own) != len(self.values) or not all(map(self._agree, self.values, own, self.places, places)):
            raise ValueError("its operands differ")

    def note(self, node: fx.Node, want: Any, got: Any) -> None:
        """Remember that the values of a node agree, as long as nobody writes into them."""
        self.agreed[node.name] = _versions(want, got)

    def _agree(self, want: Any, got: Any, name: str, place: Any) -> bool:
        if not isinstance(got, Tensor):
            return not isinstance(want, Tensor | Marked)  # literals are the same in every batch
        same = isinstance(place, fx.Node) and place.name == name
        if got.is_meta or plain(want).is_meta:
            return same and got.is_meta and plain(want).is_meta
        if same and self.agreed.get(name, ()) == _versions(want, got):
            return True
        found = compare_values(want, got)
        return found is not None and found.difference <= self.tolerance


class Giving(SideBySide):
    """The run of a batch that others have gone before: products, norms and activations are given to both programs."""

    def __init__(self, products: Products) -> None:
        self.products, self.operands = products, Operands(products.tolerance)
        generator = torch.Generator().manual_seed(products.seed)
        self.drawn = torch.randn(_DRAWN, generator=generator, dtype=products.dtype)
        self.step = int(torch.randint(_DRAWN // 4, _DRAWN // 2, (), generator=generator))
        self.count = 0
        self.given = ""
        """The node whose value the old program has just been given, ..."""
        self.result: Any = None
        """... and that value, with marks."""

    def connect(self, old: Interpreter, new: Interpreter) -> None:
        old.give, new.give = self.of_reference, self.of_rewritten

    def take(self, node: fx.Node, want: Any) -> None:
        self.result = want

    def settles(self, node: fx.Node, want: Any, got: Any) -> bool:
        """Whether a node was given, or is a weight, which has been compared in the first batch."""
        if self.given != node.name and node.op != "get_attr":
            return False
        self.note(node, want, got)
        return True

    def note(self, node: fx.Node, want: Any, got: Any) -> None:
        self.operands.note(node, want, got)

    def of_reference(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The value that the old program is given at a node: random numbers of the result's shape, or an empty shape
        where nobody looks at them; None where it is to be computed. The operands, with their marks, are kept for the
        comparison. Raises ValueError where they aren't marked as in the first batch."""
        known = self.products
        if node.name not in known.names:
            return None
        if not has_tensors_alone(node, args, kwargs):
            if node.name in known.unseen:
                raise ValueError("it reads a number")
            return None
        if not _alike(_marks((args, kwargs)), known.arriving.get(node.name)):
            raise ValueError("other marks arrive than in the first batch")
        self.given = node.name
        self.operands.take(node, args, kwargs)
        shape, marks = shape_of(known.before, node, *plain((args, kwargs))), known.leaving[node.name]
        data = torch.empty(shape, device="meta") if node.name in known.unseen else self._numbers(shape)
        if marks is None:
            return data
        assert isinstance(marks, Tensor), "a value has marks of its own"
        if len(shape) != marks.ndim or any(n not in (1, size) for n, size in zip(marks.shape, shape, strict=True)):
            raise ValueError("its marks vary from sample to sample")
        return Marked(data, marks)

    def of_rewritten(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The value that the new program is given at a node: the old program's numbers, less those of removed elements.
        Raises ValueError where the operands aren't the old program's."""
        if node.name != self.given:
            return None
        self.operands.check(node, args, kwargs)
        if node.name in self.products.unseen:
            return torch.empty(shape_of(self.products.after, node, args, kwargs), device="meta")
        if not isinstance(self.result, Marked):
            return self.result.clone()
        found = kept_elements(self.result)
        if found.ndim == self.result.data.ndim:
            return found
        return found.reshape(shape_of(self.products.after, node, args, kwargs))

    def _numbers(self, shape: torch.Size) -> Tensor:
        """Numbers of this shape, which for each product begin elsewhere."""
        self.count += 1
        found, start = self.drawn.new_empty(shape), self.count * self.step % _DRAWN
        flat, done = found.view(-1), 0
        for part in _endless(self.drawn[start:], self.drawn):
            piece = part[: flat.numel() - done]
            flat[done : done + len(piece)] = piece
            done += len(piece)
            if done == flat.numel():
                return found
        raise AssertionError("there is no end")


def _endless(first: Tensor, again: Tensor) -> Iterator[Tensor]:
    yield first
    while True:
        yield again


def _versions(want: Any, got: Any) -> tuple[int, ...]:
    """How often the values of a node have been written to."""
    return tuple(x._version for x in (plain(want), got) if isinstance(x, Tensor))


def _marks(tree: Any) -> tuple[_Mark, ...]:
    """The marks of all tensors in a nest."""
    return tuple(mark_of(leaf) for leaf in leaves_of(tree) if isinstance(leaf, Tensor | Marked))


def mark_of(value: Any) -> _Mark:
    """What a value's marks are told by: those of a parameter by its lines, since all of them are as many as weights."""
    if isinstance(value, Lined):
        return value.lines
    return value.marks if isinstance(value, Marked) else None


def _alike(marks: tuple[_Mark, ...], others: tuple[_Mark, ...] | None) -> bool:
    if others is None or len(marks) != len(others):
        return False
    return all(
        a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b))
        for a, b in zip(marks, others, strict=True)
    )
