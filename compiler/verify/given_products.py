"""Runs of both programs in which products (convolutions, linear layers, attention) are given rather than computed.

first batch      x -> conv -> norm -> relu -> view -> fc        all is computed, on whole samples
another batch    x -> [  ] -> [  ] -> [  ] -> view -> [  ]      of what is given, operands are compared

What can depend on the batch size is what lies between products: sizes, views, indices, and where samples meet. It is
all computed. A product itself does to each sample what it does to any other, and so do norms and activations. That the
old one and the new one do the same has been seen in the first batch, so that equal operands give equal results in every
batch: both programs go on with the same random numbers in their place, the new one with those of the kept elements. So
a fault shows where the operands of the next product differ, as it would had they been computed. What only such layers
read has no numbers at all, only a shape. Marks are those of the first batch, as long as the same ones arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.ir.modules import clone_module, to_meta
from prunec.compiler.ir.program import Program
from prunec.compiler.verify.compare import compare_values, kept_elements
from prunec.compiler.verify.masks import Lined, Lines, Marked, leaves_of, plain

_PRODUCTS: Final = frozenset(
    [
        *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention),
        *(torch.conv1d, torch.conv2d, torch.conv3d),
    ]
)
_NORMS: Final = frozenset([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, F.layer_norm])
_ACTIVATIONS: Final = frozenset(
    [
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
        *(nn.Hardswish, nn.Hardsigmoid, nn.Dropout, nn.Dropout2d, nn.Identity),
        *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid),
    ]
)
"""Where these can't be left out they are computed: drawn numbers might be none that they give."""
_DRAWN: Final = 100_003
"""So many numbers are drawn; a prime, lest they repeat with a tensor's rows."""

_Mark = Tensor | Lines | None


