"""Tells where a forward decides by the size of its images (or the length of its sequences): the trace holds one way.

    if x.shape[-1] != self.size: table = F.interpolate(table, ...)      decided by the example
    F.interpolate(y, size=(int(h), int(w)))                             numbers of the example

So the forward is traced at other sizes, too. Where the program comes out otherwise there, both are run on such inputs:
if the model can take it, and the program made for the example's size can't or gives something else, a warning says so.
Most models decide nothing by sizes and are traced once more; a model that takes one size alone is never warned of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.inputs import Inputs, map_tensors, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.random_inputs import seeded
from prunec.compiler.verify.compare import difference
from prunec.compiler.verify.interpreter import Interpreter, StepError

NEAR = 1e-4
"""The largest relative difference between two programs that do the same."""
FEW_CHANNELS = 4
"""An image whose last dimension is so small, and no other, has its channels last."""

Sizes = tuple[int, ...]


def size_warnings(program: Program, inputs: Inputs, again: Callable[[Inputs], Program]) -> tuple[str, ...]:
    """A warning where the model does something else at other image sizes than a program that was just traced.

    `inputs` are the model's example; `again` traces it for others.
    """
    decides = bool(output_of(program.graph).meta.get("decides"))
    first: torch.Tensor | None = next((tensor for tensor in tensors_in(inputs) if _places(tensor)), None)
    for places in () if first is None else _places(first):
        assert first is not None, "it has the places"
        taken = False
        here = tuple(int(first.shape[dim]) for dim in places)
        for sizes in _others(here, decides=decides):
            resized = partial(_resized, places=places, here=here, sizes=sizes)
            try:
                other = again(map_tensors(partial(resized, draw=False), inputs))
            except ModelError:
                continue
            taken = True
            node = _first_difference(program, other)
            if node is not None and (fault := _fault(program, other, map_tensors(resized, program.inputs))):
                return (_told(first, places, sizes, fault, node),)
        if taken or not decides:
            break
    return ()


def _places(tensor: torch.Tensor) -> Sequence[Sizes]:
    """The dimensions, counted from the end, of an image's or clip's edges or a sequence's positions; where it may be
    laid out in two ways, the likelier one first."""
    if tensor.ndim >= 4:
        last = tensor.shape[-1] <= FEW_CHANNELS < min(tensor.shape[1:-1])
        return (tuple(range(1 - tensor.ndim, -1)) if last else tuple(range(2 - tensor.ndim, 0)),)
    if tensor.ndim == 3:
        return (-1,), (-2,)
    return ((-1,),) if tensor.ndim == 2 and not tensor.is_floating_point() else ()


def _others(here: Sizes, *, decides: bool) -> Iterator[Sizes]:
    """Sizes to try: multiples, which a model with windows or patches takes; where it decides by sizes, more of them."""
    unequal = tuple(size * (2 + i) for i, size in enumerate(here))
    if not decides:
        yield unequal
        return
    yield tuple(size + 1 for size in here)
    if all(size > 1 for size in here):
        yield tuple(size // 2 for size in here)
    yield unequal
    yield tuple(size * 2 for size in here)


def _resized(x: torch.Tensor, places: Sizes, here: Sizes, sizes: Sizes, *, draw: bool = True) -> torch.Tensor:
    """A tensor of another size, where it has the first one's: drawn anew, or of integers the example's own, repeated;
    without any values unless told to `draw`."""
    if x.ndim < -min(places) or tuple(x.shape[dim] for dim in places) != here:
        return x
    shape = list(x.shape)
    for dim, size in zip(places, sizes, strict=True):
        shape[dim] = size
    if not draw:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    if x.is_floating_point():
        spread, middle = float(x.std(correction=0)) or 1.0, float(x.mean())
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(x) * spread + middle
    for dim, size in zip(places, sizes, strict=True):
        x = x.index_select(dim, torch.arange(size, device=x.device) % x.shape[dim])
    return x


def _first_difference(program: Program, other: Program) -> fx.Node | None:
    """The first node in which two programs of one model differ; None where they are the same."""
    nodes: list[fx.Node] = list(program.graph.nodes)
    for node, twin in zip(nodes, other.graph.nodes, strict=False):
        if _spelled(node) != _spelled(twin) or not _same_state(program, other, node):
            return node
    return None  # both end with their outputs


def _spelled(node: fx.Node) -> str:
    return f"{node.op} {node.target} {node.args} {node.kwargs}"


def _same_state(program: Program, other: Program, node: fx.Node) -> bool:
    """Whether a node reads the same tensor in both; one that was computed may have another size."""
    mine, theirs = program.state.get(str(node.target)), other.state.get(str(node.target))
    if mine is theirs or node.op != "get_attr" or not isinstance(mine, torch.Tensor):
        return True
    return isinstance(theirs, torch.Tensor) and mine.shape == theirs.shape and bool(torch.equal(mine, theirs))


def _fault(program: Program, other: Program, inputs: tuple[Any, ...]) -> str:
    """What is wrong with a program on the inputs of another; empty where nothing is, or where the other fails, too."""
    runs = []
    for each in (other, program):
        try:
            with seeded(0):
                runs.append(Interpreter(each, _floating(each)).run(inputs))
        except StepError:
            return "fails" if each is program else ""
    return "gives something else" if difference(runs[1], runs[0]) > NEAR else ""


def _floating(program: Program) -> torch.dtype:
    """The dtype of the program's first floating-point tensor."""
    return next((tensor.dtype for tensor in program.tensors.values() if tensor.is_floating_point()), torch.float32)


def _told(first: torch.Tensor, places: Sizes, sizes: Sizes, fault: str, node: fx.Node) -> str:
    shape = list(first.shape)
    for dim, size in zip(places, sizes, strict=True):
        shape[dim] = size
    scope, at = node.meta.get("scope"), node.meta.get("at")
    where = " in ".join(part for part in (scope, f"{at[0]}:{at[1]}" if at else "") if part)
    return (
        f"the model decides by the size of its input, here {list(first.shape)}: the slim module {fault} on {shape}, "
        f"which the model takes{f' ({where})' if where else ''}"
    )
