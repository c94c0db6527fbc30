"""The zoo against published counts, and the trained weights against their stated accuracy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from prunec.models import convnet, data, densenet, digits, example, mlp, mobilenet, preact_resnet, resnet, train, vgg

RGB, GREY = (3, 32, 32), (1, 28, 28)


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiplications of the convolutions and linear layers for one sample."""
    counts: list[int] = []

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        per_output = module.weight[0].numel()  # a row: inputs per group times kernel, or inputs
        counts.append(per_output * output[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return sum(counts)


def params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def params_without_norms(model: nn.Module) -> int:
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def norm_channels(model: nn.Module) -> int:
    return sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def after_cut(depth: int, rates: tuple[float, float, float], skipped: set[int]) -> resnet.ResNet:
    """A ResNet whose block k keeps `int(C * (1 - p))` inner channels, unless convolution 2k is skipped (stem = 1)."""
    blocks = (depth - 2) // 6
    full = [(width, rate) for width, rate in zip((16, 32, 64), rates, strict=True) for _ in range(blocks)]
    inner = [
        width if 2 * block in skipped else int(width * (1 - rate)) for block, (width, rate) in enumerate(full, start=1)
    ]
    return resnet.resnet(depth, inner=inner)


VGG16_A = [32, 64, 128, 128, *[256] * 9]
SLIM = {"widths": (10, 20, 40), "shortcut": "projection_2x2"}

GOLDEN_MACS = {
    "vgg16": (lambda: vgg.vgg16_bn(head=(512,)), RGB, 313_463_808),
    "vgg16-A": (lambda: vgg.vgg16_bn(head=(512,), widths=VGG16_A), RGB, 206_279_680),
    "vgg19": (vgg.vgg19_bn, RGB, 398_136_320),
    "resnet56": (resnet.resnet56, RGB, 125_485_696),
    "resnet56-A": (lambda: after_cut(56, (0.1, 0.1, 0.1), {16, 20, 38, 54}), RGB, 112_435_840),
    "resnet56-B": (lambda: after_cut(56, (0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54}), RGB, 90_907_264),
    "mobilenet": (mobilenet.mobilenet, RGB, 65_394_688),
    "resnet110": (resnet.resnet110, RGB, 252_887_680),
    "resnet110-A": (lambda: after_cut(110, (0.5, 0.0, 0.0), {36}), RGB, 212_779_648),
    "resnet110-B": (lambda: after_cut(110, (0.5, 0.4, 0.3), {36, 38, 74}), RGB, 155_124_352),
    "resnet56-projection": (lambda: resnet.resnet56("projection"), RGB, 125_747_840),
    "resnet56-projection-2x2": (lambda: resnet.resnet56("projection_2x2"), RGB, 126_534_272),
    "resnet56-projection-2x2-slim": (lambda: resnet.resnet(56, **SLIM), RGB, 49_531_280),
    "convnet": (convnet.convnet, GREY, 5_676_160),
    "convnet-slim": (lambda: convnet.convnet((8, 16, 32)), GREY, 523_712),
    "example": (example.example, RGB, 11_732_224),
}

GOLDEN_PARAMS = {
    "vgg16": (lambda: vgg.vgg16_bn(head=(512,)), params_without_norms, 14_978_250),
    "vgg16-A": (lambda: vgg.vgg16_bn(head=(512,), widths=VGG16_A), params_without_norms, 5_390_698),
    "vgg19": (vgg.vgg19_bn, params, 20_035_018),
    "vgg19-norms": (vgg.vgg19_bn, norm_channels, 5_504),
    "resnet56": (resnet.resnet56, params, 853_018),
    "resnet56-A": (lambda: after_cut(56, (0.1, 0.1, 0.1), {16, 20, 38, 54}), params, 773_336),
    "resnet56-B": (lambda: after_cut(56, (0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54}), params, 735_712),
    "resnet110": (resnet.resnet110, params, 1_727_962),
    "resnet110-A": (lambda: after_cut(110, (0.5, 0.0, 0.0), {36}), params, 1_688_522),
    "resnet110-B": (lambda: after_cut(110, (0.5, 0.4, 0.3), {36, 38, 74}), params, 1_168_424),
    "mlp": (mlp.mlp, params, 199_210),
    "mlp-slim": (lambda: mlp.mlp((784, 50, 100, 10)), params, 45_360),
    "convnet": (convnet.convnet, params, 87_114),
    "convnet-slim": (lambda: convnet.convnet((8, 16, 32)), params, 21_578),
}

PUBLISHED = {  # (millions of parameters, FLOPs in units of 1e8, at two for a multiplication), both rounded
    "preact_resnet164": (preact_resnet.preact_resnet164, 1.70, 4.99),
    "densenet40": (densenet.densenet40, 1.02, 5.33),
}


@pytest.mark.parametrize(("factory", "shape", "expected"), GOLDEN_MACS.values(), ids=GOLDEN_MACS)
def test_macs_are_the_published_ones(factory: Callable[[], nn.Module], shape, expected):
    assert macs(factory(), shape) == expected


@pytest.mark.parametrize(("factory", "count", "expected"), GOLDEN_PARAMS.values(), ids=GOLDEN_PARAMS)
def test_parameters_are_the_published_ones(factory: Callable[[], nn.Module], count, expected):
    assert count(factory()) == expected


@pytest.mark.parametrize(("factory", "millions", "flops"), PUBLISHED.values(), ids=PUBLISHED)
def test_rounded_baselines_are_met(factory: Callable[[], nn.Module], millions, flops):
    model = factory()
    assert round(params(model) / 1e6, 2) == millions
    assert 2 * macs(model, RGB) / 1e8 == pytest.approx(flops, rel=0.01)  # the papers count a little beside the layers


def test_slim_projections_cut_what_was_published():
    wide, slim = resnet.resnet(110, "projection_2x2"), resnet.resnet(110, **SLIM)
    assert 1 - macs(slim, RGB) / macs(wide, RGB) == pytest.approx(0.6090, abs=5e-5)


SHAPES = {
    "mlp-images": (mlp.mlp, GREY, 10),
    "mlp-flat": (lambda: mlp.mlp((20, 5, 3)), (20,), 3),
    "convnet": (lambda: convnet.convnet(num_classes=4, in_channels=3, image_size=32), RGB, 4),
    "example": (lambda: example.example(num_classes=7), RGB, 7),
    "vgg11": (lambda: vgg.vgg11_bn(num_classes=3, in_channels=1), (1, 32, 32), 3),
    "resnet20": (lambda: resnet.resnet20(num_classes=5), RGB, 5),
    "resnet20-odd-image": (resnet.resnet20, (3, 29, 31), 10),
    "resnet8-uneven-padding": (lambda: resnet.resnet(8, widths=(4, 7, 12)), RGB, 10),
    "preact_resnet": (lambda: preact_resnet.preact_resnet(11, num_classes=6), RGB, 6),
    "densenet": (lambda: densenet.densenet(10, growth=4, num_classes=2, in_channels=2), (2, 32, 32), 2),
    "digits-cnn": (digits.cnn, (1, 8, 8), 10),
    "digits-mlp": (digits.mlp, (1, 8, 8), 10),
    "digits-resnet-projection": (lambda: digits.resnet("projection"), (1, 8, 8), 10),
}


@pytest.mark.parametrize(("factory", "shape", "classes"), SHAPES.values(), ids=SHAPES)
def test_a_batch_gives_a_row_of_logits_per_sample(factory: Callable[[], nn.Module], shape, classes):
    assert factory().eval()(torch.zeros(3, *shape)).shape == (3, classes)


def test_the_faulty_network_gives_four_rows_per_image():
    assert example.faulty_example().eval()(torch.zeros(2, 3, 32, 32)).shape == (8, 10)


def test_zero_padding_puts_the_channels_in_the_middle():
    x = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    out = resnet.ZeroPad(2, 5)(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3, 4]].any()


REFUSED = {
    "resnet-depth": (lambda: resnet.resnet(21), "depth must be 6n + 2 (8, 14, 20, 32, 56, 110, ...), got 21"),
    "resnet-shortcut": (lambda: resnet.resnet(20, "pad"), "zero_pad, projection, projection_2x2, got 'pad'"),
    "resnet-inner": (lambda: resnet.resnet(20, inner=[8]), "inner must name 9 blocks, got 1"),
    "preact-depth": (lambda: preact_resnet.preact_resnet(2), "depth must be 9n + 2"),
    "densenet-depth": (lambda: densenet.densenet(41), "depth must be 3n + 4"),
    "vgg-depth": (lambda: vgg.vgg_bn(12), "depth must be one of [11, 16, 19], got 12"),
    "vgg-widths": (lambda: vgg.vgg11_bn(widths=[8]), "widths must name 8 convolutions, got 1"),
    "mlp-widths": (lambda: mlp.mlp((784,)), "at least the inputs and the outputs, got [784]"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_sizes_that_make_no_network_are_refused(build: Callable[[], nn.Module], message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


# Trained weights: the accuracy below which a file would not deserve to be shipped.
TRAINED = {"digits": 0.99, "digits_mlp": 0.97, "digits_resnet": 0.98}


def test_every_weight_file_has_a_recipe_and_they_are_small():
    files = sorted(digits.WEIGHTS.iterdir())
    assert [file.name for file in files] == sorted(f"{name}.safetensors" for name in train.RECIPES)
    assert train.RECIPES.keys() == TRAINED.keys()
    assert sum(file.stat().st_size for file in files) < 2_000_000


@pytest.mark.parametrize(("name", "floor"), TRAINED.items(), ids=TRAINED)
def test_weights_reach_their_stated_accuracy(name, floor):
    file = digits.WEIGHTS / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        stated = json.loads(opened.metadata()["accuracy"])
    model = train.RECIPES[name].model()
    model.load_state_dict(load_file(file))
    splits = data.digits()
    one_image = 1 / 180 + 1e-9  # a borderline image may fall the other way on another machine
    assert train.accuracy(model, splits.val()) == pytest.approx(stated["val"], abs=one_image)
    assert train.accuracy(model, splits.test()) == pytest.approx(stated["test"], abs=one_image)
    assert stated["test"] >= floor


def test_training_is_repeatable_and_depends_on_the_seed(tmp_path):
    def trained(file: str, *more: str) -> str:
        path = tmp_path / "new" / file
        train.main(["digits_mlp", "-o", str(path), "--epochs", "1", *more])
        return hashlib.sha256(path.read_bytes()).hexdigest()

    threads = torch.get_num_threads()
    before = torch.random.get_rng_state()
    first = trained("a")
    assert trained("b") == first
    assert trained("c", "--seed", "1") != first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
