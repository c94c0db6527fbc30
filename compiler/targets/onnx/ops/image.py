"""Images of another size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunec.compiler.targets.onnx.call import Call, on_module, on_op


@on_module(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
@on_op("interpolate")
def interpolate(call: Call) -> str:
    """Resize by sizes; torch's way to lay the places of the new image over the old one, by its mode."""
    mode, aligned = call.option(3, "mode", "nearest"), bool(call.option(4, "align_corners", False))
    if not call.is_module and call.literal(6, "antialias", False):
        call.decline("it smooths")
    old, new = (call.fixed_shape_of(x, range(2, call.rank)) for x in (call.subject, call.node))
    _check_scale(call, old, new, aligned)
    kinds = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
    if mode not in kinds:
        call.decline(f"the mode '{mode}'")
    where = "asymmetric" if mode == "nearest" else "align_corners" if aligned else "half_pixel"
    how: dict[str, Any] = {"mode": kinds[mode], "coordinate_transformation_mode": where}
    how |= {"nearest_mode": "floor"} if mode == "nearest" else {"cubic_coeff_a": -0.75} if mode == "bicubic" else {}
    if all(b % a == 0 for a, b in zip(old, new, strict=True)):
        scales = [1.0, 1.0, *(b / a for a, b in zip(old, new, strict=True))]
        return call.add("Resize", call.first, "", call.graph.constant(scales, torch.float32), **how)
    return call.add("Resize", call.first, "", "", call.graph.shape(call.shape), **how)


def _check_scale(call: Call, old: list[int], new: list[int], aligned: bool) -> None:
    """Decline a scale that isn't the ratio of the sizes: torch lays the places by the scale itself."""
    scale = call.option(2, "scale_factor")
    if scale is None or aligned or (not call.is_module and call.literal(5, "recompute_scale_factor")):
        return
    scales = list(scale) if isinstance(scale, list | tuple) else [scale] * len(old)
    if any(a * s != b for a, s, b in zip(old, scales, new, strict=True)):
        call.decline("its scale isn't the ratio of the sizes")
