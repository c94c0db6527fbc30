"""Every model of torchvision: traced and analysed, with nothing pinned but what the network gives and can't do without;
and small ones of every family through all stages of the coverage benchmark.

The models are built on the meta device, so that the largest take no longer than the smallest.
"""

from __future__ import annotations

import coverage
import pytest
import torch
from torchvision.models import mobilenet_v3_small, swin_transformer
from torchvision.models.maxvit import MaxVit
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d
from torchvision.models.vision_transformer import VisionTransformer
from zoo import CASES, Case

from prunec.compiler.groups.analysis import analyse
from prunec.compiler.tracing.trace import trace

WHOLE = [name for name, case in CASES.items() if not case.regions]
REFUSES_META = ("regnet",)
"""Their constructors read values of tensors."""

NO_CHANNELS = (
    "reaches the model's output",
    "is the only one of its group",
    "is all that one piece of a split has",
    "is a kernel dimension of ",
    "is picked from at ",
)
"""Pins of what no channel is (kernels, rows of tables), or of what must stay for the network to be one."""
ALLOWED = {
    "raft_large": ("meets positions that are fixed at update_block_motion_encoder_convflow1_2",),
    "raft_small": ("meets positions that are fixed at update_block_motion_encoder_convflow1_2",),
}
"""The two coordinates of the flow, which are concatenated to its features."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WHOLE)
def test_only_outputs_are_pinned(name):
    case = CASES[name]
    with torch.device("cpu" if name.startswith(REFUSES_META) else "meta"):
        model = case.build()
    analysis = analyse(trace(model, case.example()))
    groups = [group for group in analysis.groups.values() if not coverage.are_positions(analysis, group)]
    reasons = {reason for group in groups for reason in group.pinned if reason}
    assert not {r for r in reasons if not r.startswith(NO_CHANNELS + ALLOWED.get(name, ()))}
    assert analysis.free.sum() > 0.4 * sum(group.size for group in groups)


def _image(edge=64):
    return (torch.randn(1, 3, edge, edge),)


def _mvit(relative):
    blocks = [
        MSBlockConfig(1, 16, 32, (), (3, 3, 3), (), (1, 4, 4)),
        MSBlockConfig(2, 32, 32, (3, 3, 3), (3, 3, 3), (1, 2, 2), (1, 2, 2)),
    ]
    return MViT((32, 32), 4, blocks, True, False, rel_pos_embed=relative, proj_after_attn=relative, num_classes=5)


SMALL = {
    "attention": (lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5), lambda: _image(32)),
    "windows": (
        lambda: swin_transformer.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5),
        lambda: _image(64),
    ),
    "windows with cosine attention": (
        lambda: swin_transformer.SwinTransformer(
            [4, 4],
            16,
            [2, 2],
            [2, 4],
            [4, 4],
            num_classes=5,
            block=swin_transformer.SwinTransformerBlockV2,
            downsample_layer=swin_transformer.PatchMergingV2,
        ),
        lambda: _image(64),
    ),
    "windows in space and time": (
        lambda: SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [2, 4, 4], num_classes=5),
        lambda: (torch.randn(1, 3, 4, 32, 32),),
    ),
    "grids": (
        lambda: MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.1, num_classes=5),
        lambda: _image(64),
    ),
    "pooled attention": (lambda: _mvit(False), lambda: (torch.randn(1, 3, 4, 32, 32),)),
    "pooled attention with relative positions": (
        lambda: _mvit(True),
        lambda: (torch.randn(1, 3, 4, 32, 32),),
    ),
    "inverted residuals": (lambda: mobilenet_v3_small(num_classes=5), _image),
}


def _build(make):
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SMALL)
def test_all_stages(name):
    make, example = SMALL[name]
    found = {}
    coverage.examine(Case(name, "small", lambda: _build(make), example), onnx=False, say=found.update)
    assert found["status"] == "ok"
    assert found["macs"] <= 0.5
    assert max(found[key] for key in ("half", "random_10", "random_50", "minimum")) < 1e-9
