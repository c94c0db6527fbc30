"""Which units of a group can be merged into one: those that every operation of the program treats alike.

    conv1 -> relu -> conv2              all channels of conv1 are of one kind
    conv1 -> chunk(2): a, b; a + y      two kinds: only a's channels meet y's

Units of one kind can't be merged all the same where their number matters (`Analysis.counted`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from prunec.compiler.groups.analysis import Analysis, Group, Member
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Labelled

HASH = np.uint64(0x9E3779B97F4A7C15)
"""The golden ratio in 64 bits: an odd multiplier that spreads consecutive numbers."""


def kinds(analysis: Analysis) -> IntArray:
    """The kind of each unit, [units]: units of one kind may stand for each other. NO_UNIT where a unit can't be merged.

    A unit's kind is a hash of its places, relative to its first, in every array of labels that the program's values and
    axes carry. Units of one kind have equally many places in each array, and the k-th of one corresponds to the k-th of
    another: that tells which columns to add.
    """
    signature = np.zeros(analysis.size, dtype=np.uint64)
    for number, labels in enumerate(_label_arrays(analysis)):
        units = analysis.units(labels).ravel()
        places = np.flatnonzero(units != NO_UNIT)
        here, inverse = np.unique(units[places], return_inverse=True)
        first = np.full(here.size, places.size and places[-1], dtype=np.int64)
        np.minimum.at(first, inverse, places)
        pattern = np.zeros(here.size, dtype=np.uint64)
        np.add.at(pattern, inverse, _scrambled(places - first[inverse] + 1))
        signature[here] += _scrambled(pattern ^ _scrambled(np.array([number + 1])))
    kind = np.unique(signature, return_inverse=True)[1].astype(np.int64)
    kind[~analysis.free] = NO_UNIT
    kind[list(analysis.counted)] = NO_UNIT
    return kind


def _label_arrays(analysis: Analysis) -> list[IntArray]:
    """Every array of labels, once each, in the order of the graph."""
    values = (labels for value in analysis.flow.values.values() for labels in label_arrays_of(value))
    bound = (binding.labels for binding in analysis.flow.bindings.values())
    return list({id(labels): labels for labels in (*values, *bound)}.values())


def label_arrays_of(value: Labelled) -> Iterator[IntArray]:
    """Every array of labels that a node carries, whether its value is a tensor or a nest of them."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from label_arrays_of(part)


def _scrambled(numbers: npt.NDArray[np.generic]) -> npt.NDArray[np.uint64]:
    """Numbers spread over 64 bits, so that different sets of them have different sums."""
    mixed = numbers.astype(np.uint64) * HASH
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(29))


def unmergeable(analysis: Analysis, group: Group, units: Iterable[int] | None = None) -> str:
    """Why units of a group (by default, any two) can't be merged: what counts them, what pins one, or their kinds."""
    asked = range(group.size) if units is None else units
    reasons = (analysis.counted.get(group.start + unit, "") or group.pinned[unit] for unit in asked)
    return next((reason for reason in reasons if reason), "no two of its units are produced and read alike")


def pacesetter(analysis: Analysis, writers: Sequence[Member]) -> Member:
    """The writer whose kernels are clustered: of layers, if there are any, the one with the fewest writers before it.

    Where a projection runs beside a chain of convolutions it is the projection; in a stream that only identities carry
    on it is the layer that begins it.
    """
    nodes = {node.name: node for node in analysis.program.graph.nodes}
    writing = {member.cause for group in analysis.groups.values() for member in group.writers}
    depth: dict[str, int] = {}
    for name, node in nodes.items():
        depth[name] = max((depth[source.name] for source in node.all_input_nodes), default=0) + (name in writing)
    order = {name: index for index, name in enumerate(nodes)}
    return min(writers, key=lambda m: (nodes[m.cause].op == "get_attr", depth[m.cause], order[m.cause]))
