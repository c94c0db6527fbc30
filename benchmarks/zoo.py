"""Every model of torchvision, with the smallest inputs that show all of it: what `coverage.py` goes through.

    FAMILIES      classification, segmentation, video, quantization, detection, flow
    CASES         name -> Case: how to build the model, what to call it with, and which regions to compile if not all

Weights are random, also where they start as zeros or ones. Quantisable models are the float ones that quantisation
starts from. Segmentation models have their auxiliary heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models

FAMILIES = ("classification", "segmentation", "video", "quantization", "detection", "flow")


@dataclass(frozen=True)
class Case:
    """One model."""

    name: str
    family: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Any, ...]]
    regions: tuple[str, ...] = ()
    """The submodules to compile, where data decide what the whole model does."""


_LARGE = ("vit_", "maxvit", "swin_")
"""Parts of the names of models made for images of 224 pixels."""


def _edge(name: str) -> int:
    return 224 if name.startswith(_LARGE) else 96


def _image(name: str) -> tuple[Any, ...]:
    return (torch.randn(1, 3, _edge(name), _edge(name)),)


def _clip(name: str) -> tuple[Any, ...]:
    frames, edge = (16, 224) if name.startswith(("mvit", "s3d")) else (4, 64)
    return (torch.randn(1, 3, frames, edge, edge),)


def _pictures(name: str) -> tuple[Any, ...]:
    edge = 300 if "ssd" in name else 128
    return ([torch.rand(3, edge, edge)],)


def _pair(name: str) -> tuple[Any, ...]:
    return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)


def _make(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = get_model(name, weights=None, **options)
    for tensor in (*model.parameters(), *model.buffers()):
        _stir(tensor)
    return model.eval()


def _stir(tensor: torch.Tensor) -> None:
    """Draw a tensor that starts as one value everywhere: heads of zeros, and norms that change nothing, would hide
    differences."""
    drawn = tensor.is_floating_point() and tensor.numel() > 1 and not tensor.is_meta
    if drawn and bool((tensor == tensor.flatten()[0]).all()):
        tensor.detach().add_(torch.randn_like(tensor), alpha=0.1)


_QUIET = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
"""Their own initialisation takes half a minute."""
_SOURCES: Mapping[str, tuple[Any, Callable[[str], tuple[Any, ...]], Mapping[str, Any]]] = {
    "classification": (torchvision.models, _image, {}),
    "segmentation": (torchvision.models.segmentation, _image, {"weights_backbone": None, "aux_loss": True}),
    "video": (torchvision.models.video, _clip, {}),
    "quantization": (torchvision.models.quantization, _image, {"quantize": False}),
    "detection": (torchvision.models.detection, _pictures, {"weights_backbone": None}),
    "flow": (torchvision.models.optical_flow, _pair, {}),
}


def _regions(family: str, name: str) -> tuple[str, ...]:
    """What of a detector runs the same whatever is found in the image: without the matching of boxes."""
    if family != "detection":
        return ()
    if "rcnn" in name:
        return "backbone", "rpn.head", "roi_heads.box_head"
    return ("backbone",) if name == "ssd300_vgg16" else ("backbone", "head")


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for family, (module, example, options) in _SOURCES.items():
        for name in list_models(module=module):
            mine = {**options, **_QUIET.get(name.removeprefix("quantized_"), {})}
            if name.startswith("lraspp"):
                del mine["aux_loss"]
            cases[name] = Case(
                name, family, partial(_make, name, **mine), partial(example, name), _regions(family, name)
            )
    return cases


CASES = _cases()
