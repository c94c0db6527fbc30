"""Marks of normalisation layers.

batch_norm, instance_norm, prelu      one channel at a time, each with its own parameters, which go with it
layer_norm, rms_norm, group_norm      statistics over channels are those of the kept elements alone
local_response_norm, softmax2d        channels are divided by sums over others: none may be removed
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from prunec.compiler.verify.masks import Call, Marked, Value, along_channels, collapse, mark, marks_of, meet, plain
from prunec.compiler.verify.table import row

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "prelu": ("input", "weight"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
}
"""Operation -> its arguments, in order."""

PARAMETERS: Final = ("running_mean", "running_var", "weight", "bias")
"""Arguments that hold one number a channel."""


@row("batch_norm", "instance_norm", "prelu")
def _channelwise(call: Call) -> Any:
    """One operation per channel (dimension 1), each with its own parameters: batch and instance norm, PReLU."""
    data = call.plain()
    bound = call.bind(*ARGUMENTS[call.name])
    rank = data.ndim
    params = [along_channels(bound[name], rank) for name in PARAMETERS if isinstance(bound.get(name), Tensor | Marked)]
    return mark(data, meet(call, [bound["input"], *params], data.shape))


def _kept(value: Value) -> Tensor:
    """True where an element isn't removed; of the data's shape, where the data are."""
    if isinstance(value, Marked):
        return value.kept.to(value.data.device)
    return torch.ones_like(value, dtype=torch.bool)


def _normalised(x: Tensor, kept: Tensor, eps: float, *, centre: bool) -> Tensor:
    """Each row normalised by the mean and variance (without `centre`: the mean square) of its kept elements."""
    count = kept.sum(-1, keepdim=True).clamp(min=1)
    clean = torch.where(kept, x, torch.zeros((), dtype=x.dtype))
    if centre:
        clean = torch.where(kept, x - clean.sum(-1, keepdim=True) / count, torch.zeros((), dtype=x.dtype))
    return clean / torch.sqrt((clean * clean).sum(-1, keepdim=True) / count + eps)


def _norm_over(call: Call, *, centre: bool) -> Any:
    """Layer norm (`centre`) and RMS norm over the last dimensions."""
    bound = call.bind(*ARGUMENTS[call.name])
    x = bound["input"]
    data, dims = plain(x), len(bound["normalized_shape"])
    kept = _kept(x)
    eps = bound["eps"] if bound["eps"] is not None else (1e-5 if centre else torch.finfo(data.dtype).eps)
    out = _normalised(data.flatten(-dims), kept.flatten(-dims), eps, centre=centre).reshape(data.shape)
    return _affine(call, out, x, bound["weight"], bound.get("bias"))


@row("group_norm")
def _group_norm(call: Call) -> Any:
    """Group norm: each group's mean and variance are those of its kept channels."""
    bound = call.bind(*ARGUMENTS["group_norm"])
    x = bound["input"]
    data, kept = plain(x), _kept(x)
    rows = (data.shape[0], bound["num_groups"], -1)
    eps = 1e-5 if bound["eps"] is None else bound["eps"]
    out = _normalised(data.reshape(rows), kept.reshape(rows), eps, centre=True).reshape(data.shape)
    scale, shift = (None if p is None else along_channels(p, data.ndim) for p in (bound["weight"], bound["bias"]))
    return _affine(call, out, x, scale, shift)


def _affine(call: Call, out: Tensor, x: Value, scale: Value | None, shift: Value | None) -> Value:
    """The normalised `out`, scaled and shifted; parameters must be removed where the channels of `x` are."""
    marks = meet(call, [value for value in (x, scale, shift) if value is not None], out.shape)
    out = out if scale is None else out * plain(scale)
    out = out if shift is None else out + plain(shift)
    return mark(out, marks)


@row("local_response_norm", "cross_map_lrn2d", "softmax2d")
def _over_channels(call: Call) -> Any:
    """Each channel is divided by what others hold: none may be removed."""
    marks = marks_of(call.args[0])
    return mark(call.plain(), collapse(call, marks, {1, marks.ndim - 3}, "a norm over removed channels"))


row("layer_norm")(partial(_norm_over, centre=True))
row("rms_norm")(partial(_norm_over, centre=False))
