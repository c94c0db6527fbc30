"""Shares a network's measured time out to the layers and values of the program.

The profile of a network tells nodes that the runtime has rewritten: norms are folded away, activations fused, reorders
put in. They are matched with the program's own nodes by how many elements they write:

    product   Conv, Gemm, MatMul    goes to the layers and contractions whose values have as many elements, in
                                    proportion to what these take alone. In a network they take longer: their weights
                                    come from farther away
    other     Add, Gelu, Reorder    goes, in equal parts, to all values of as many elements; what writes as many as an
                                    input, before all products, lays that out anew, and no width changes that

What finds no partner is shared by all of its kind. What is left of the whole run goes by between nodes, and stays: some
runtimes tell it, in the same runs as the nodes, else it is the difference from a run that was timed by itself. So the
shares add up to what the network takes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from prunec.compiler.cost.latency.table import NetworkTime
from prunec.compiler.targets.base import BETWEEN, NodeTime

PRODUCTS: Final = frozenset(
    {
        *("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Einsum"),
        *("Attention", "MultiHeadAttention", "LSTM", "GRU", "RNN"),
    }
)
"""The runtime's operations that multiply."""
DISPATCH: Final = 20e-6
"""Seconds: the most that a runtime can need to get from one node to the next, where it doesn't tell."""


@dataclass(frozen=True)
class Part:
    """A layer or contraction: how many elements it writes, and its seconds alone (measured or estimated)."""

    elements: int
    alone: float


@dataclass(frozen=True)
class Shares:
    """Seconds of each part and each value in the network; with `fixed`, which no width changes, they are one run."""

    parts: tuple[float, ...]
    values: tuple[float, ...]
    fixed: float


def share_out(
    network: NetworkTime, parts: Sequence[Part], values: Sequence[int], inputs: Collection[int] = ()
) -> Shares:
    """Share a network's time out to its parts, and to its values, which are given as their numbers of elements, as the
    network's inputs are."""
    nodes = [node for node in network.nodes if node.op != BETWEEN]
    first = list(takewhile(lambda node: node.op not in PRODUCTS, nodes))
    laid_out = math.fsum(node.seconds for node in first if node.elements in inputs)
    nodes = [*(node for node in first if node.elements not in inputs), *nodes[len(first) :]]
    products = _by_elements(node for node in nodes if node.op in PRODUCTS)
    others = _by_elements(node for node in nodes if node.op not in PRODUCTS)
    if not parts:
        others = _by_elements(nodes)
    mine, rest = _of_parts(products, parts), _of_values(others, values)
    known = math.fsum((*mine, *rest, laid_out))
    between = math.fsum(node.seconds for node in network.nodes if node.op == BETWEEN)
    if between and known:
        between *= network.seconds / (known + between)
    else:
        between = min(max(network.seconds - known, 0.0), DISPATCH * len(nodes))
    scale = (network.seconds - between) / known if known else 0.0
    fixed = between + laid_out * scale if known else network.seconds
    return Shares(tuple(s * scale for s in mine), tuple(s * scale for s in rest), fixed)


def _by_elements(nodes: Iterable[NodeTime]) -> dict[int, float]:
    """Number of elements that are written -> the seconds of all nodes that write as many."""
    found: dict[int, float] = defaultdict(float)
    for node in nodes:
        found[node.elements] += node.seconds
    return found


def _of_parts(seconds: Mapping[int, float], parts: Sequence[Part]) -> list[float]:
    """Seconds of each part: its time alone, times what all parts of its size take in the network over alone."""
    alone: dict[int, float] = defaultdict(float)
    for part in parts:
        alone[part.elements] += part.alone
    left = math.fsum(time for elements, time in seconds.items() if elements not in alone)
    lost = math.fsum(time for elements, time in alone.items() if elements not in seconds)
    together = {
        elements: seconds.get(elements, left * time / lost if lost else 0.0) for elements, time in alone.items()
    }
    mine = [part.alone * together[part.elements] / alone[part.elements] for part in parts]
    total = math.fsum(mine)
    more = 1 + left / total if not lost and total else 1.0
    return [time * more for time in mine]


def _of_values(seconds: Mapping[int, float], values: Sequence[int]) -> list[float]:
    """Seconds of each value: equal parts for values of one size; nodes of other sizes are shared by elements."""
    sizes: dict[int, int] = defaultdict(int)
    for elements in values:
        sizes[elements] += 1
    left = math.fsum(time for elements, time in seconds.items() if elements not in sizes)
    each = left / max(sum(values), 1)
    return [seconds.get(elements, 0.0) / sizes[elements] + each * elements for elements in values]
