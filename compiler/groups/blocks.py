"""Keeps values that vary along several dimensions rectangular, whatever is removed: labels are joined until they are.

[2 rows, 4 positions]   0 1 2 3 | 4 5 6 7      eight units: to remove one alone would leave a hole
joined, same            0 1 2 3 | 0 1 2 3      the same position of both rows is a unit
joined, whole           0 0 0 0 | 4 4 4 4      a row is a unit
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import FIXED, Flow, Meeting, Pin


def components(count: int, left: IntArray, right: IntArray) -> IntArray:
    """label -> the smallest label that it is joined with, of `count` labels; `left[i]` is joined with `right[i]`."""
    graph = coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max() + 1, count, dtype=np.int64)
    np.minimum.at(smallest, component, np.arange(count))
    return np.asarray(smallest[component], dtype=np.int64)


def square_blocks(flow: Flow, component: IntArray) -> tuple[IntArray, list[Pin]]:
    """Join labels until every value that varies along several dimensions stays rectangular whatever is removed.

    Returns the components, and pins. A value [g, n] is rectangular if whole rows go, or the same positions of each row.
    Where neither holds yet and the plan doesn't say, the choice that leaves more units is taken. Joining may disturb
    another block, so it is repeated until nothing changes; units only ever grow, so that ends. What is joined with a
    FIXED position is pinned: FIXED, being -1, is the last entry of `component` here.
    """
    blocks = {(labels.shape, labels.tobytes()): (labels, node) for labels, node in flow.blocks}.values()
    component = _divide_blocks(flow, np.append(component, component.size))
    component, pins = _settle_meetings(flow, component)
    while extra := [pair for labels, _ in blocks if (pair := _squared(component, labels)) is not None]:
        component = _joined(component, extra)
    pins += [
        Pin(labels[component[labels] == component[FIXED]], f"shares a block with fixed positions at {node}")
        for labels, node in blocks
    ]
    return component[:-1], [pin for pin in pins if pin.labels.size]


def _divide_blocks(flow: Flow, component: IntArray) -> IntArray:
    """Join the labels of blocks [rows, positions] that aren't rectangular yet, where the plan says how to divide them.

    Blocks come in the graph's order: one that only transposes an earlier one is rectangular by then.
    """
    for labels, node in flow.blocks if flow.program.granularity.grouped else ():
        wide = [d for d in range(labels.ndim) if labels.shape[d] > 1]
        if len(wide) != 2 or _squared(component, labels) is None:
            continue
        shape = f"{labels.shape[wide[0]]} rows of {labels.shape[wide[1]]}"
        choice = flow.divide("grouped", node, shape, flow.writers(labels), "", (labels,))
        if choice in ("equal", "free"):  # what a view gives must keep its order
            flow.settle(node, "same")
        if choice:
            joined = component[labels]
            edge = first_along(joined, wide[0] if choice == "whole" else wide[1])
            component = _joined(component, [(joined.ravel(), np.broadcast_to(edge, joined.shape).ravel())])
    return component


def _settle_meetings(flow: Flow, component: IntArray) -> tuple[IntArray, list[Pin]]:
    """Join each grid with the lines that it has met (`Flow.meetings`), unless it loses whole slices across the line;
    then the line is pinned. Returns the components, and pins.

    What is known of a grid decides, first of all that a sum runs over the width of a head. Where nothing is known, the
    first line that it met is joined with it, and then that is known.
    """
    pins: list[Pin] = []
    waiting = flow.meetings
    while waiting:
        extra: list[tuple[IntArray, IntArray]] = []
        later: list[Meeting] = []
        touched = np.zeros(component.size, dtype=bool)
        for meeting in waiting:
            grid, line = component[meeting.grid], component[meeting.line]
            if _is_whole_across(grid, meeting.line):
                pins.append(Pin(meeting.line, f"crosses what goes as a whole at {meeting.cause}"))
            elif bool(touched[grid].any()):
                later.append(meeting)
            else:
                extra.append((grid.ravel(), np.broadcast_to(line, grid.shape).ravel()))
                touched[grid] = True
        component, waiting = (_joined(component, extra) if extra else component), later
    for meeting in flow.meetings:
        for labels in (meeting.grid, meeting.line):
            fixed = labels[(component[labels] == component[FIXED]) & (labels != FIXED)]
            if fixed.size:
                pins.append(Pin(fixed, f"meets positions that are fixed at {meeting.cause}"))
    return component, pins


def _is_whole_across(grid: IntArray, line: IntArray) -> bool:
    """Whether a grid of components is the same at all positions of the dimensions along which a line varies."""
    first = grid[tuple(slice(0, 1) if size > 1 else slice(None) for size in line.shape)]
    return bool((grid == first).all())


def _squared(component: IntArray, labels: IntArray) -> tuple[IntArray, IntArray] | None:
    """The pairs to join so that only one dimension of a block can lose positions; None where none need be."""
    joined = component[labels]
    edges = [first_along(joined, dim) for dim in range(labels.ndim) if labels.shape[dim] > 1]
    if any(bool((joined == edge).all()) for edge in edges):
        return None
    best = max(edges, key=lambda edge: (len(set(edge.flat)), sorted(set(edge.flat))))
    return joined.ravel(), np.broadcast_to(best, joined.shape).ravel()


def _joined(component: IntArray, pairs: Sequence[tuple[IntArray, IntArray]]) -> IntArray:
    """The components once these pairs of component numbers are joined, too."""
    left = np.concatenate([np.arange(component.size), *(a for a, _ in pairs)])
    right = np.concatenate([component, *(b for _, b in pairs)])
    return components(component.size, left, right)


def first_along(array: IntArray, dim: int) -> IntArray:
    """The entries along `dim` at position 0 of every other dimension; of the array's rank."""
    return array[tuple(slice(None) if d == dim else slice(0, 1) for d in range(array.ndim))]
