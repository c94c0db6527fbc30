"""Pooling over the last dimensions: labels along these are pinned, all others (channels) pass.

MaxPool2d(2)                  of [N, C, H, W]: labels along C pass, labels along H or W are pinned
AvgPool2d((1, 2))             labels along H pass, too: the window looks at one row at a time
AdaptiveAvgPool2d((None, 1))  so does this one
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.ir.ops import argument, op_name
from prunec.compiler.labels.flow import Flow, Labelled
from prunec.compiler.labels.propagate import subject
from prunec.compiler.labels.reduce import mixed
from prunec.compiler.labels.registry import Rule, on_module, on_op


def _local(width: int) -> Rule:
    """The rule for a pooling over the last `width` dimensions."""

    def rule(flow: Flow, node: fx.Node) -> Labelled:
        dims = [dim for dim, still in zip(range(-width, 0), _stands(flow, node, width), strict=True) if not still]
        fields = mixed(flow, node, subject(flow, node), dims, "is pooled over")
        known = node.meta["val"]
        return fields if isinstance(known, torch.Tensor) else [fields for _ in known]

    return rule


def _stands(flow: Flow, node: fx.Node, width: int) -> list[bool]:
    """For each of the last dimensions, whether the window's size and stride are 1 there, so that nothing is mixed."""
    module = flow.program.state.get(str(node.target)) if node.op == "call_module" else None
    name = type(module).__name__.lower() if module is not None else op_name(node)
    if "pool" not in name or "lp" in name:
        return [False] * width

    def each(position: int, key: str) -> list[Any]:
        given = getattr(module, key, None) if module is not None else flow.constant(argument(node, position, key))
        return [*given] if isinstance(given, tuple | list) and len(given) == width else [given] * width

    if name.startswith("adaptive"):
        return [size is None for size in each(1, "output_size")]
    kernels = each(1, "kernel_size")
    strides = [
        kernel if stride in (None, []) else stride for kernel, stride in zip(kernels, each(2, "stride"), strict=True)
    ]
    rims = each(3, "padding")
    return [
        (kernel, stride) == (1, 1) and rim in (0, None)
        for kernel, stride, rim in zip(kernels, strides, rims, strict=True)
    ]


for _width, _suffix in ((1, "1d"), (2, "2d"), (3, "3d")):
    for _pool in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool"):
        on_module(getattr(nn, _pool + _suffix), reduces=True, carries_copies=True)(_local(_width))
    _names = [f"{pool}_pool{_suffix}" for pool in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")]
    _names += [f"{pool}_pool{_suffix}_with_indices" for pool in ("max", "adaptive_max")]
    on_op(*_names, reduces=True, carries_copies=True)(_local(_width))