class Products:
    """The products, norms and activations that a run of two programs, side by side, doesn't compute."""

    def __init__(self, before: Program, after: Program, dtype: torch.dtype, seed: int, tolerance: float) -> None:
        self.before, self.after = before, after
        self.names, self.unseen = _given(before, after)
        """Nodes that are given in both programs; those of them whose values only such nodes read."""
        self.tolerance = tolerance
        generator = torch.Generator().manual_seed(seed)
        self.drawn = torch.randn(_DRAWN, generator=generator, dtype=dtype)
        self.step = int(torch.randint(_DRAWN // 4, _DRAWN // 2, (), generator=generator))
        self.count = 0
        self.arriving: dict[str, tuple[_Mark, ...]] = {}
        """The marks of a node's operands in the first batch, ..."""
        self.leaving: dict[str, _Mark] = {}
        """... and of its value."""
        self.given = ""
        """The node whose value the old program has just been given, ..."""
        self.operands: list[Any] = []
        self.places: list[str] = []
        """... its operands, ..."""
        self.result: Any = None
        self.agreed: dict[str, tuple[int, ...]] = {}
        """... and the numbers that it was given, with marks: set by who runs both programs."""

    # -- in the first batch ------------------------------------------------------------------------------------------

    def learn(self, node: fx.Node, args: Any, kwargs: Any) -> None:
        """Remember the marks that arrive at a node; nothing is given."""
        if node.name in self.names:
            self.arriving[node.name] = _marks((args, kwargs))

    def learn_result(self, node: fx.Node, value: Any) -> None:
        """Remember the marks of a node's value."""
        if node.name in self.arriving:
            self.leaving[node.name] = _mark(value)

    # -- in the others -----------------------------------------------------------------------------------------------

    def of_reference(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The value that the old program is given at a node: random numbers of the result's shape, or an empty shape
        where nobody looks at them; None where it is to be computed. The operands, with their marks, are kept for the
        comparison. Raises ValueError where they aren't marked as in the first batch."""
        if node.name not in self.names:
            return None
        if not _has_tensors_alone(node, args, kwargs):
            if node.name in self.unseen:
                raise ValueError("it reads a number")
            return None
        if not _alike(_marks((args, kwargs)), self.arriving.get(node.name)):
            raise ValueError("other marks arrive than in the first batch")
        self.given, self.operands = node.name, leaves_of((args, kwargs))
        places = leaves_of((node.args, node.kwargs)) if node.args else self.operands
        self.places = [place.name if isinstance(place, fx.Node) else "" for place in places]
        shape, marks = _shape(self.before, node, *plain((args, kwargs))), self.leaving[node.name]
        data = torch.empty(shape, device="meta") if node.name in self.unseen else self._numbers(shape)
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
        own, places = leaves_of((args, kwargs)), leaves_of((node.args, node.kwargs))
        if len(own) != len(self.operands) or not all(map(self._agree, self.operands, own, self.places, places)):
            raise ValueError("its operands differ")
        if node.name in self.unseen:
            return torch.empty(_shape(self.after, node, args, kwargs), device="meta")
        if not isinstance(self.result, Marked):
            return self.result.clone()
        found = kept_elements(self.result)
        return found if found.ndim == self.result.data.ndim else found.reshape(_shape(self.after, node, args, kwargs))

    def note(self, node: fx.Node, want: Any, got: Any) -> None:
        """Remember that the values of a node have been compared, and agree."""
        self.agreed[node.name] = _versions(want, got)

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


def _endless(first: Tensor, again: Tensor) -> Iterator[Tensor]:
    yield first
    while True:
        yield again


def _versions(want: Any, got: Any) -> tuple[int, ...]:
    """How often the values of a node have been written to."""
    return tuple(x._version for x in (plain(want), got) if isinstance(x, Tensor))


def _marks(tree: Any) -> tuple[_Mark, ...]:
    """The marks of all tensors in a nest."""
    return tuple(_mark(leaf) for leaf in leaves_of(tree) if isinstance(leaf, Tensor | Marked))


def _mark(value: Any) -> _Mark:
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


def _given(before: Program, after: Program) -> tuple[frozenset[str], frozenset[str]]:
    """The nodes that are given in both programs, and those of them whose values only such nodes read."""
    new = {node.name: node for node in after.graph.nodes}
    given: set[str] = set()
    unseen: set[str] = set()
    for node in reversed(before.graph.nodes):
        other = new.get(node.name)
        kind = _kind(before, node)
        if kind is None or other is None or kind != _kind(after, other):
            continue
        hidden = all(each.users and all(user.name in given for user in each.users) for each in (node, other))
        if hidden:
            unseen.add(node.name)
        if hidden or kind != "activation":
            given.add(node.name)
    return frozenset(given), frozenset(unseen)


def _kind(program: Program, node: fx.Node) -> str | None:
    """Whether a node is a product, a norm or an activation that may be given."""
    called = _called(program, node)
    kind = type(called) if isinstance(called, nn.Module) else called
    if kind in _PRODUCTS:
        return "product"
    if kind in _NORMS:
        return None if getattr(called, "running_mean", False) is None else "norm"  # else samples meet in it
    if kind not in _ACTIVATIONS or len(node.all_input_nodes) != 1:
        return None
    return None if _writes(called, node) and not _is_private(program, node.all_input_nodes[0]) else "activation"


def _writes(called: Any, node: fx.Node) -> bool:
    """Whether an activation may write into its operand."""
    return bool(getattr(called, "inplace", False) or len(node.args) > 1 or node.kwargs.get("inplace"))


def _is_private(program: Program, node: fx.Node) -> bool:
    """Whether an activation that writes into a node's value is the only one to see it."""
    return len(node.users) == 1 and _kind(program, node) is not None


def _called(program: Program, node: fx.Node) -> Any:
    """The module or the function that a node calls; None of the others."""
    if node.op == "call_module":
        return program.state[str(node.target)]
    return node.target if node.op == "call_function" else None


def _has_tensors_alone(node: fx.Node, args: Any, kwargs: Any) -> bool:
    """Whether all that a node reads from others are tensors: a number may follow the batch, and so may its effect."""
    pairs = zip(leaves_of((node.args, node.kwargs)), leaves_of((args, kwargs)), strict=True)
    return all(isinstance(value, Tensor | Marked) for place, value in pairs if isinstance(place, fx.Node))


def _shape(program: Program, node: fx.Node, args: Any, kwargs: Any) -> torch.Size:
    """The shape of a given node's value; nothing is computed."""
    run = _called(program, node)
    if (type(run) if isinstance(run, nn.Module) else run) not in _PRODUCTS:
        shape: torch.Size = (args[0] if args else next(iter(kwargs.values()))).shape
        return shape
    if isinstance(run, nn.Linear) and args:
        return torch.Size([*args[0].shape[:-1], run.out_features])
    if isinstance(run, nn.Conv1d | nn.Conv2d | nn.Conv3d) and args and args[0].ndim == run.weight.ndim:
        return _convolved(run, args[0].shape)
    if run is F.scaled_dot_product_attention and len(args) >= 3:
        return torch.Size([*args[0].shape[:-1], args[2].shape[-1]])
    if isinstance(run, nn.Module):
        run = clone_module(run, {name: to_meta(tensor) for name, tensor in run.named_parameters()})
    args, kwargs = pytree.tree_map(lambda x: to_meta(x) if isinstance(x, Tensor) else x, (args, kwargs))
    found: Tensor = run(*args, **kwargs)
    return found.shape


def _convolved(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, shape: torch.Size) -> torch.Size:
    """The shape of a convolution's result on a batch of this shape, by the formula in torch's documentation."""
    pads = (0,) * len(shape[2:]) if isinstance(layer.padding, str) else layer.padding
    settings = zip(shape[2:], layer.kernel_size, layer.stride, layer.dilation, pads, strict=True)
    sizes = [(n + 2 * int(pad) - apart * (kernel - 1) - 1) // stride + 1 for n, kernel, stride, apart, pad in settings]
    return torch.Size([shape[0], layer.out_channels, *(shape[2:] if layer.padding == "same" else sizes)])
