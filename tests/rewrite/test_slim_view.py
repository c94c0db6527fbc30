"""What one selection leaves: shapes, positions and numbers of nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Made, conv
from torch import nn

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.rewrite.slim_view import View
from prunec.compiler.tracing.trace import trace


def viewed(run, lost: dict[str, list[int]], **parts: nn.Module):
    """The view of a selection, and the program's nodes by name."""
    analysis = analyse(trace(Made(parts, run).eval(), (torch.zeros(2, 3, 4, 4),)))
    keep = np.ones(analysis.size, dtype=bool)
    for name, units in lost.items():
        keep[analysis.groups[name].start + np.array(units)] = False
    return View(analysis, keep), {node.name: node for node in analysis.program.graph.nodes}


def cat_view(lost=None):
    return viewed(
        lambda m, x: m.c(torch.cat([m.a(x), x, m.b(x)], 1)), lost or {}, a=conv(3, 4), b=conv(3, 2), c=conv(9, 2)
    )


def test_shapes_and_positions_of_a_concatenation():
    view, nodes = cat_view({"a": [0, 2], "b": [1]})
    assert view.shape(nodes["a"]) == (2, 2, 4, 4)
    assert view.shape(nodes["cat"]) == (2, 6, 4, 4)
    assert view.shape(next(iter(nodes.values()))) == (2, 3, 4, 4)
    assert view.kept(nodes["cat"], 1).tolist() == [False, True, False, True, True, True, True, True, False]
    assert view.kept(nodes["cat"], 2).all()


def test_where_nothing_goes_everything_is_the_very_same():
    view, nodes = cat_view()
    for node in nodes.values():
        known = node.meta["val"]
        assert view.meta(view.analysis.flow.values[node], known) is known
        for labels in view.analysis.flow.fields(node):
            assert view.mask(labels) is None
            assert view.is_rectangular(labels)


def test_values_of_one_slim_shape_are_shared():
    view, nodes = cat_view({"a": [0, 2]})
    fields = view.analysis.flow.values[nodes["a"]]
    first, again = (view.meta(fields, nodes["a"].meta["val"]) for _ in range(2))
    assert first is again
    assert (tuple(first.shape), first.device.type) == ((2, 2, 4, 4), "meta")


def test_parts_of_a_tuple_become_slim_one_by_one():
    view, nodes = viewed(
        lambda m, x: (lambda one, other: m.b(one.relu()) + m.c(other))(*m.a(x).chunk(2, 1)),
        {"a": [0, 1, 5]},
        a=conv(3, 8),
        b=conv(4, 2),
        c=conv(4, 2),
    )
    (split,) = [node for node in nodes.values() if isinstance(node.meta["val"], tuple)]
    found = view.meta(view.analysis.flow.values[split], split.meta["val"])
    assert [tuple(part.shape)[1] for part in found] == [2, 3]


def test_what_stays_of_a_grid_is_rectangular_or_not():
    view, _ = cat_view({"a": [0]})
    labels = view.analysis.flow.bindings
    (a,) = [binding.labels for axis, binding in labels.items() if str(axis) == "a.weight[0]"]
    b = next(binding.labels for axis, binding in labels.items() if str(axis) == "b.weight[0]")
    assert view.is_rectangular(np.stack([a, a]))
    assert not view.is_rectangular(np.stack([a[:2], b]))


def test_numbers_that_follow_the_batch_are_scaled():
    view, nodes = viewed(
        lambda m, x: (lambda a: m.b(a.flatten(2).view(a.size(0) * a.size(1), 16).view(2, -1, 4, 4)))(m.a(x)),
        {},
        a=conv(3, 4),
        b=conv(4, 2),
    )
    batch, channels = nodes["size"], nodes["size_1"]
    graph, mapping = view.analysis.program.copy_graph_with_map()
    view.mapping.update(mapping)
    made = view.scaled(batch, 3)
    assert made is not None
    assert made.meta["val"] == 3
    assert len(list(graph.nodes)) == len(nodes) + 2, "times 3 over 2"
    assert view.scaled(channels, 3) is None, "it counts channels alone"
    assert view.scaled(batch, 0) is None
    assert view.value(7) == 7
    assert view.value(channels) == 4
    view.values[channels] = 2
    assert view.value(channels) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_items_of_a_size_are_new_nodes(count):
    view, nodes = viewed(lambda m, x: m.b(m.a(x).view(x.size())), {}, a=conv(3, 3), b=conv(3, 2))
    size = next(node for node in nodes.values() if isinstance(node.meta["val"], torch.Size))
    _, mapping = view.analysis.program.copy_graph_with_map()
    assert [node.meta["val"] for node in view.items(mapping[size], count)] == [2, 3, 4, 4][:count]
