"""Attention in every form that occurs: heads, widths and embeddings are units, and what is left computes the same."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from attention_nets import FORMS, HEADS, attended, build, heads
from nets import Made, lively
from oracle import difference, masked, run, selection
from torch import nn
from torch.nn.modules import transformer
from torchvision import models
from torchvision.models import swin_transformer, video

from prunec.compiler.emit.python import WEIGHTS, emit_source, save_weights
from prunec.compiler.errors import ModelError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ops.matmul import letters_of
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.targets.onnx_export import export_onnx
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text
from prunec.compiler.tracing.trace import trace
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify

TOLERANCE = 1e-9
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
UNWRITTEN = {"rotary_by_complex_numbers"}
"""Holds a buffer of complex numbers, that no weight file keeps."""


@pytest.mark.parametrize(
    ("equation", "ranks", "found"),
    [
        ("ij,jk->ik", (2, 2), (["ij", "jk"], "ik")),
        ("ij,jk", (2, 2), (["ij", "jk"], "ik")),
        ("...a,...ab->...b", (2, 4), (["1a", "01ab"], "01b")),
        ("...ab,a...->...b", (4, 2), (["01ab", "a1"], "01b")),
        ("a...,a->...", (3, 1), (["a01", "a"], "01")),
        ("...a,a", (3, 1), (["01a", "a"], "01")),
        ("...,...->...", (1, 3), (["2", "012"], "012")),
        ("ii->i", (2,), None),
        ("ij->ii", (2,), None),
        ("ij,jk", (2,), None),
        (["ij"], (2,), None),
    ],
)
def test_an_ellipsis_is_broadcast_from_the_last_dimension_on(equation, ranks, found):
    assert letters_of(equation, ranks) == found


class Ellipses(nn.Module):
    """Operands of two and of four dimensions, whose ellipses stand for one and for two: the channels and the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gain = nn.Conv2d(3, 6, 1), nn.Parameter(torch.rand(8, 5))
        self.b = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.b(torch.einsum("...w,...wv->...v", self.gain, self.a(x).unsqueeze(-1).expand(-1, -1, -1, -1, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_an_ellipsis_of_several_ranks_shrinks_exactly(seed):
    torch.manual_seed(seed)
    model = Ellipses().double().eval()
    program = trace(model, (torch.rand(2, 3, 8, 5, dtype=torch.float64),))
    analysis = analyse(program)
    (group,) = (group for group in analysis.groups.values() if group.name == "a")
    assert int(group.free.sum()) == 6
    keep = selection(analysis, seed, 0.5)
    slim = remove_units(program, keep).module
    with torch.no_grad():
        model.b.weight[:, ~keep[group.where]] = 0
        x = torch.rand(3, 3, 8, 5, dtype=torch.float64)
        assert difference(slim(x), model(x)) < TOLERANCE


@pytest.fixture(scope="module", params=sorted(FORMS))
def found(request):
    """A form by its name, its model, and the program."""
    model = build(request.param)
    return request.param, model, trace(model, FORMS[request.param].inputs())


def test_the_trace_is_exact(found):
    """With gradients: without, torch's transformers give zeros at padded tokens, by their fused path."""
    name, model, program = found
    for batch in (2, 3):
        inputs = FORMS[name].inputs(batch if "padding" not in name and "added_keys_and" not in name else 2)
        assert difference(program.module(*inputs).detach(), model(*inputs).detach()) < 1e-12


def test_no_parameter_is_renamed_or_lost(found):
    _, model, program = found
    own = dict(model.named_parameters())
    assert all(program.tensors[name] is tensor for name, tensor in own.items() if name in program.tensors)
    assert own.keys() == {name for name, t in program.tensors.items() if isinstance(t, nn.Parameter)}


def test_heads_and_widths_are_units(found):
    name, _, program = found
    groups = {g.name: (g.size, int(g.free.sum())) for g in analyse(program).groups.values()}
    assert groups == dict(FORMS[name].groups)


def test_slim_is_masked(found):
    name, _, program = found
    for seed, share in enumerate((0.3, 0.7, 1.0)):
        keep = selection(analyse(program), seed, share)
        inputs = FORMS[name].inputs(2, seed)
        assert difference(run(program, keep, inputs), masked(program, keep, inputs)) < TOLERANCE


def test_slim_has_a_text_and_a_source(found, tmp_path):
    name, _, program = found
    slim = remove_units(program, selection(analyse(program), 0, 0.5))
    text = to_text(slim)
    assert to_text(from_text(text)) == text
    if name in UNWRITTEN:
        return
    module = types.ModuleType("model")
    module.__file__ = str(tmp_path / "model.py")
    save_weights(slim, tmp_path / WEIGHTS)
    exec(compile(emit_source(slim), module.__file__, "exec"), vars(module))
    inputs = FORMS[name].inputs()
    with torch.no_grad():
        assert difference(module.load()(*inputs), slim.module(*inputs)) == 0


EXPORTED = ("layer_with_masks_and_weights", "grouped_queries", "continuous_bias", "class_token", "shifted_windows")


@pytest.mark.parametrize("name", EXPORTED)
def test_a_slim_form_becomes_onnx(name, tmp_path):
    net = FORMS[name]
    program = trace(build(name).float(), tuple(x.float() for x in net.inputs()))
    slim = remove_units(program, selection(analyse(program), 0, 0.5))
    report = export_onnx(slim, tmp_path / "model.onnx")
    assert report.max_difference < 1e-4


def test_dropout_follows_the_mode():
    """Of the fused operation, which has no flag, the share itself depends on the mode."""
    model = build("layer_with_dropout")
    module = trace(model, FORMS["layer_with_dropout"].inputs()).module
    [x] = FORMS["layer_with_dropout"].inputs()
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))


def test_hooks_of_the_layer_are_called():
    model = build("layer")
    model.a.register_forward_hook(lambda module, args, output: (output[0] * 2, output[1]))
    inputs = FORMS["layer"].inputs()
    program = trace(model, inputs)
    assert difference(program.module(*inputs).detach(), model(*inputs).detach()) < 1e-12


def test_a_hint_without_a_mask_is_refused():
    net = FORMS["layer"]
    model = Made(net.parts(), lambda m, x: attended(m, x, is_causal=True)).double()
    with pytest.raises(ModelError, match="is_causal is a hint about attn_mask, which isn't given"):
        trace(model, net.inputs())


def test_the_fused_path_is_switched_on_again():
    before = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    trace(build("encoder"), FORMS["encoder"].inputs())
    assert before == (torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask)


def test_a_scale_that_the_slim_width_has_none_of():
    """`(width // heads) ** -0.5` with fewer channels than heads: the factor stays what it was."""
    parts = {"stem": nn.Linear(6, 8), "qkv": nn.Linear(8, 24), "o": nn.Linear(8, 6), "fc": nn.Linear(6, 4)}
    model = lively(Made(parts, lambda m, x: m.fc(_scaled_by_width(m, m.stem(x)))))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    program = trace(model, (x,))
    analysis = analyse(program)
    keep = np.ones(analysis.size, dtype=bool)
    keep[analysis.groups["stem"].where] = np.arange(8) == 5
    assert difference(run(program, keep, (x,)), masked(program, keep, (x,))) < TOLERANCE


def _scaled_by_width(m, x):
    q, k, v = (heads(part) for part in m.qkv(x).chunk(3, -1))
    scores = (q * (x.shape[-1] // HEADS) ** -0.5) @ k.transpose(-2, -1)
    return m.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


# -- networks of torchvision, made small -------------------------------------------------------------------------------


def vision_transformer():
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10)


def maxvit():
    return models.MaxVit((32, 32), 8, 4, [16, 16], [1, 1], 8, 0.0, num_classes=10)


def swin(**options):
    return swin_transformer.SwinTransformer([4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=10, **options)


def swin_v2():
    kinds = {"block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2}
    return swin(**kinds)


def swin_3d():
    return video.swin_transformer.SwinTransformer3d([2, 4, 4], 12, [2, 2], [2, 4], [2, 4, 4], num_classes=10)


def mvit(table, **options):
    keys = ("num_heads", "input_channels", "output_channels", "kernel_q", "kernel_kv", "stride_q", "stride_kv")
    blocks = [video.mvit.MSBlockConfig(**dict(zip(keys, row, strict=True))) for row in table]
    return video.mvit.MViT((32, 32), 4, blocks, num_classes=10, **options)


THREE, ONE, TWO = [3, 3, 3], [1, 1, 1], [1, 2, 2]


def mvit_v1():
    table = [(2, 16, 16, [], THREE, [], TWO), (2, 16, 32, THREE, THREE, TWO, ONE), (4, 32, 32, [], THREE, [], ONE)]
    off = {"residual_pool": False, "rel_pos_embed": False, "proj_after_attn": False}
    return mvit(table, residual_with_cls_embed=True, **off)


def mvit_v2():
    table = [(1, 12, 12, THREE, THREE, ONE, TWO), (2, 12, 24, THREE, THREE, TWO, ONE)]
    on = {"residual_pool": True, "rel_pos_embed": True, "proj_after_attn": True}
    return mvit(table, residual_with_cls_embed=False, **on)


POSITIONS = ("relative_position_bias_table", "pos_embedding", "spatial_pos", "temporal_pos", "class_pos", "rel_pos")
"""What holds a row for each place, which no network can lose."""

ZOO = {
    "vit": (vision_transformer, (2, 3, 32, 32), 2 * (4 + 64) + 32),
    "swin": (swin, (2, 3, 60, 60), 336),
    "swin_v2": (swin_v2, (2, 3, 60, 60), 2384),
    "maxvit": (maxvit, (2, 3, 32, 32), 464),
    "swin_3d": (swin_3d, (1, 3, 4, 32, 32), 336),
    "mvit_v1": (mvit_v1, (1, 3, 4, 32, 32), 328),
    "mvit_v2": (mvit_v2, (1, 3, 4, 32, 32), 204),
}


@pytest.fixture(scope="module", params=ZOO)
def known(request):
    """A network of torchvision in float64, its program, an input, and how many units have to be free."""
    make, shape, free = ZOO[request.param]
    torch.manual_seed(0)
    model = make()
    for name, tensor in model.named_parameters():
        nn.init.uniform_(tensor.data, 0.5, 1.5) if "logit_scale" in name else nn.init.normal_(tensor.data, std=0.3)
    x = torch.randn(shape, dtype=torch.float64)
    return model.double().eval(), trace(model, (x,)), x, free


def test_a_known_network_is_traced_exactly(known):
    model, program, x, _ = known
    with torch.no_grad():
        assert difference(program.module(x), model(x)) < 1e-12


def test_nothing_is_pinned_but_the_output_and_positions(known):
    _, program, _, free = known
    analysis = analyse(program)
    assert int(analysis.free.sum()) == free
    for group in analysis.groups.values():
        reasons = {reason for reason in group.pinned if reason}
        place = any(name in group.name for name in POSITIONS)
        assert place or reasons <= {"reaches the model's output"}, (group.name, reasons)


def test_a_slim_known_network_is_masked(known):
    _, program, x, _ = known
    for seed, share in enumerate((0.4, 1.0)):
        keep = selection(analyse(program), seed, share)
        assert difference(run(program, keep, (x,)), masked(program, keep, (x,))) < TOLERANCE


def test_the_verifier_agrees_on_windows_with_their_own_weights():
    """A Swin transformer as it is initialised, half of its units gone."""
    torch.manual_seed(0)
    program = trace(swin().eval(), (torch.randn(2, 3, 60, 60),))
    keep = selection(analyse(program), 0, 0.5)
    slim = remove_units(program, keep)
    found = verify(slim, Masked(program, removed_positions(analyse(program), keep)), pass_name="shrink")
    assert found.difference < 1e-5
    assert sum(t.numel() for t in slim.tensors.values()) < 0.8 * sum(t.numel() for t in program.tensors.values())
