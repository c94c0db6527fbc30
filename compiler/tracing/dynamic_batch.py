"""Lets numbers follow the batch that a forward has made plain numbers of.

    b = int(windows.shape[0] / (h * w / 49))      Python's int() gives a plain number, which the graph holds as it is
    x = windows.view(b, h // 7, w // 7, 7, 7, -1)

With another batch the view would cut images apart, in silence. So a forward that makes plain numbers of sizes is traced
once more, with a batch of one more sample. Where the two graphs are the same but for numbers, those that grew with the
batch become sizes:

    %getitem = %x.shape[0]
    %view = %windows.view(%getitem, ...)
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from prunec.compiler.errors import ModelError
from prunec.compiler.ir.inputs import Arguments, batch_of, is_batched, map_tensors
from prunec.compiler.ir.sizes import valued


def follow_batch(graph: fx.Graph, inputs: Arguments, again: Callable[[Arguments], fx.Graph]) -> None:
    """Let the numbers in a graph follow the batch where they do in a second trace.

    `again` traces the model for other inputs. Where that fails or gives other operations, the graph stays unchanged.
    """
    batch = batch_of(dict(inputs.inputs))
    first = next((node for node in graph.find_nodes(op="placeholder") if _has_batch(node, batch)), None)
    if not batch or first is None:
        return
    longer = {name: map_tensors(lambda x: _longer(x, batch), value) for name, value in inputs.inputs.items()}
    try:
        other = again(replace(inputs, inputs=longer))
    except ModelError:
        return
    nodes, twins = list(graph.nodes), list(other.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in twins]:
        return
    sizes: dict[int, fx.Node] = {}
    for node, twin in zip(nodes, twins, strict=True):
        _follow_at(node, twin, lambda number: _size(graph, first, batch, number, sizes), batch)


def _has_batch(node: fx.Node, batch: int | None) -> bool:
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and is_batched(value, batch)


def _longer(x: torch.Tensor, batch: int) -> torch.Tensor:
    """A tensor with one more sample, where its first dimension is the batch."""
    return torch.cat([x, x[:1]]) if is_batched(x, batch) else x


def _follow_at(node: fx.Node, twin: fx.Node, size: Callable[[int], fx.Node], batch: int) -> None:
    """Put a size in place of each number among a node's arguments that grew with the batch; `twin` is its node of the
    second trace, `size` gives the size for a number."""
    mine, theirs = _leaves(node), _leaves(twin)
    if node.op == "placeholder" or len(mine) != len(theirs):
        return
    leaves = [size(a) if _grew(a, b, batch) else a for a, b in zip(mine, theirs, strict=True)]
    if any(new is not old for new, old in zip(leaves, mine, strict=True)):
        rest = iter(leaves)
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), lambda _: next(rest))


def _leaves(node: fx.Node) -> list[Any]:
    found: list[Any] = []
    fx.node.map_aggregate((node.args, node.kwargs), found.append)
    return found


def _grew(number: Any, other: Any, batch: int) -> bool:
    """Whether a number grew in proportion to the batch."""
    both = type(number) is int and type(other) is int and number != other
    return both and number * (batch + 1) == other * batch


def _size(graph: fx.Graph, first: fx.Node, batch: int, number: int, known: dict[int, fx.Node]) -> fx.Node:
    """A node right behind the inputs that gives `number` for the example, a multiple of its batch."""

    def made(function: Callable[..., Any], args: tuple[Any, ...], value: Any) -> fx.Node:
        with graph.inserting_before(behind):
            return valued(graph.call_function(function, args), value)

    behind = next(node for node in graph.nodes if node.op != "placeholder" and node not in known.values())
    if batch not in known:
        known[batch] = made(operator.getitem, (made(getattr, (first, "shape"), first.meta["val"].shape), 0), batch)
    if number not in known:
        known[number] = made(operator.mul, (known[batch], number // batch), number)
    return known[number]
