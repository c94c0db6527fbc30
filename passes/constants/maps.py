"""Constants that are added behind a layer, place by place: what zeros around the image leave of them.

    conv reads 0.5 of unit 3 inside the image, and zeros around it
    before    y = conv(x)                          after    y = conv(x without unit 3) + map        map [1, O, H, W]

The map is what the layer makes of an image that holds the constants and zeros elsewhere. It stands for one size of
images alone, unless it is the same everywhere. Behind a batch norm that alone reads the layer, so that this can still
be folded, it is scaled as the norm scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.verify.interpreter import Interpreter
from prunec.passes.repairing.layers import Layer, affine_of
from prunec.passes.repairing.rows import is_conv


@dataclass(frozen=True)
class Map:
    """What is added behind a node."""

    node: str
    values: Tensor
    """Of the value's rank, in float64; size 1 along the batch, and where all places have the same."""
    axis: Axis
    """The axis that writes the channels."""
    dim: int
    """The dimension of `values` along which they lie."""


def map_of(program: Program, layer: Layer, image: Tensor) -> Map:
    """What a layer makes of an image, [1, ...], beyond what it makes of zeros."""
    run = Interpreter(program, torch.float64)

    def given(read: Tensor) -> Tensor:
        def value(node: fx.Node) -> Tensor:
            return read if node is layer.source else run.load(str(node.target))

        args, kwargs = fx.map_arg((layer.node.args, layer.node.kwargs), value)
        with torch.no_grad():
            found: Tensor = run.target(layer.node)(*args, **kwargs)
        return found

    found = given(image) - given(torch.zeros_like(image))
    dim, node = 1 if layer.form.conv is not None and is_conv(layer.form.conv) else found.ndim - 1, layer.node
    if layer.norm is not None:
        scale = affine_of(program.state[str(layer.norm.target)]).scale
        found, node = found * scale.reshape([-1 if d == 1 else 1 for d in range(found.ndim)]), layer.norm
    for each in range(1, found.ndim):
        first = found.narrow(each, 0, 1)
        if each != dim and bool((found - first).abs().max() <= 1e-12 * found.abs().max()):
            found = first
    return Map(node.name, found, Axis(layer.weight, layer.form.writes), dim)


def with_maps(before: Program, after: Program, maps: Sequence[Map]) -> Program:
    """`after`, which is `before` without some units, with maps added behind its nodes."""
    if not maps:
        return after
    graph, state = after.copy_graph(), dict(after.state)
    nodes = {node.name: node for node in graph.nodes}
    for each in maps:
        values, node, weight = each.values, nodes[each.node], after.tensors[each.axis.tensor]
        left = after.left_of(before, each.axis)
        if left is not None:
            values = values.index_select(each.dim, torch.from_numpy(np.asarray(left)).to(values.device))
        name = _free_name(f"{node.name}_constants", after)
        state[name] = nn.Parameter(values.to(weight), requires_grad=weight.requires_grad)
        with graph.inserting_after(node):
            held = graph.create_node("get_attr", name)
        with graph.inserting_after(held):
            total = graph.call_function(torch.add, (node, held))
        held.meta = {"val": values.to(weight).to("meta")}
        total.meta = dict(node.meta)
        node.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)
    return after.with_graph(graph, state)


def _free_name(name: str, program: Program) -> str:
    """A name that no part of the program has."""
    taken = {part for known in (*program.state, *program.tensors) for part in (known, known.partition(".")[0])}
    while name in taken:
        name += "_"
    return name
