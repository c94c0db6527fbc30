"""Variances and deviations over channels, of which some are removed: these are zeros, and zeros are counted.

    x.var(1)    with a share s of the channels left, of mean m and variance v    ->    s v + s (1 - s) m^2

Both terms are positive, so nothing cancels. A correction for the number of elements is that of the old number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from prunec.compiler.ir.ops import argument, known, op_name
from prunec.compiler.labels.registry import Slim, rewriter
from prunec.compiler.ops.rewriting import left_of


def correction(node: fx.Node) -> float:
    """What a variance takes off the number of elements; `unbiased` may stand in the place of the dimensions."""
    if "correction" in node.kwargs:
        given = node.kwargs["correction"]
        return 1.0 if given is None else float(known(given))
    flags = [arg for arg in node.args[1:3] if isinstance(arg, bool)]
    unbiased = node.kwargs.get("unbiased", flags[0] if flags else True)
    return float(bool(unbiased))


@rewriter("var", "std")
def spread(old: fx.Node, new: fx.Node, slim: Slim) -> None:
    """Of a share s of the elements with mean m and variance v, the others zeros: s v + s (1 - s) m^2."""
    value, dim = argument(old, 0, "input"), argument(old, 1, "dim")
    dim = None if isinstance(dim, bool) else known(dim)
    left, size = left_of(value, dim, slim)
    if left == size:
        return
    keep = old.kwargs.get("keepdim", old.kwargs.get("keepdims", len(old.args) > 3 and old.args[3]))
    options = {"dim": dim, "keepdim": keep} if dim is not None else {}
    share, narrow = left / size, new.meta["val"].new_empty(slim.shape(old))

    def made(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = new.graph.call_function(target, args, kwargs)
        node.meta = {**new.meta, "val": narrow}
        return node

    with new.graph.inserting_before(new):
        source, off = argument(new, 0, "input"), correction(old)
        inner = made(operator.mul, made(torch.var, source, correction=0, **options), share)
        mean = made(torch.square, made(torch.mean, source, **options))
        both = made(operator.add, inner, made(operator.mul, mean, share * (1 - share)))
        root = made(torch.sqrt, both) if op_name(old) == "std" else both
    factor = size / (size - off)
    new.op, new.target, new.kwargs = "call_function", operator.mul, {}
    new.args = (root, factor**0.5 if op_name(old) == "std" else factor)
