"""Groups of a grouped layer: whole groups are units, or positions of every group."""

from __future__ import annotations

from torch import fx

from prunec.compiler.ir.program import IntArray
from prunec.compiler.labels.flow import Flow


def granularity_of(flow: Flow, node: fx.Node, shape: str, *labels: IntArray) -> str:
    """The granularity of a grouped layer's channels: the plan's choice for the layer, else `same`."""
    names = [str(node.target)] if node.op == "call_module" else []
    return flow.divide("grouped", node.name, shape, names, "same", labels)


def keep_even(flow: Flow, node: fx.Node, rows: IntArray) -> None:
    """Keep groups (rows of labels [groups, positions]) equally wide: they lose the same positions or, where the
    granularity says so, equally many."""
    if flow.divided[node.name].choice in ("equal", "free"):  # a layer takes groups of one width
        flow.settle(node.name, "equal")
        flow.balance(rows, node)
    else:
        flow.unify(rows, rows[:1], node)
