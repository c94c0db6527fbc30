"""The largest and the smallest over channels, of which some are removed: these are zeros, and zeros are compared, too.

    x.amax(1)      with some of the channels left      ->    relu(x.amax(1))
    x.max(1)[0]                                        ->    relu(x).max(1)[0]
    x.amin(1)                                          ->    clamp_max(x.amin(1), 0)

Where nothing below zero can arrive (`signs`), the largest is what it was.
"""

from __future__ import annotations

import torch
from torch import fx

from prunec.compiler.ir.ops import argument, is_tensor, known, op_name
from prunec.compiler.labels.flow import Flow
from prunec.compiler.labels.registry import Slim, rewriter
from prunec.compiler.ops.rewriting import left_of
from prunec.compiler.ops.sign_analysis import not_negative

LARGEST = frozenset(["amax", "max"])
EXTREMES = LARGEST | frozenset(["amin", "min"])


def compares_zeros(flow: Flow, node: fx.Node) -> bool:
    """Whether zeros among what is compared may change the result."""
    return op_name(node) not in LARGEST or not not_negative(flow, argument(node, 0, "input"))


@rewriter(*EXTREMES)
def with_a_zero(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Compare with a zero where a channel is gone."""
    value, second = argument(old, 0, "input"), argument(old, 1, "dim", old.kwargs.get("other"))
    if is_tensor(second) or not slim.compares_zeros(old):
        return  # the larger of two tensors, element by element
    left, size = left_of(value, known(second), slim)
    if left == size:
        return
    bound, rest = (torch.relu, ()) if op_name(old) in LARGEST else (torch.clamp_max, (0,))
    with new.graph.inserting_before(new):
        if isinstance(old.meta["val"], torch.Tensor):
            inner = new.graph.create_node(new.op, new.target, new.args, new.kwargs)
            inner.meta = {**new.meta, "val": new.meta["val"].new_empty(slim.shape(old))}
            new.op, new.target, new.args, new.kwargs = "call_function", bound, (inner, *rest), {}
        else:  # values and places
            source = argument(new, 0, "input")
            bounded = new.graph.call_function(bound, (source, *rest))
            bounded.meta = {**new.meta, "val": source.meta["val"]}
            new.replace_input_with(source, bounded)
