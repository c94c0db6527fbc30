"""Runs of both programs in which products (convolutions, linear layers, attention) are given rather than computed.

first batch      x -> conv -> relu -> view -> fc        all is computed, on whole samples
another batch    x -> [  ] -> relu -> view -> [  ]      of a product the operands are compared; its result is drawn

What can depend on the batch size is what lies between products: sizes, views, indices, and where samples meet. It is
all computed. A product itself does to each sample what it does to any other. That the old one and the new one do the
same has been seen in the first batch, so that equal operands give equal results in every batch: both programs go on
with the same random numbers in their place, the new one with those of the kept elements. So a fault shows where the
operands of the next product differ, as it would had they been computed.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.ir.modules import clone_module, to_meta
from prunec.compiler.ir.program import Program
from prunec.compiler.verify.compare import compare_values, kept_elements
from prunec.compiler.verify.interpreter import Run
from prunec.compiler.verify.masks import Drawn, Marked, plain

_LAYERS: Final = frozenset(
    [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
)
_FUNCTIONS: Final = frozenset(
    [F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention, torch.conv1d, torch.conv2d, torch.conv3d]
)
_DRAWN: Final = 1_000_003
"""So many numbers are drawn; a prime, lest they repeat with a tensor's rows."""


class Products:
    """The products that a run of two programs, side by side, doesn't compute; made anew for each run."""

    def __init__(self, before: Program, after: Program, dtype: torch.dtype, seed: int, tolerance: float) -> None:
        self.names = _products(before) & _products(after)
        """Nodes that are products in both programs."""
        self.tolerance = tolerance
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = torch.randn(_DRAWN, generator=self.generator, dtype=dtype).repeat(2)
        self.given = ""
        """The product that the old program has just been given, ..."""
        self.operands: list[Any] = []
        self.places: list[str] = []
        """... its operands, ..."""
        self.result: Any = None
        self.agreed: dict[str, tuple[int, ...]] = {}
        """... and the numbers that it was given, with marks: set by who runs both programs."""

    def of_reference(self, node: fx.Node, args: Any, kwargs: Any, run: Run) -> Run:
        """What stands in for `run`, which the old program calls at a node: random numbers of the result's shape. The
        operands, with their marks, are kept for the comparison."""
        if node.name not in self.names or not _has_tensors_alone(node, args, kwargs):
            return run
        self.given, self.operands = node.name, pytree.tree_leaves((args, kwargs))
        places = pytree.tree_leaves((node.args, node.kwargs)) if node.args else self.operands
        self.places = [place.name if isinstance(place, fx.Node) else "" for place in places]
        return Drawn(lambda *args, **kwargs: self._numbers(_shape(run, args, kwargs)))

    def of_rewritten(self, node: fx.Node, args: Any, kwargs: Any, run: Run) -> Run:
        """What stands in for `run`, which the new program calls at a node: the old program's numbers, less those of
        removed elements. Raises ValueError where the operands aren't the old program's."""
        if node.name != self.given:
            return run
        own, places = (pytree.tree_leaves(pair) for pair in ((args, kwargs), (node.args, node.kwargs)))
        if len(own) != len(self.operands) or not all(map(self._agree, self.operands, own, self.places, places)):
            raise ValueError("its operands differ")
        return lambda *args, **kwargs: self._kept_numbers(run, args, kwargs)

    def _kept_numbers(self, run: Run, args: Any, kwargs: Any) -> Tensor:
        if not isinstance(self.result, Marked):
            found: Tensor = self.result.clone()
            return found
        found = kept_elements(self.result)
        return found if found.ndim == self.result.data.ndim else found.reshape(_shape(run, args, kwargs))

    def note(self, node: fx.Node, want: Any, got: Any) -> None:
        """Remember that the values of a node have been compared, and agree."""
        self.agreed[node.name] = _versions(want, got)

    def _numbers(self, shape: torch.Size) -> Tensor:
        start, count = int(torch.randint(_DRAWN, (), generator=self.generator)), shape.numel()
        part = self.drawn[start : start + min(count, _DRAWN)]
        times = -(-count // _DRAWN)
        return (part.repeat(times)[:count] if times > 1 else part.clone()).reshape(shape)

    def _agree(self, want: Any, got: Any, name: str, place: Any) -> bool:
        if not isinstance(got, Tensor):
            return not isinstance(want, Tensor | Marked)  # literals are the same in every batch
        if isinstance(place, fx.Node) and place.name == name and self.agreed.get(name, ()) == _versions(want, got):
            return True
        found = compare_values(want, got)
        return found is not None and found.difference <= self.tolerance


def _versions(want: Any, got: Any) -> tuple[int, ...]:
    """How often the values of a node have been written to."""
    return tuple(x._version for x in (plain(want), got) if isinstance(x, Tensor))


def _products(program: Program) -> frozenset[str]:
    """The names of the nodes that are products."""
    return frozenset(
        node.name
        for node in program.graph.nodes
        if (node.op == "call_module" and type(program.state[str(node.target)]) in _LAYERS)
        or (node.op == "call_function" and node.target in _FUNCTIONS)
    )


def _has_tensors_alone(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether all that a node reads from others are tensors: a number may follow the batch, and so may its effect."""
    places, values = (pytree.tree_leaves(pair) for pair in ((node.args, node.kwargs), (args, kwargs)))
    pairs = zip(places, values, strict=True)
    return all(isinstance(value, Tensor | Marked) for place, value in pairs if isinstance(place, fx.Node))


def _shape(run: Run, args: Any, kwargs: Any) -> torch.Size:
    """The shape of a product's result; nothing is computed."""
    if isinstance(run, nn.Linear):
        return torch.Size([*args[0].shape[:-1], run.out_features])
    if isinstance(run, nn.Module):
        run = clone_module(run, {name: to_meta(tensor) for name, tensor in run.named_parameters()})
    args, kwargs = pytree.tree_map(lambda x: to_meta(x) if isinstance(x, Tensor) else x, (args, kwargs))
    found: Tensor = run(*args, **kwargs)
    return found.shape
