"""The run of a first batch in which the old program computes few rows of costly products, and the new one all.

x [197, 768] --fc--> y [197, 3072]      new: all of y          old: fc of 4 random rows; y is the new program's

What both computes are the operands, which are compared, and everything between products. Both programs' products are
run on the same few rows of random numbers, or on an image hardly larger than the kernel; then the old program goes on
with the new one's result. A product does to each row, and to each place of an image, what it does to any other: so if
weights or settings differ, results on any rows do. Random rows meet every weight, which those in the network needn't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec.compiler.errors import VerifyError
from prunec.compiler.verify.compare import compare_values, kept_elements
from prunec.compiler.verify.given_products import Learning, Operands, Products, mark_of
from prunec.compiler.verify.interpreter import Instead, Interpreter
from prunec.compiler.verify.masks import REMOVED, Lined, Marked, Value, leaves_of, mapped, plain, zeroed
from prunec.compiler.verify.products import called_by, has_tensors_alone, shape_of

_ROWS: Final = 4


class Sampling(Learning):
    """The run of a first batch, of which costly products are computed in the new program alone."""

    def __init__(self, products: Products) -> None:
        super().__init__(products)
        self.operands = Operands(products.tolerance)
        self.generator = torch.Generator().manual_seed(products.seed)
        self.sampled = ""
        """The node at which the old program has just computed few rows, ..."""
        self.rows: list[Value] = []
        """... their operands, ..."""
        self.result: Tensor = torch.empty(0)
        """... what came out, ..."""
        self.want: Any = None
        """... and the value that waits for the new program's numbers, with its marks."""

    def connect(self, old: Interpreter, new: Interpreter) -> None:
        old.give, new.give = partial(self._of_reference, old.target), partial(self._of_rewritten, new.target)

    def take(self, node: fx.Node, want: Any) -> None:
        super().take(node, want)
        self.want = want

    def note(self, node: fx.Node, want: Any, got: Any) -> None:
        self.operands.note(node, want, got)

    def settles(self, node: fx.Node, want: Any, got: Any) -> bool:
        """Whether a node was sampled; then the old program's value is the new one's from now on."""
        if self.sampled != node.name:
            return False
        _fill(want, got)
        self.note(node, want, got)
        return True

    def _of_reference(self, target: Callable[[fx.Node], Any], node: fx.Node, args: Any, kwargs: Any) -> Instead | None:
        """Run a product of the old program on few rows. Gives the call that tells the marks of its value, which has no
        numbers yet; None where the node is to be computed."""
        self.learn(node, args, kwargs)
        known, self.sampled = self.products, ""
        if node.name not in known.costly or not has_tensors_alone(node, args, kwargs):
            return None
        fewer = _fewer(called_by(known.before, node), args, kwargs)
        if fewer is None or _has_constants((args, kwargs)):
            return None
        self.sampled = node.name
        self.operands.take(node, args, kwargs)
        self.rows = [self._random(value, fewer.shape(plain(value).shape)) for value in args[: fewer.count]]
        result: Tensor = target(node)(*map(zeroed, self.rows), *plain(args[fewer.count :]), **plain(kwargs))
        self.result, shape = result, shape_of(known.before, node, *plain((args, kwargs)))
        args, kwargs = mapped(_without_data, (args, kwargs))
        return Instead(args, kwargs, lambda *_, **__: result.new_empty(shape))

    def _of_rewritten(self, target: Callable[[fx.Node], Any], node: fx.Node, args: Any, kwargs: Any) -> None:
        """Run a product of the new program on what it keeps of these rows; all of it is computed then.

        Raises ValueError where operands or results aren't the old program's.
        """
        if node.name != self.sampled:
            return
        self.operands.check(node, args, kwargs)
        fewer = _fewer(called_by(self.products.after, node), args, kwargs)
        if fewer is None or fewer.count != len(self.rows):
            raise ValueError("it is called in another way")
        own = [
            kept_elements(row).reshape(fewer.shape(value.shape)) for row, value in zip(self.rows, args, strict=False)
        ]
        got = target(node)(*own, *args[fewer.count :], **kwargs)
        marks = mark_of(self.want)
        want = Marked(self.result, _fitting(marks, self.result.shape)) if isinstance(marks, Tensor) else self.result
        found = compare_values(want, got)
        if found is None or not found.difference <= self.products.tolerance:
            raise ValueError("its result on few rows differs")
        self.difference = max(self.difference, found.difference)

    def _random(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Random rows in place of an operand's, with its marks. Raises ValueError where these vary from row to row."""
        drawn = torch.randn(shape, generator=self.generator, dtype=self.products.dtype)
        return Marked(drawn, _fitting(value.marks, drawn.shape)) if isinstance(value, Marked) else drawn


def _fill(want: Value, got: Tensor) -> None:
    """Fill the old program's value with the new one's numbers; where elements are removed, with any of them.

    Raises `VerifyError` where these aren't of the shape of what is kept.
    """
    data, marks = plain(want), want.marks if isinstance(want, Marked) else None
    varying = [dim for dim, size in enumerate(marks.shape) if size > 1] if marks is not None else []
    if marks is None:
        dim, places, expected = 0, torch.arange(data.shape[0]), [*data.shape]
    elif len(varying) == 1:
        dim, kept = varying[0], marks.numpy().ravel() != REMOVED
        places = torch.from_numpy((kept.cumsum() - 1).clip(min=0))
        expected = [int(kept.sum()) if each == dim else size for each, size in enumerate(data.shape)]
    else:
        raise VerifyError("removed channels don't lie along one dimension")
    if [*got.shape] != expected or not got.numel():
        raise VerifyError("its shape differs")
    if dim == data.ndim - 1:  # of a matrix, torch picks columns ten times as fast
        got, data, dim = got.reshape(-1, got.shape[-1]), data.view(-1, data.shape[-1]), 1
    torch.index_select(got, dim, places, out=data)


@dataclass(frozen=True)
class Fewer:
    """How the first operands of a product shrink to a few rows."""

    count: int
    """So many operands are made of rows."""
    shape: Callable[[torch.Size], tuple[int, ...]]


def _fewer(called: Any, args: Any, kwargs: Any) -> Fewer | None:
    """How a product's operands shrink to a few rows, or to an image hardly larger than the kernel; None where it isn't
    known that the product does the same to each."""
    if not args:
        return None
    if isinstance(called, nn.Linear) or (called is F.linear and len(args) > 1 and plain(args[1]).ndim == 2):
        return Fewer(1, lambda shape: (_ROWS, shape[-1]))
    if isinstance(called, nn.Conv1d | nn.Conv2d | nn.Conv3d) and plain(args[0]).ndim == called.weight.ndim:
        settings = zip(called.kernel_size, called.dilation, called.stride, strict=True)
        sizes = [apart * (kernel - 1) + 1 + stride for kernel, apart, stride in settings]
        return Fewer(1, lambda shape: (1, shape[1], *sizes))
    if called is F.scaled_dot_product_attention and len(args) == 3 and kwargs.keys() <= {"dropout_p", "scale"}:
        ranks = {plain(value).ndim for value in args}
        return Fewer(3, lambda shape: (1, *shape[1:-2], _ROWS, shape[-1])) if ranks == {4} else None
    return None


def _fitting(marks: Tensor, shape: torch.Size) -> Tensor:
    """Marks of many rows as those of a few. Raises ValueError where they vary from row to row."""
    own = marks.shape[len(marks.shape) - len(shape) :]
    if prod(own) != marks.numel() or any(n not in (1, size) for n, size in zip(own, shape, strict=True)):
        raise ValueError("its marks vary from row to row")
    return marks.reshape(own)


def _has_constants(tree: Any) -> bool:
    """Whether values in a nest hold constants: of these, the numbers count."""
    return any(isinstance(leaf, Marked) and leaf.has_free for leaf in leaves_of(tree))


def _without_data(value: Any) -> Any:
    """A value with its marks and its shape alone."""
    if isinstance(value, Lined):
        return Lined(torch.empty_like(value.data, device="meta"), value.lines)
    if isinstance(value, Marked):
        return Marked(torch.empty_like(value.data, device="meta"), value.marks)
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value
